"""What a model variant costs: latency, throughput, memory and size, in one row per variant and size.

All variants are measured in turn, again and again (A B C A B C …), so that a machine that grows slower or
faster does so for all of them (`latency` says how the blocks become figures). Two columns say how far the
decoding times can be trusted. `noise_percent`: one variant is measured a second time at the end of every
turn, and this is how much its two results differ (an A/A comparison); less than that means nothing. It is a
student if there is one: chance disturbs small, fast models more than large ones. `spread_percent`: how much
the variants of one architecture differ, which should take the same time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import psutil
import torch

from kdsuite.benchmark.latency import Samples, seconds_per_answer, spread_percent
from kdsuite.benchmark.memory import measure_memory
from kdsuite.benchmark.variants import Loaded, Variant, load, standalone
from kdsuite.config.benchmark import BenchmarkSettings
from kdsuite.errors import ModelError, RunError
from kdsuite.models.quantization import QuantizationUnavailable
from kdsuite.runtime.device import MB, DeviceChoice, empty_cache
from kdsuite.runtime.progress import Progress

FIGURES = """new_tokens first_token_ms median_first_token_ms p95_first_token_ms decode_ms_per_token
    median_ms_per_token p95_ms_per_token tokens_per_second noise_percent spread_percent seconds_per_answer
    peak_memory_mb runtime_memory_mb weights_mb disk_mb parameters embedding_parameters
    adapter_parameters""".split()  # the measured columns, empty where there is no measurement
Answer = Callable[[Variant, Any], list[float]]  # seconds per example that a variant's model answers

TEACHER = "teacher"  # the role that is not a student
MANY_THREADS = 4  # measured besides "all" where there are more: what a small machine would do


@dataclass(frozen=True)
class Size:
    """The conditions of one row; `prompt` says what the length is in the task: "median", "p95"."""

    threads: int
    batch_size: int
    prompt: str
    prompt_tokens: int


@dataclass
class Subject:
    """A variant on its way through the benchmark; `ready` is what is loaded for it."""

    variant: Variant
    ready: Variant
    problem: str | None = None  # why there are no figures at all
    memory_problem: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # columns that are the same at every size
    samples: dict[Size, Samples] = field(default_factory=lambda: defaultdict(Samples))
    answers: dict[int, list[list[float]]] = field(default_factory=lambda: defaultdict(list))  # by threads
    peak_mb: dict[tuple[int, int], float] = field(default_factory=dict)  # by (batch size, prompt tokens)

    def row(
        self, size: Size, choice: DeviceChoice, noise: float | None, spread: float | None
    ) -> dict[str, Any]:
        """A row of `benchmarks.csv`."""
        variant = self.variant
        row = {
            "model": variant.source.name,
            "variant": variant.name,
            "task": variant.task,
            "student": variant.student,
            "method": variant.method,
            "quantization": variant.quantization,
            "device": str(choice.device),
            "dtype": choice.dtype_name,
            **asdict(size),
            **dict.fromkeys(FIGURES),
            "reason": self.problem or self.memory_problem,
        }
        if self.problem is not None:
            return row
        return (
            row
            | self.facts
            | self.samples[size].times(size.batch_size)
            | {
                "noise_percent": noise,
                "spread_percent": spread,
                "seconds_per_answer": seconds_per_answer(self.answers[size.threads]),
                "peak_memory_mb": self.peak_mb.get((size.batch_size, size.prompt_tokens)),
            }
        )


def measure_variants(
    variants: Sequence[Variant],
    prompt_lengths: Mapping[str, int],
    settings: BenchmarkSettings,
    choice: DeviceChoice,
    workdir: Path,
    progress: Progress,
    answer: Answer | None = None,
) -> list[dict[str, Any]]:
    """Rows of `benchmarks.csv`, one per variant, thread count, batch size and prompt length.

    `prompt_lengths` are tokens by label. Quantized variants are written below `workdir`, and found there
    again. `answer` answers the same few examples of the task with a variant, one at a time: the same figure
    in all rows of a thread count. A variant that cannot be loaded, quantized or held by the device has rows
    without figures that say why in `reason`; the others are measured all the same.
    """
    subjects = []
    with progress.work(
        "benchmark, getting ready", len(variants), "models"
    ) as work:  # quantization takes long
        for variant in variants:
            try:
                subjects.append(Subject(variant, standalone(variant, choice, workdir, progress.say)))
            except (QuantizationUnavailable, ModelError) as error:
                subjects.append(Subject(variant, variant, problem=str(error)))
            work.advance()
    sizes = [
        Size(threads, batch_size, label, length)
        for threads in _thread_counts(settings, choice)
        for batch_size in settings.batch_sizes
        for label, length in prompt_lengths.items()
    ]
    present = [s for s in subjects if s.problem is None]
    if settings.memory:
        _measure_memory(present, sizes, settings.new_tokens, choice, progress)
    pair = sorted(present, key=lambda s: s.variant.student == TEACHER)[:1]  # of the A/A comparison
    pair += [Subject(subject.variant, subject.ready) for subject in pair]
    _measure_latency([*present, *pair[1:]], sizes, settings, choice, progress, answer)
    return [
        subject.row(size, choice, _spread(pair, size), _spread(_alike(subject, present), size))
        for subject in subjects
        for size in sizes
    ]


def _thread_counts(settings: BenchmarkSettings, choice: DeviceChoice) -> tuple[int, ...]:
    """CPU threads matter only on a CPU; elsewhere there is one set of rows."""
    if choice.device.type != "cpu":
        return (choice.threads,)
    few = (MANY_THREADS,) if choice.threads > MANY_THREADS else ()
    return settings.threads or (choice.threads, *few)


def _measure_memory(
    subjects: Sequence[Subject],
    sizes: Sequence[Size],
    new_tokens: int,
    choice: DeviceChoice,
    progress: Progress,
) -> None:
    shapes = sorted({(size.batch_size, size.prompt_tokens) for size in sizes})
    choice = replace(choice, threads=sizes[0].threads)  # their number hardly changes the memory
    with progress.work("benchmark, memory", len(subjects), "models") as work:
        memories = measure_memory([s.ready for s in subjects], shapes, new_tokens, choice, work.advance)
    for subject, memory in zip(subjects, memories, strict=True):
        subject.memory_problem = memory.reason
        subject.facts["runtime_memory_mb"] = memory.runtime_mb
        subject.peak_mb = dict(zip(shapes, memory.peak_mb, strict=False))


def _measure_latency(
    subjects: Sequence[Subject],
    sizes: Sequence[Size],
    settings: BenchmarkSettings,
    choice: DeviceChoice,
    progress: Progress,
    answer: Answer | None,
) -> None:
    """Every subject in turn at one visit after the other, all of it `settings.blocks` times.

    A visit is what is measured in one go: one size or, where each has to load its model first, all those of a
    thread count. The last one of a thread count also answers.
    """
    shelf = _Shelf(choice, [subject.ready for subject in subjects])
    visits: list[tuple[tuple[Size, ...], bool]] = []
    for _, same_threads in groupby(sizes, key=lambda size: size.threads):
        mine = tuple(same_threads)
        visits += [((size,), size is mine[-1]) for size in mine] if shelf.keeps else [(mine, True)]
    count = settings.blocks * len(visits) * len(subjects)
    with progress.work("benchmark", count, unit="measurements") as work:
        for visit, answering in visits * settings.blocks:
            torch.set_num_threads(visit[0].threads)
            for subject in subjects:
                if subject.problem is None:
                    _visit(subject, shelf, visit, settings, answer if answering else None)
                work.advance(note=subject.variant.name)
    torch.set_num_threads(choice.threads)


def _visit(
    subject: Subject, shelf: _Shelf, sizes: Sequence[Size], settings: BenchmarkSettings, answer: Answer | None
) -> None:
    """Measure a subject; too little memory ends the measurements of this subject."""
    try:
        loaded = shelf.take(subject.ready)
        subject.facts |= {"weights_mb": loaded.weight_bytes / MB, "disk_mb": loaded.disk_bytes / MB}
        subject.facts |= asdict(loaded.parameters)
        for size in sizes:
            shape = size.batch_size, size.prompt_tokens
            subject.samples[size].generate(loaded.model, *shape, settings.new_tokens, settings.warmup)
        if answer is not None:
            subject.answers[sizes[0].threads].append(answer(subject.variant, loaded.model))
    except (ModelError, RunError) as error:
        subject.problem = str(error)
    except torch.OutOfMemoryError:
        subject.problem = f"out of memory on {shelf.choice.device}"
        shelf.clear()


class _Shelf:
    """The loaded models: all of them if together they fill less than half of the free memory, else one."""

    def __init__(self, choice: DeviceChoice, variants: Sequence[Variant]) -> None:
        self.choice, self.keeps = choice, True
        self.models: dict[Variant, Loaded] = {}
        room = _free_bytes(choice.device) // 2
        try:
            for variant in dict.fromkeys(variants):
                room -= self.take(variant).weight_bytes
                if room < 0:
                    break
        except (torch.OutOfMemoryError, ModelError):
            room = -1
        if room < 0:
            self.keeps = False
            self.clear()

    def take(self, variant: Variant) -> Loaded:
        if variant not in self.models:
            if not self.keeps:
                self.clear()
            self.models[variant] = load(variant, self.choice)
        return self.models[variant]

    def clear(self) -> None:
        self.models.clear()
        empty_cache(self.choice.device)


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _alike(subject: Subject, subjects: Sequence[Subject]) -> list[Subject]:
    """The measured variants that differ from this one in the values of their weights only."""
    about = subject.variant.source.name, subject.variant.quantization
    return [
        s for s in subjects if s.problem is None and (s.variant.source.name, s.variant.quantization) == about
    ]


def _spread(subjects: Sequence[Subject], size: Size) -> float | None:
    """By how many percent the decoding times of these variants differ; None if there are not two."""
    if any(subject.problem for subject in subjects):
        return None
    return spread_percent([subject.samples[size].undisturbed_step for subject in subjects])

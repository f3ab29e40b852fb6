"""What a model variant costs: latency, throughput, memory and size, in one row per variant and size.

All variants are measured in turn, again and again (A B C A B C …), so that a machine that grows slower or
faster does so for all of them (`samples` says how the blocks become figures). Two columns say how far the
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

from kdsuite.benchmark.latency import random_prompts, timed_generation, warm_up
from kdsuite.benchmark.memory import measure_memory
from kdsuite.benchmark.samples import Samples, seconds_per_answer, spread_percent
from kdsuite.benchmark.variants import Loaded, Variant, load, standalone
from kdsuite.config.benchmark import BenchmarkSettings
from kdsuite.errors import ModelError, RunError
from kdsuite.models.quantization import QuantizationUnavailable
from kdsuite.runtime.device import MB, DeviceChoice, empty_cache
from kdsuite.runtime.progress import Progress

FIGURES = (  # the measured columns, empty where there is no measurement
    "new_tokens",
    "first_token_ms",
    "median_first_token_ms",
    "p95_first_token_ms",
    "decode_ms_per_token",
    "median_ms_per_token",
    "p95_ms_per_token",
    "tokens_per_second",
    "noise_percent",
    "spread_percent",
    "seconds_per_answer",
    "peak_memory_mb",
    "runtime_memory_mb",
    "weights_mb",
    "disk_mb",
    "parameters",
    "embedding_parameters",
    "adapter_parameters",
)
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


@dataclass(frozen=True)
class Visit:
    """What is measured in one go, before it is the next variant's turn."""

    threads: int
    sizes: tuple[Size, ...]
    answers: bool


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


def measure_variants(
    variants: Sequence[Variant],
    prompt_lengths: Mapping[str, int],
    settings: BenchmarkSettings,
    device_choice: DeviceChoice,
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
            subjects.append(_subject(variant, device_choice, workdir))
            work.advance()
    sizes = _sizes(prompt_lengths, settings, device_choice)
    present = [s for s in subjects if s.problem is None]
    if settings.memory:
        _measure_memory(present, sizes, settings.new_tokens, device_choice, progress)
    pair = _twice(present)
    _measure_latency([*present, *pair[1:]], sizes, settings, device_choice, progress, answer)
    noise = {size: _spread(pair, size) for size in sizes}
    return [
        _row(subject, size, device_choice, noise[size], _spread(_alike(subject, present), size))
        for subject in subjects
        for size in sizes
    ]


def _subject(variant: Variant, choice: DeviceChoice, workdir: Path) -> Subject:
    try:
        return Subject(variant, standalone(variant, choice, workdir))
    except (QuantizationUnavailable, ModelError) as error:
        return Subject(variant, variant, problem=str(error))


def _twice(subjects: Sequence[Subject]) -> list[Subject]:
    """The subject of the A/A comparison and its double; nothing where there are no subjects."""
    candidates = [s for s in subjects if s.variant.student != TEACHER] or list(subjects)
    return [double for s in candidates[:1] for double in (s, Subject(s.variant, s.ready))]


def _sizes(lengths: Mapping[str, int], settings: BenchmarkSettings, choice: DeviceChoice) -> list[Size]:
    return [
        Size(threads, batch_size, label, length)
        for threads in _thread_counts(settings, choice)
        for batch_size in settings.batch_sizes
        for label, length in lengths.items()
    ]


def _thread_counts(settings: BenchmarkSettings, choice: DeviceChoice) -> tuple[int, ...]:
    """CPU threads matter only on a CPU; elsewhere there is one set of rows."""
    if choice.device.type != "cpu":
        return (choice.threads,)
    if settings.threads is not None:
        return settings.threads
    return (choice.threads, MANY_THREADS) if choice.threads > MANY_THREADS else (choice.threads,)


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
    """Every subject in turn at one visit after the other, all of it `settings.blocks` times."""
    shelf = _Shelf(choice, [subject.ready for subject in subjects])
    visits = _visits(sizes, apart=shelf.keeps)
    count = settings.blocks * len(visits) * len(subjects)
    with progress.work("benchmark", count, unit="measurements") as work:
        for visit in visits * settings.blocks:
            torch.set_num_threads(visit.threads)
            for subject in subjects:
                if subject.problem is None:
                    _measure(subject, shelf, visit, settings, answer)
                work.advance(note=subject.variant.name)
    torch.set_num_threads(choice.threads)


def _visits(sizes: Sequence[Size], apart: bool) -> list[Visit]:
    """The visits of one block: one per size, or one per thread count where each has to load its model first."""
    visits = []
    for threads, same_threads in groupby(sizes, key=lambda size: size.threads):
        mine = tuple(same_threads)
        groups = [(size,) for size in mine] if apart else [mine]
        visits += [Visit(threads, group, answers=group is groups[-1]) for group in groups]
    return visits


def _measure(
    subject: Subject, shelf: _Shelf, visit: Visit, settings: BenchmarkSettings, answer: Answer | None
) -> None:
    """One visit to a subject; too little memory ends the measurements of this subject."""
    try:
        loaded = shelf.take(subject.ready)
        subject.facts |= _facts(loaded)
        for size in visit.sizes:
            _generate(subject, loaded.model, size, settings)
        if answer is not None and visit.answers:
            subject.answers[visit.threads].append(answer(subject.variant, loaded.model))
    except (ModelError, RunError) as error:
        subject.problem = str(error)
    except torch.OutOfMemoryError:
        subject.problem = f"out of memory on {shelf.choice.device}"
        shelf.clear()


def _generate(subject: Subject, model: Any, size: Size, settings: BenchmarkSettings) -> None:
    prompts = random_prompts(model, size.batch_size, size.prompt_tokens)
    warm_up(model, prompts, settings.warmup)
    timing = timed_generation(model, prompts, settings.new_tokens)
    samples = subject.samples[size]
    samples.first.append(timing.first_token)
    samples.steps.append(timing.steps)
    samples.new_tokens = timing.tokens.shape[1]


class _Shelf:
    """The loaded models: all of them if together they fill less than half of the free memory, else one."""

    def __init__(self, choice: DeviceChoice, variants: Sequence[Variant]) -> None:
        self.choice = choice
        self.models: dict[Variant, Loaded] = {}
        self.keeps = self._fill(set(variants), room=_free_bytes(choice.device) // 2)

    def take(self, variant: Variant) -> Loaded:
        if variant not in self.models:
            if not self.keeps:
                self.clear()
            self.models[variant] = load(variant, self.choice)
        return self.models[variant]

    def clear(self) -> None:
        self.models.clear()
        empty_cache(self.choice.device)

    def _fill(self, variants: set[Variant], room: int) -> bool:
        try:
            for variant in variants:
                self.models[variant] = load(variant, self.choice)
                room -= self.models[variant].weight_bytes
                if room < 0:
                    break
        except (torch.OutOfMemoryError, ModelError):
            room = -1
        if room < 0:
            self.clear()
        return room >= 0


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _facts(loaded: Loaded) -> dict[str, Any]:
    sizes = {"weights_mb": loaded.weight_bytes / MB, "disk_mb": loaded.disk_bytes / MB}
    return sizes | asdict(loaded.parameters)


def _row(
    subject: Subject, size: Size, choice: DeviceChoice, noise: float | None, spread: float | None
) -> dict[str, Any]:
    variant = subject.variant
    row = {
        "model": variant.model,
        "variant": variant.name,
        "task": variant.task,
        "student": variant.student,
        "method": variant.method,
        "quantization": variant.quantization,
        "device": str(choice.device),
        "dtype": choice.dtype_name,
        **asdict(size),
        **dict.fromkeys(FIGURES),
        "reason": subject.problem or subject.memory_problem,
    }
    if subject.problem is not None:
        return row
    peak = subject.peak_mb.get((size.batch_size, size.prompt_tokens))
    times = subject.samples[size].times(size.batch_size) | {"noise_percent": noise, "spread_percent": spread}
    answered = {"seconds_per_answer": seconds_per_answer(subject.answers[size.threads])}
    return row | subject.facts | times | answered | {"peak_memory_mb": peak}


def _alike(subject: Subject, subjects: Sequence[Subject]) -> list[Subject]:
    """The measured variants that differ from this one in the values of their weights only."""
    about = subject.variant.model, subject.variant.quantization
    return [s for s in subjects if s.problem is None and (s.variant.model, s.variant.quantization) == about]


def _spread(subjects: Sequence[Subject], size: Size) -> float | None:
    """By how many percent the decoding times of these variants differ; None if there are not two."""
    if any(subject.problem for subject in subjects):
        return None
    return spread_percent([subject.samples[size].undisturbed_step for subject in subjects])

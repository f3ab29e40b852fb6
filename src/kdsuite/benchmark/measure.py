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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby, product
from pathlib import Path
from typing import Any

import torch

from kdsuite.benchmark import latency
from kdsuite.benchmark.memory import Job, measure_memory
from kdsuite.benchmark.variants import Variant, load, standalone
from kdsuite.config import TEACHER
from kdsuite.config.benchmark import WARMUP_TOKENS, BenchmarkSettings
from kdsuite.errors import ModelError, RunError
from kdsuite.models.quantization import QuantizationUnavailable
from kdsuite.runtime.device import MB, DeviceChoice, empty_cache, memory_bytes
from kdsuite.runtime.memory import OUT_OF_MEMORY, is_out_of_memory
from kdsuite.runtime.progress import Progress

FIGURES = """new_tokens first_token_ms median_first_token_ms p95_first_token_ms decode_ms_per_token
    median_ms_per_token p95_ms_per_token tokens_per_second noise_percent spread_percent seconds_per_answer
    peak_memory_mb runtime_memory_mb weights_mb disk_mb parameters embedding_parameters
    adapter_parameters""".split()  # the measured columns, empty where there is no measurement
Answer = Callable[[Variant, Any], list[float]]  # seconds per example that a variant's model answers


@dataclass(frozen=True)
class Size:
    """The conditions of one row; `prompt` says what the length is in the task: "median", "p95"."""

    threads: int
    batch_size: int
    prompt: str
    prompt_tokens: int


@dataclass(frozen=True)
class Conditions:
    """What models are measured with. `lengths` are prompt tokens by label; quantized variants are written below
    `workdir`, and found there again."""

    lengths: Mapping[str, int]
    benchmark: BenchmarkSettings
    choice: DeviceChoice
    workdir: Path
    progress: Progress

    @cached_property
    def sizes(self) -> list[Size]:
        threads = self.benchmark.thread_counts(self.choice.device.type, self.choice.threads)
        shapes = product(threads, self.benchmark.batch_sizes, self.lengths.items())
        return [Size(threads, batch_size, *length) for threads, batch_size, length in shapes]


@dataclass
class Subject:
    """A variant on its way through the benchmark; `ready` is what is loaded for it."""

    variant: Variant
    ready: Variant
    problem: str | None = None  # why there are no figures at all
    memory_problem: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # columns that are the same at every size
    timings: dict[Size, list[latency.Timing]] = field(default_factory=lambda: defaultdict(list))  # one per block
    answers: dict[int, list[list[float]]] = field(default_factory=lambda: defaultdict(list))  # by threads
    peak_mb: dict[tuple[int, int], float] = field(default_factory=dict)  # by (batch size, prompt tokens)

    def row(self, size: Size, choice: DeviceChoice) -> dict[str, Any]:
        """A row of `benchmarks.csv`."""
        variant = self.variant
        row = {"model": variant.source.name, "variant": variant.name}
        row |= {name: getattr(variant, name) for name in ("task", "student", "method", "quantization")}
        row |= {"device": str(choice.device), "dtype": choice.dtype_name, **asdict(size), **dict.fromkeys(FIGURES)}
        row["reason"] = self.problem or self.memory_problem
        if self.problem is None:
            row |= self.facts | latency.figures(self.timings[size])
            row["seconds_per_answer"] = latency.seconds_per_answer(self.answers[size.threads])
            row["peak_memory_mb"] = self.peak_mb.get((size.batch_size, size.prompt_tokens))
        return row


def measure_variants(
    conditions: Conditions, variants: Sequence[Variant], answer: Answer | None = None
) -> list[dict[str, Any]]:
    """Rows of `benchmarks.csv`, one per variant, thread count, batch size and prompt length.

    `answer` answers the same few examples of the task with a variant, one at a time: the same figure in all rows
    of a thread count. A variant that cannot be loaded, quantized or held by the device has rows without figures
    that say why in `reason`; the others are measured all the same.
    """
    subjects, progress = [], conditions.progress
    with progress.work("benchmark, getting ready", len(variants), "models") as work:  # quantization is slow
        for variant in variants:
            subjects.append(Subject(variant, variant))
            with _told(subjects[-1], conditions.choice):
                subjects[-1].ready = standalone(variant, conditions.choice, conditions.workdir, progress.say)
            work.advance()
    present = [s for s in subjects if s.problem is None]
    if conditions.benchmark.memory:
        _measure_memory(conditions, present)
    pair = sorted(present, key=lambda s: s.variant.student == TEACHER)[:1]  # of the A/A comparison
    pair += [Subject(subject.variant, subject.ready) for subject in pair]
    _measure_latency(conditions, [*present, *pair[1:]], answer)
    rows = []
    for subject, size in product(subjects, conditions.sizes):
        alike = [s for s in present if s.problem is None and s.variant.kind == subject.variant.kind]
        row = subject.row(size, conditions.choice)
        if subject.problem is None:
            row |= {"noise_percent": _spread(pair, size), "spread_percent": _spread(alike, size)}
        rows.append(row)
    return rows


def _measure_memory(conditions: Conditions, subjects: Sequence[Subject]) -> None:
    sizes, new_tokens = conditions.sizes, conditions.benchmark.new_tokens
    shapes = sorted({(size.batch_size, size.prompt_tokens) for size in sizes})
    where = str(conditions.choice.device), conditions.choice.dtype_name, sizes[0].threads
    jobs = [Job(subject.ready, shapes, new_tokens, *where) for subject in subjects]
    with conditions.progress.work("benchmark, memory", len(jobs), "models") as work:
        memories = measure_memory(jobs, work.advance)
    for subject, memory in zip(subjects, memories, strict=True):
        subject.memory_problem = memory.reason
        subject.facts["runtime_memory_mb"] = memory.runtime_mb
        subject.peak_mb = dict(zip(shapes, memory.peak_mb, strict=False))


def _measure_latency(conditions: Conditions, subjects: Sequence[Subject], answer: Answer | None) -> None:
    """Every subject in turn at one visit after the other, all of it `benchmark.blocks` times.

    A visit is what is measured in one go: one size or, where each has to load its model first, all those of a
    thread count. The last one of a thread count also answers.
    """
    settings, shelf = conditions.benchmark, _Shelf(conditions.choice, [s.ready for s in subjects])
    visits: list[tuple[tuple[Size, ...], bool]] = []
    for _, same_threads in groupby(conditions.sizes, key=lambda size: size.threads):
        mine = tuple(same_threads)
        visits += [((size,), size is mine[-1]) for size in mine] if shelf.keeps else [(mine, True)]
    visits *= settings.blocks or 1
    with conditions.progress.work("benchmark", len(visits) * len(subjects), "measurements") as work:
        for sizes, answering in visits:
            torch.set_num_threads(sizes[0].threads)
            for subject in subjects:
                if subject.problem is None:
                    with _told(subject, conditions.choice):
                        _visit(subject, shelf, sizes, settings, answer if answering else None)
                    if subject.problem:
                        shelf.clear()
                work.advance(note=subject.variant.name)
    torch.set_num_threads(conditions.choice.threads)


def _visit(
    subject: Subject, shelf: _Shelf, sizes: Sequence[Size], settings: BenchmarkSettings, answer: Answer | None
) -> None:
    model, model_sizes = shelf.take(subject.ready)
    subject.facts |= model_sizes
    for size in sizes:
        prompts = latency.random_prompts(model, size.batch_size, size.prompt_tokens)
        for _ in range(settings.warmup):  # so that kernels are chosen and caches hold these weights
            latency.timed_generation(model, prompts, WARMUP_TOKENS)
        subject.timings[size].append(latency.timed_generation(model, prompts, settings.new_tokens))
    if answer is not None:
        subject.answers[sizes[0].threads].append(answer(subject.variant, model))


@contextmanager
def _told(subject: Subject, choice: DeviceChoice) -> Iterator[None]:
    """Keep why a subject cannot be had or held, which ends its measurements; what nobody expects is raised."""
    try:
        yield
    except (QuantizationUnavailable, ModelError, RunError) as error:
        subject.problem = str(error)
    except OUT_OF_MEMORY as error:
        if not is_out_of_memory(error):
            raise
        subject.problem = f"out of memory on {choice.device}"


class _Shelf:
    """The loaded models: all of them if together they fill less than half of the free memory, else one."""

    def __init__(self, choice: DeviceChoice, variants: Sequence[Variant]) -> None:
        self.choice, self.keeps = choice, True
        self.models: dict[Variant, tuple[Any, dict[str, float]]] = {}
        room = memory_bytes(choice.device)[1] / 2
        try:
            for variant in dict.fromkeys(variants):
                room -= self.take(variant)[1]["weights_mb"] * MB
                if room < 0:
                    break
        except (ModelError, *OUT_OF_MEMORY) as error:
            if not isinstance(error, ModelError) and not is_out_of_memory(error):
                raise
            room = -1
        if room < 0:
            self.keeps = False
            self.clear()

    def take(self, variant: Variant) -> tuple[Any, dict[str, float]]:
        if variant not in self.models:
            if not self.keeps:
                self.clear()
            self.models[variant] = load(variant, self.choice)
        return self.models[variant]

    def clear(self) -> None:
        self.models.clear()
        empty_cache(self.choice.device)


def _spread(subjects: Sequence[Subject], size: Size) -> float | None:
    """By how many percent the decoding times of these variants differ; None if there are not two."""
    if any(subject.problem for subject in subjects):
        return None
    return latency.spread_percent([latency.undisturbed_step(subject.timings[size]) for subject in subjects])

"""Do time and memory grow with the data and nothing faster, from 1,000 examples to all of SST-2?

The suite's own encoding, teacher caching, training (an epoch of KD1 from that cache) and evaluation, on the
generated SST-2 at four sizes, each in a fresh process behind a round on a few examples that does not count. The
models are so small that what is measured is what the suite does per example, not what a model computes. Seconds
are the CPU's. Memory is the resident set at its peak above what there was before the examples. What is kept of every
example may grow (texts and encoding, counted object by object; the cache, which is mapped, by its bytes on disk;
predictions), all else must stay: the peak is compared with the smaller size's plus what the further examples keep.

    python benchmarks/growth.py [--quick] [--repeats 1]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch
from measure import CPU, MB, Finding, Times, arguments, asked, fresh, keep, machine, table

from kdsuite.config import TrainingSettings, task_section
from kdsuite.evaluate.predict import EvaluationSet, predict
from kdsuite.extras.offline.models import tiny_llama
from kdsuite.extras.offline.tokenizers import byte_level_tokenizer
from kdsuite.methods.alignment import map_vocabulary
from kdsuite.methods.targets import TeacherTargets
from kdsuite.methods.terms import Distiller, Divergence, OnTarget
from kdsuite.runtime.device import choose, peak_memory_mb, reset_peak_memory
from kdsuite.store.files import folder_bytes
from kdsuite.tasks.encoding import ChatTokenizer
from kdsuite.tasks.example import Example, task_of
from kdsuite.teacher.cached import build_cache
from kdsuite.teacher.local import OutputSettings, ask
from kdsuite.train.loop import Material, train

SIZES, QUICK = (1_000, 4_000, 16_000, 67_349), (200, 400)  # the largest is all of SST-2
LEAST = 4_000  # with fewer, what happens once counts for much
FEW, BATCH, VOCABULARY = 128, 64, 1100
STEPS, LINEAR = ("encoding", "caching", "training", "evaluation"), 1.1
SETTINGS = task_section("sst2")
SST2 = task_of("sst2", SETTINGS)
KEPT = OutputSettings(top_k=64, dtype="float16", temperatures=(2.0,), layers=(), labels=2)
TRAINING = TrainingSettings(epochs=1, batch_size=BATCH, logging_steps=10)
TEMPERATURE = 2.0


@dataclass
class Costs:
    """Of so many examples: CPU seconds of each step, MB at its peak above what there was before, MB kept so far."""

    count: int
    seconds: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    before: float = field(default_factory=lambda: psutil.Process().memory_info().rss / MB)

    def of(self, step: str, work: Callable[[], Any], keeps: Callable[[Any], float]) -> Any:
        """What `work` returns, its costs noted; `keeps` says how many bytes of that stay."""
        times = Times()
        reset_peak_memory(CPU)
        with times.taken():
            result = work()
        self.seconds[step], self.peak[step] = times.cpu[0], peak_memory_mb(CPU) - self.before
        self.kept[step] = sum(list(self.kept.values())[-1:]) + keeps(result) / MB
        return result


def size_of(things: Sequence[object], known: Sequence[object] = ()) -> float:
    """Bytes of all objects in `things` but not in `known`, from the first few."""
    seen: set[int] = set()
    few = min(FEW, len(things))
    for thing in known[:few]:
        _bytes(thing, seen)
    return sum(_bytes(thing, seen) for thing in things[:few]) * len(things) / few


def _bytes(thing: object, seen: set[int]) -> int:
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    inside: list[object] = []
    if isinstance(thing, dict):
        inside = [*thing.keys(), *thing.values()]
    elif isinstance(thing, list | tuple):
        inside = list(thing)
    elif hasattr(thing, "__dict__"):
        inside = [vars(thing)]
    return sys.getsizeof(thing) + sum(_bytes(x, seen) for x in inside)


def examples_of(count: int) -> list[Example]:
    """Generated sentences, no two alike."""
    sizes = {"train_size": count, "dev_size": 1, "validation_size": 1}
    return task_of("sst2", SETTINGS.model_copy(update=sizes)).load("train")[:count]


class Growing:
    """Two tiny models with one tokenizer, and everything the suite does with examples."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.choice = choose("cpu", "float32", 1)
        texts = [message["content"] for e in examples_of(500) for message in SST2.messages(e)]
        self.chat = ChatTokenizer(byte_level_tokenizer(texts, VOCABULARY))
        self.teacher, self.student = (tiny_llama(self.chat.tokenizer, 16, 1, 2) for _ in range(2))

    def __call__(self, count: int) -> Costs:
        costs = Costs(count)
        with tempfile.TemporaryDirectory() as folder:
            self._go(costs, Path(folder))
        return costs

    def _go(self, costs: Costs, folder: Path) -> None:
        chat = self.chat
        examples = costs.of("loading", lambda: examples_of(costs.count), size_of)
        data = costs.of(
            "encoding", lambda: EvaluationSet.of(SST2, chat, examples), lambda data: size_of(data.encoded, examples)
        )
        cache = costs.of(
            "caching",
            lambda: build_cache(
                folder / "cache",
                {"outputs": {"temperatures": list(KEPT.temperatures)}},
                data.encoded,
                lambda some: ask(self.teacher, chat, some, KEPT),
                BATCH,
            ),
            lambda cache: folder_bytes(folder / "cache") + size_of([cache]),
        )
        targets = TeacherTargets(cache, map_vocabulary(chat, chat), TEMPERATURE, ())
        distiller = Distiller(
            self.student, len(chat.token_bytes), {"ce": OnTarget(0.5), "kd": Divergence(0.5, TEMPERATURE)}
        )
        done = costs.of(
            "training",
            lambda: train(distiller, Material(data.encoded, chat.pad_id, TRAINING, 42, targets), self.choice),
            lambda done: 0,
        )
        said = costs.of(
            "evaluation", lambda: predict(self.student, chat, data, BATCH), lambda said: size_of(said, examples)
        )
        assert done.examples == len(cache) == len(said) == costs.count


def costs_of(count: int) -> Costs:
    growing = Growing()
    growing(FEW)
    return growing(count)


def times_of(all_costs: Sequence[Costs]) -> str:
    """Milliseconds per example of each step, a row per size."""
    rows = [
        [f"{c.count:,}", *(f"{1e3 * s / c.count:.3f}" for s in c.seconds.values()), f"{sum(c.seconds.values()):.1f}"]
        for c in all_costs
    ]
    return table(("examples", *(f"{step} ms" for step in all_costs[0].seconds), "all, s"), rows)


def memory_of(all_costs: Sequence[Costs]) -> str:
    """MB at each step's peak, of them kept, a row per size."""
    rows = [[f"{c.count:,}", *(f"{c.peak[step]:.0f} ({c.kept[step]:.0f})" for step in c.peak)] for c in all_costs]
    return table(("examples", *(f"{step} MB (kept)" for step in all_costs[0].peak)), rows)


def findings(small: Sequence[Costs], large: Sequence[Costs], **target: float) -> list[Finding]:
    """Cost per example, and peak memory, at the large size against the small one."""
    found = []
    for step in STEPS:
        slow, fast = ([c.seconds[step] / c.count for c in costs] for costs in (large, small))
        peaks = [c.peak[step] for c in large]
        expected = [s.peak[step] + c.kept[step] - s.kept[step] for s, c in zip(small, large, strict=True)]
        sizes = f"{large[0].count:,} / {small[0].count:,} examples"
        found += [
            Finding.of_ratio(step, sizes, "CPU time per example", slow, fast, **target),
            Finding.of_ratio(step, sizes, "peak memory but for what is kept", peaks, expected, at_most=LINEAR),
        ]
    return found


def main() -> None:
    options = asked(arguments(__doc__, 1))
    sizes, repeats = QUICK if options.quick else SIZES, options.repeats
    costs = {size: [fresh(costs_of, size, context=get_context("fork")) for _ in range(repeats)] for size in sizes}
    print(f"{machine()}; batches of {BATCH}; the last of {repeats} runs, ratios are medians\n")
    print(times_of([costs[size][-1] for size in sizes]) + "\n")
    print(memory_of([costs[size][-1] for size in sizes]))
    target = {} if options.quick else {"at_most": LINEAR}
    small = QUICK[0] if options.quick else LEAST
    keep(findings(costs[small], costs[sizes[-1]], **target), options.findings)


if __name__ == "__main__":
    main()

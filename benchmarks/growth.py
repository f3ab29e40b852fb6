"""Do time and memory grow with the data and nothing faster, from 1,000 examples to all of SST-2?

The suite's own encoding, teacher caching, training (an epoch of KD1 from that cache) and evaluation, on the
generated SST-2 at four sizes, each in a fresh process behind a round on a few examples that does not count. The
models are so small that what is measured is what the suite does per example, not what a model computes. Seconds
are the CPU's. Memory is the resident set: what a step leaves behind (examples, results, pages of the mapped
cache) must grow with the examples; what it takes at its peak above that must not.

    python benchmarks/growth.py [--quick] [--repeats 1]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from measure import CPU, MB, Finding, Times, arguments, fresh, keep, machine, table

from kdsuite.config import Sst2Settings, TrainingSettings
from kdsuite.distill.alignment import map_vocabulary
from kdsuite.distill.methods import METHODS
from kdsuite.distill.objective import Distiller, Objective
from kdsuite.distill.targets import TeacherTargets
from kdsuite.distill.trainer import train
from kdsuite.evaluation.predict import EvaluationSet, predict
from kdsuite.models.offline import tiny_llama
from kdsuite.models.tiny_tokenizers import byte_level_tokenizer
from kdsuite.runtime.device import choose, peak_memory_mb, reset_peak_memory
from kdsuite.tasks.encoding import ChatTokenizer
from kdsuite.tasks.example import Example
from kdsuite.tasks.registry import TASKS
from kdsuite.teacher.cache import build_cache
from kdsuite.teacher.inference import OutputSettings, ask

SIZES, QUICK = (1_000, 4_000, 16_000, 67_349), (200, 400)  # the largest is all of SST-2
FEW, BATCH, VOCABULARY = 128, 64, 1100
SST2, SETTINGS = TASKS["sst2"], Sst2Settings()
KEPT = OutputSettings(top_k=64, dtype="float16", temperatures=(2.0,), layers=(), labels=2)
KD1 = Objective(METHODS["KD1"], alpha=0.5, temperature=2.0)


@dataclass
class Costs:
    """CPU seconds of each step, and MB: left behind at its end, and at its peak above its end."""

    seconds: dict[str, float] = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)

    def of(self, step: str, work: Callable[[], Any]) -> Any:
        """What `work` returns, its costs noted."""
        times, before = Times(), resident_mb()
        reset_peak_memory(CPU)
        with times.taken():
            result = work()
        after = resident_mb()
        self.seconds[step], self.left[step] = times.cpu[0], after - before
        self.peak[step] = peak_memory_mb(CPU) - max(before, after)
        return result


def resident_mb() -> float:
    return psutil.Process().memory_info().rss / MB


def examples_of(count: int) -> list[Example]:
    """Generated sentences, no two alike."""
    sizes = {"train_size": count, "dev_size": 1, "validation_size": 1}
    return SST2.load(SETTINGS.model_copy(update=sizes), "train")[:count]


class Growing:
    """Two tiny models with one tokenizer, and everything the suite does with examples."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.choice = choose("cpu", "float32", 1)
        texts = [message["content"] for e in examples_of(500) for message in SST2.messages(e)]
        self.chat = ChatTokenizer(byte_level_tokenizer(texts, VOCABULARY))
        self.teacher, self.student = (tiny_llama(self.chat.tokenizer, 16, 1, 2) for _ in range(2))

    def __call__(self, count: int) -> Costs:
        costs = Costs()
        with tempfile.TemporaryDirectory() as folder:
            self._steps(count, Path(folder), costs)
        return costs

    def _steps(self, count: int, folder: Path, costs: Costs) -> None:
        chat = self.chat
        settings = TrainingSettings(epochs=1, batch_size=BATCH, logging_steps=10)
        key = {"outputs": {"temperatures": list(KEPT.temperatures)}}
        examples = costs.of("loading", lambda: examples_of(count))
        data = costs.of("encoding", lambda: EvaluationSet.of(SST2, chat, examples, SETTINGS))
        cache = costs.of(
            "caching",
            lambda: build_cache(
                folder / "cache", key, data.encoded, lambda some: ask(self.teacher, chat, some, KEPT), BATCH
            ),
        )
        distiller = Distiller(self.student, len(chat.token_bytes), KD1)
        targets = TeacherTargets(cache, map_vocabulary(chat, chat), KD1.temperature, ())
        done = costs.of(
            "training",
            lambda: train(
                distiller, data.encoded, chat.pad_id, settings, self.choice, 42, folder, teacher=targets
            ),
        )
        said = costs.of("evaluation", lambda: predict(self.student, chat, data, BATCH))
        assert done.examples == len(cache) == len(said) == count


def costs_of(count: int) -> Costs:
    growing = Growing()
    growing(FEW)
    return growing(count)


def main() -> None:
    options = arguments(__doc__, 1).parse_args()
    torch.set_num_threads(1)
    sizes = QUICK if options.quick else SIZES
    found = {size: [fresh(costs_of, size, start="fork") for _ in range(options.repeats)] for size in sizes}
    for size in sizes:
        for c in found[size]:
            print(
                size,
                {k: round(1e6 * v / size, 1) for k, v in c.seconds.items()},
                {k: round(v, 1) for k, v in c.left.items()},
                {k: round(v, 1) for k, v in c.peak.items()},
                flush=True,
            )


if __name__ == "__main__":
    main()

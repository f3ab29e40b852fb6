"""A model on a split, as every stage evaluates it: its progress is told, what it says is kept as it comes."""

from __future__ import annotations

from typing import Any

from kdsuite.evaluate.predict import EvaluationSet, Prediction, predict
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.models import precision
from kdsuite.runtime.memory import BatchSize
from kdsuite.store.parts import Parts
from kdsuite.tasks.encoding import ChatTokenizer


def evaluated(
    bench: Bench, label: str, model: Any, chat: ChatTokenizer, data: EvaluationSet, batch_size: int, parts: Parts
) -> list[Prediction]:
    """A prediction for every example, those apart whose answers are among `parts`; OutOfMemory where 1 is too much."""
    unit = "examples" if data.items == len(data) else "windows"

    def attempt(size: int) -> list[Prediction]:
        with precision(bench):
            return predict(model, chat, data, size, work.advance, parts)

    with bench.progress.work(label, data.items, unit, done=len(parts.done)) as work:
        return BatchSize(batch_size).fit(attempt, bench.choice.device, bench.progress.say)

"""A model on a split, as every stage evaluates it: its progress is told, what it says is kept as it comes."""

from __future__ import annotations

from typing import Any

from kdsuite.evaluate.predict import EvaluationSet, Prediction, predict
from kdsuite.jobs.workshop import Workshop
from kdsuite.runtime.memory import halving
from kdsuite.store.parts import Parts
from kdsuite.tasks.encoding import ChatTokenizer


def evaluated(
    shop: Workshop,
    label: str,
    model: Any,
    chat: ChatTokenizer,
    data: EvaluationSet,
    batch_size: int,
    parts: Parts,
) -> list[Prediction]:
    """A prediction for every example, those apart whose answers are among `parts`; OutOfMemory where 1 is too much."""
    unit = "examples" if data.items == len(data) else "windows"

    def attempt(size: int) -> list[Prediction]:
        with shop.precision():
            return predict(model, chat, data, size, work.advance, parts)

    with shop.progress.work(label, data.items, unit, done=len(parts.done)) as work:
        return halving(batch_size, attempt, shop.choice.device, shop.progress.say)


def numerics(shop: Workshop) -> list[str]:
    """What of this machine a prediction depends on."""
    return [str(shop.choice.device), shop.choice.dtype_name]

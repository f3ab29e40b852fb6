"""The task's own measure of speed: seconds per answered example, from its text to the finished answer.

Everything that a user waits for counts: the prompt is rendered and tokenized, both label words are scored
(SST-2) or an answer is generated until it stops (SQuAD), then decoded, cleaned and chosen. One example at a
time, as in an application that answers a person. Unlike the decoding time it depends on what a model says:
one that comes to the point is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdsuite.benchmark.latency import now, uncollected
from kdsuite.config import TaskSettings
from kdsuite.evaluate.predict import EvaluationSet, predict
from kdsuite.tasks.encoding import ChatTokenizer
from kdsuite.tasks.example import Example, Task


def answer_seconds(
    model: Any, chat: ChatTokenizer, task: Task, examples: Sequence[Example], settings: TaskSettings
) -> list[float]:
    """Seconds for each example, alone in its batch. RunError if the model's scores are not finite."""
    seconds = []
    for example in examples:
        with uncollected():
            started = now(model.device)
            predict(model, chat, EvaluationSet.of(task, chat, [example], settings), batch_size=1)
            seconds.append(now(model.device) - started)
    return seconds


def spread_out(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` examples at equal distances: neighbours are often of one article."""
    count = min(count, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]

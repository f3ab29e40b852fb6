"""Predictions of a model on a split: label words are scored, answers are generated; each with its scores.

The same functions evaluate the zero-shot student, the teacher and every method, on the same ids.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kdsuite.config import TaskSettings
from kdsuite.errors import RunError
from kdsuite.models.forward import class_log_probs, collate_for, supervised_logits
from kdsuite.models.generation import generate
from kdsuite.runtime.device import bucket
from kdsuite.runtime.files import atomic_write_text
from kdsuite.runtime.garbage import garbage_kept
from kdsuite.tasks.batching import batches_by_length
from kdsuite.tasks.encoding import ChatTokenizer, Encoded, encode, encode_prompts
from kdsuite.tasks.example import Example, Task
from kdsuite.teacher.cleaning import clean_answer

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Prediction:
    """What a model said about one example. `label_logprobs` are log-probabilities of whole label sequences."""

    id: str
    prediction: str
    references: tuple[str, ...]
    scores: dict[str, float]
    label_logprobs: dict[str, float] | None = None
    raw: str | None = None
    confidence: float | None = None  # mean log-probability per generated token

    def to_json(self) -> str:
        return json.dumps({k: v for k, v in asdict(self).items() if v is not None}, ensure_ascii=False)


@dataclass(frozen=True)
class EvaluationSet:
    """A split, encoded once for one tokenizer and used for every model that has it."""

    task: Task
    settings: TaskSettings
    examples: Sequence[Example]
    encoded: Sequence[Encoded] = ()  # for tasks with labels
    prompts: Sequence[Sequence[list[int]]] = ()  # for the others: windows per example

    @classmethod
    def of(
        cls, task: Task, chat: ChatTokenizer, examples: Sequence[Example], settings: TaskSettings
    ) -> EvaluationSet:
        if task.labels:
            return cls(task, settings, examples, encoded=encode(task, chat, examples, settings))
        return cls(task, settings, examples, prompts=encode_prompts(task, chat, examples, settings))

    def __len__(self) -> int:
        return len(self.examples)


def predict(
    model: Any,
    chat: ChatTokenizer,
    data: EvaluationSet,
    batch_size: int,
    advance: Advance = lambda count: None,
) -> list[Prediction]:
    """A prediction for every example, in the split's order. RunError if the model's scores are not finite."""
    model.eval()
    if data.task.labels:
        return _classify(model, chat, data, batch_size, advance)
    return _answer(model, chat, data, batch_size, advance)


def metrics(task: Task, predictions: Sequence[Prediction]) -> dict[str, float]:
    """The task's metrics in percent, over all predictions."""
    return task.aggregate([p.prediction for p in predictions], [p.references for p in predictions])


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    atomic_write_text(path, "".join(p.to_json() + "\n" for p in predictions))


@torch.inference_mode()
def label_scores(
    model: Any,
    chat: ChatTokenizer,
    encoded: Sequence[Encoded],
    labels: int,
    batch_size: int,
    advance: Advance,
) -> torch.Tensor:
    """Log-probability of every label word with its end of turn, [examples, labels], on the CPU."""
    scores = torch.full((len(encoded), labels), math.nan)
    for indices in batches_by_length([len(e) for e in encoded], batch_size):
        batch = collate_for(model, [encoded[i] for i in indices], chat.pad_id, bucket(model.device)).to(
            model.device
        )
        logits, _ = supervised_logits(model, batch, batch.distinct, len(chat.token_bytes))
        scores[indices] = class_log_probs(logits, batch, labels).cpu()
        advance(len(indices))
    if not scores.isfinite().all():
        raise RunError("the model's label scores are not finite")
    return scores


def _classify(
    model: Any, chat: ChatTokenizer, data: EvaluationSet, batch_size: int, advance: Advance
) -> list[Prediction]:
    labels = data.task.labels or ()
    scores = label_scores(model, chat, data.encoded, len(labels), batch_size, advance).tolist()
    with garbage_kept():
        return [_labelled(data.task, e, labels, row) for e, row in zip(data.examples, scores, strict=True)]


def _labelled(task: Task, example: Example, labels: Sequence[str], scores: list[float]) -> Prediction:
    best = str(labels[scores.index(max(scores))])
    graded = task.score(best, example.references)
    return Prediction(example.id, best, example.references, graded, dict(zip(labels, scores, strict=True)))


def _answer(
    model: Any, chat: ChatTokenizer, data: EvaluationSet, batch_size: int, advance: Advance
) -> list[Prediction]:
    """Generate from every window of every example; of several windows the most confident answer is taken."""
    flat = [(at, window) for at, windows in enumerate(data.prompts) for window in windows]
    answers = generate(
        model, chat, [window for _, window in flat], data.settings.max_new_tokens, batch_size, advance
    )
    best: dict[int, tuple[str, float]] = {}
    for (at, _), (text, confidence) in zip(flat, answers, strict=True):
        if at not in best or confidence > best[at][1]:
            best[at] = text, confidence
    predictions = []
    for at, example in enumerate(data.examples):
        raw, confidence = best[at]
        answer = clean_answer(raw, example.inputs["context"], example.inputs["question"])
        graded = data.task.score(answer, example.references)
        predictions.append(
            Prediction(example.id, answer, example.references, graded, raw=raw, confidence=confidence)
        )
    return predictions

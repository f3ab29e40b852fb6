"""Predictions of a model on a split: label words are scored, answers are generated; each with its scores.

The same functions evaluate the zero-shot student, the teacher and every method, on the same ids.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from kdsuite.config import TaskSettings
from kdsuite.errors import RunError
from kdsuite.models.forward import class_log_probs, collate_for, supervised_logits
from kdsuite.models.generation import generate, prompt_batches
from kdsuite.runtime.device import bucket
from kdsuite.runtime.process import garbage_kept
from kdsuite.store.files import atomic_write_text, fingerprint
from kdsuite.store.parts import Parts
from kdsuite.tasks.batching import batches_by_length
from kdsuite.tasks.encoding import ChatTokenizer, Encoded, encode, encode_prompts
from kdsuite.tasks.example import Example, Task

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

    @classmethod
    def joined(cls, pieces: Sequence[EvaluationSet]) -> EvaluationSet:
        """One of several, of one task, end to end."""
        examples = [example for piece in pieces for example in piece.examples]
        encoded = [e for piece in pieces for e in piece.encoded]
        prompts = [windows for piece in pieces for windows in piece.prompts]
        return cls(pieces[0].task, pieces[0].settings, examples, encoded, prompts)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def items(self) -> int:
        """What is done one by one: examples, or the windows of those whose answers are generated."""
        return len(self.encoded) or sum(len(windows) for windows in self.prompts)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies what a model reads."""
        read = [[e.input_ids, e.targets] for e in self.encoded] or self.prompts
        return fingerprint([[e.id for e in self.examples], read, self.settings.max_new_tokens])


def predict(
    model: Any,
    chat: ChatTokenizer,
    data: EvaluationSet,
    batch_size: int,
    advance: Advance = lambda count: None,
    parts: Parts | None = None,
) -> list[Prediction]:
    """A prediction for every example, in the split's order. RunError if the model's scores are not finite.

    What `parts` hold already is not asked again; `advance` is told how many of `data.items` came new.
    """
    model.eval()
    answered = _classify if data.task.labels else _answer
    return answered(model, chat, data, batch_size, advance, parts or Parts())


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
    advance: Advance = lambda count: None,
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
    model: Any, chat: ChatTokenizer, data: EvaluationSet, batch_size: int, advance: Advance, parts: Parts
) -> list[Prediction]:
    labels = data.task.labels or ()

    def score(batch: Sequence[int]) -> list[list[float]]:
        return label_scores(model, chat, [data.encoded[i] for i in batch], len(labels), len(batch)).tolist()

    batches = batches_by_length([len(e) for e in data.encoded], batch_size)
    scores = parts.work(batches, score, advance)
    with garbage_kept():
        return [_labelled(data.task, e, labels, scores[at]) for at, e in enumerate(data.examples)]


def _labelled(task: Task, example: Example, labels: Sequence[str], scores: list[float]) -> Prediction:
    best = str(labels[scores.index(max(scores))])
    graded = task.score(best, example.references)
    return Prediction(example.id, best, example.references, graded, dict(zip(labels, scores, strict=True)))


def _answer(
    model: Any, chat: ChatTokenizer, data: EvaluationSet, batch_size: int, advance: Advance, parts: Parts
) -> list[Prediction]:
    """Generate from every window of every example; of several windows the most confident answer is taken."""
    flat = [(at, window) for at, windows in enumerate(data.prompts) for window in windows]
    prompts, new_tokens = [window for _, window in flat], data.settings.max_new_tokens

    def answer(batch: Sequence[int]) -> list[tuple[str, float]]:
        return generate(model, chat, [prompts[i] for i in batch], new_tokens, len(batch))

    answers = parts.work(prompt_batches(model, prompts, new_tokens, batch_size), answer, advance)
    best: dict[int, tuple[str, float]] = {}
    for number, (at, _) in enumerate(flat):
        text, confidence = answers[number]
        if at not in best or confidence > best[at][1]:
            best[at] = text, confidence
    predictions = []
    for at, example in enumerate(data.examples):
        raw, confidence = best[at]
        cleaned = data.task.clean(raw, example)
        graded = data.task.score(cleaned, example.references)
        predictions.append(
            Prediction(example.id, cleaned, example.references, graded, raw=raw, confidence=confidence)
        )
    return predictions

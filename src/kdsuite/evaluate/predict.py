"""Predictions of a model on a split: label words are scored, answers are generated; each with its scores.

The same functions evaluate the zero-shot student, the teacher and every method, on the same ids.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from operator import itemgetter
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


@dataclass(frozen=True)
class EvaluationSet:
    """A split, encoded once for one tokenizer and used for every model that has it."""

    task: Task
    settings: TaskSettings
    examples: Sequence[Example]
    encoded: Sequence[Encoded] = ()  # for tasks with labels
    prompts: Sequence[Sequence[list[int]]] = ()  # for the others: windows per example

    @classmethod
    def of(cls, task: Task, chat: ChatTokenizer, examples: Sequence[Example], settings: TaskSettings) -> EvaluationSet:
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
    def counts(self) -> list[int]:
        """How often each example is asked: once, or once per window where answers are generated."""
        return [1] * len(self.encoded) or [len(windows) for windows in self.prompts]

    @property
    def items(self) -> int:
        """What is done one by one: examples, or windows."""
        return sum(self.counts)

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
    advance: Callable[[int], None] = lambda count: None,
    parts: Parts | None = None,
) -> list[Prediction]:
    """A prediction for every example, in the split's order. RunError if the model's scores are not finite.

    What `parts` hold already is not asked again; `advance` is told how many of `data.items` came new.
    """
    model.eval()
    labels, new_tokens = data.task.labels, data.settings.max_new_tokens
    prompts = [window for windows in data.prompts for window in windows]
    if labels:
        batches = batches_by_length([len(e) for e in data.encoded], batch_size)
    else:
        batches = prompt_batches(model, prompts, new_tokens, batch_size)

    def ask(batch: Sequence[int]) -> Sequence[Any]:
        if not labels:
            return generate(model, chat, [prompts[i] for i in batch], new_tokens, len(batch))
        encoded = [data.encoded[i] for i in batch]
        return label_scores(model, chat, encoded, len(labels), len(batch)).tolist()

    said = (parts or Parts()).work(batches, ask, advance)
    items = (said[i] for i in range(data.items))
    with garbage_kept():
        return [
            _prediction(data.task, example, list(islice(items, count)))
            for example, count in zip(data.examples, data.counts, strict=True)
        ]


def _prediction(task: Task, example: Example, said: list[Any]) -> Prediction:
    """Of the scores of the labels the best; of what was said to several windows the most confident."""
    if task.labels:
        scores = dict(zip(task.labels, said[0], strict=True))
        text = max(task.labels, key=scores.__getitem__)
        found: dict[str, Any] = {"label_logprobs": scores}
    else:
        raw, confidence = max(said, key=itemgetter(1))
        text, found = task.clean(raw, example), {"raw": raw, "confidence": confidence}
    graded = task.score(text, example.references)
    return Prediction(example.id, text, example.references, graded, **found)


def metrics(task: Task, predictions: Sequence[Prediction]) -> dict[str, float]:
    """The task's metrics in percent, over all predictions."""
    return task.aggregate([p.prediction for p in predictions], [p.references for p in predictions])


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    rows = [{k: v for k, v in asdict(p).items() if v is not None} for p in predictions]
    atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@torch.inference_mode()
def label_scores(
    model: Any,
    chat: ChatTokenizer,
    encoded: Sequence[Encoded],
    labels: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda count: None,
) -> torch.Tensor:
    """Log-probability of every label word with its end of turn, [examples, labels], on the CPU."""
    scores = torch.full((len(encoded), labels), math.nan)
    for indices in batches_by_length([len(e) for e in encoded], batch_size):
        batch = collate_for(model, [encoded[i] for i in indices], chat.pad_id, bucket(model.device))
        batch = batch.to(model.device)
        logits, _ = supervised_logits(model, batch, batch.distinct, len(chat.token_bytes))
        scores[indices] = class_log_probs(logits, batch, labels).cpu()
        advance(len(indices))
    if not scores.isfinite().all():
        raise RunError("the model's label scores are not finite")
    return scores

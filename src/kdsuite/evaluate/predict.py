"""Predictions of a model on a split: label words are scored, answers are generated; each with its scores.

The same functions evaluate the zero-shot student, the teacher and every method, on the same ids. A generated answer
is scored as it came; what cleaning makes of it is scored beside, under names that begin with `cleaned_`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from kdsuite.errors import RunError
from kdsuite.models.beginning import read_once
from kdsuite.models.forward import class_log_probs, collate_for, supervised_logits, token_log_probs
from kdsuite.models.generation import generate, prompt_batches
from kdsuite.runtime.device import bucket
from kdsuite.runtime.process import garbage_kept
from kdsuite.runtime.ranks import together
from kdsuite.store.files import atomic_write_rows, fingerprint
from kdsuite.store.parts import Parts
from kdsuite.tasks.batching import batches_by_length
from kdsuite.tasks.encoding import ChatTokenizer, Encoded, encode, encode_prompts
from kdsuite.tasks.example import Example, Task
from kdsuite.teacher.http import HttpTeacher


@dataclass(frozen=True)
class Prediction:
    """What a model said about one example, with scores of 0–1.

    `prediction` is a label, or the answer as it came but for white space around it, and `cleaned` what the task's
    `clean` makes of that. `label_logprobs` are log-probabilities of whole label sequences (nats).
    """

    id: str
    prediction: str
    references: tuple[str, ...]
    scores: dict[str, float]
    label_logprobs: dict[str, float] | None = None
    cleaned: str | None = None
    confidence: float | None = None  # mean log-probability of the answer's tokens, nats: see `generate`


@dataclass(frozen=True)
class EvaluationSet:
    """A split, encoded once for one tokenizer and used for every model that has it."""

    task: Task
    examples: Sequence[Example]
    encoded: Sequence[Encoded] = ()  # for tasks with labels
    prompts: Sequence[Sequence[list[int]]] = ()  # for the others: windows per example

    @classmethod
    def of(cls, task: Task, chat: ChatTokenizer, examples: Sequence[Example]) -> EvaluationSet:
        if task.labels:
            return cls(task, examples, encoded=encode(task, chat, examples))
        return cls(task, examples, prompts=encode_prompts(task, chat, examples))

    @classmethod
    def joined(cls, pieces: Sequence[EvaluationSet]) -> EvaluationSet:
        """One of several, of one task, end to end."""
        examples = [example for piece in pieces for example in piece.examples]
        encoded = [e for piece in pieces for e in piece.encoded]
        prompts = [windows for piece in pieces for windows in piece.prompts]
        return cls(pieces[0].task, examples, encoded, prompts)

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
        return fingerprint([[e.id for e in self.examples], read, self.task.settings.max_new_tokens])


@dataclass(frozen=True)
class Loaded:
    """A model that is loaded here, and what `HttpTeacher` does with one that is not: generate, and score labels.

    `reading` examples: inside, no others are scored.
    """

    model: Any
    chat: ChatTokenizer

    def prompt_batches(self, prompts: Sequence[list[int]], new_tokens: int, size: int) -> list[list[int]]:
        return prompt_batches(self.model, prompts, new_tokens, size)

    def generate(self, prompts: Sequence[list[int]], new_tokens: int) -> list[tuple[str, float]]:
        return generate(self.model, self.chat, prompts, new_tokens, len(prompts))

    def reading(self, encoded: Sequence[Encoded]) -> AbstractContextManager[None]:
        return read_once(self.model, encoded)

    def label_scores(self, encoded: Sequence[Encoded], labels: int) -> list[list[float]]:
        return label_scores(self.model, self.chat, encoded, labels, len(encoded)).tolist()


def reader_of(model: Any, chat: ChatTokenizer) -> Loaded | HttpTeacher:
    """Who reads prompts and answers: a loaded model, or a teacher behind a URL itself."""
    return model if isinstance(model, HttpTeacher) else Loaded(model.eval(), chat)


def predict(
    model: Any, chat: ChatTokenizer, data: EvaluationSet, batch_size: int, parts: Parts | None = None
) -> list[Prediction]:
    """A prediction for every example, in the split's order, from the model's `replies`."""
    return scored(data, replies(model, chat, data, batch_size, parts=parts))


def replies(
    model: Any,
    chat: ChatTokenizer,
    data: EvaluationSet,
    batch_size: int,
    advance: Callable[[int], None] = lambda count: None,
    parts: Parts | None = None,
) -> list[list[Any]]:
    """What a model says about each example, in the split's order: the scores of its labels, as the only entry; or an
    answer with its confidence for each of its windows. RunError if the model's scores are not finite.

    `model` is one that is loaded here, or a teacher behind a URL.
    What `parts` hold already is not asked again; `advance` is told how many of `data.items` came new.
    """
    reader = reader_of(model, chat)
    labels, new_tokens = data.task.labels, data.task.settings.max_new_tokens
    prompts = [window for windows in data.prompts for window in windows]
    if labels:
        batches = batches_by_length([len(e) for e in data.encoded], batch_size)
    else:
        batches = reader.prompt_batches(prompts, new_tokens, batch_size)

    def ask(batch: Sequence[int]) -> Sequence[Any]:
        if not labels:
            return reader.generate([prompts[i] for i in batch], new_tokens)
        return reader.label_scores([data.encoded[i] for i in batch], len(labels))

    with reader.reading(data.encoded):
        said = (parts or Parts()).work(batches, ask, advance)
    items = (said[i] for i in range(data.items))
    return [list(islice(items, count)) for count in data.counts]


def scored(data: EvaluationSet, said: Sequence[list[Any]]) -> list[Prediction]:
    """The predictions that a model's replies to every example are, with their scores."""
    with garbage_kept():
        return [_prediction(data.task, example, one) for example, one in zip(data.examples, said, strict=True)]


def _prediction(task: Task, example: Example, said: list[Any]) -> Prediction:
    """The likeliest label; or, of the answers to an example's windows, the one whose tokens are likeliest on average
    (the greatest `confidence`, of equal ones the first window's), whatever it says and however long it is.
    """
    gold = example.references
    if task.labels:
        logprobs = dict(zip(task.labels, said[0], strict=True))
        label = max(task.labels, key=logprobs.__getitem__)
        return Prediction(example.id, label, gold, task.score(label, gold), label_logprobs=logprobs)
    raw, confidence = max(said, key=itemgetter(1))
    text = raw.strip()
    scores = task.score(text, gold)
    if type(task).clean is Task.clean:  # there is nothing to be cleaned of
        return Prediction(example.id, text, gold, scores, confidence=confidence)
    cleaned = task.clean(raw, example)
    beside = _beside(scores, task.score(cleaned, gold))
    return Prediction(example.id, text, gold, beside, cleaned=cleaned, confidence=confidence)


def metrics(task: Task, predictions: Sequence[Prediction]) -> dict[str, float]:
    """The task's metrics in percent, over all predictions; those of cleaned answers too where answers are generated."""
    gold, cleaned = [p.references for p in predictions], [p.cleaned for p in predictions if p.cleaned is not None]
    found = task.aggregate([p.prediction for p in predictions], gold)
    return _beside(found, task.aggregate(cleaned, gold)) if cleaned else found


def _beside(scores: dict[str, float], of_cleaned: dict[str, float]) -> dict[str, float]:
    return scores | {f"cleaned_{name}": value for name, value in of_cleaned.items() if name != "n"}


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    rows = [{k: v for k, v in asdict(p).items() if v is not None} for p in predictions]
    atomic_write_rows(path, rows)


@together
@torch.inference_mode()
def label_scores(
    model: Any, chat: ChatTokenizer, encoded: Sequence[Encoded], labels: int, batch_size: int
) -> torch.Tensor:
    """Log-probability of every label word with its end of turn, [examples, labels], on the CPU."""
    scores = torch.full((len(encoded), labels), math.nan)
    for indices in batches_by_length([len(e) for e in encoded], batch_size):
        batch = collate_for(model, [encoded[i] for i in indices], chat.pad_id, bucket(model.device))
        batch = batch.to(model.device)
        logits, _ = supervised_logits(model, batch, batch.distinct, len(chat.token_bytes))
        scores[indices] = class_log_probs(token_log_probs(logits, batch), batch, labels).cpu()
    if not scores.isfinite().all():
        raise RunError("the model's label scores are not finite")
    return scores

"""A teacher behind a URL: records and answers as a model that is loaded here would give them.

A server tells the k likeliest tokens at T = 1, never the logits. At T = 1 that is all that is needed: the rest of the
probability is one bucket. At another temperature the normaliser needs each token of the tail, so the tail is taken to
fall as a power of the rank from the last kept token on, p(r) = p(k)·(r / k)^−s, with the s that gives it the
probability that it has (`normalisers`; docs/teachers.md has its error).
"""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kdsuite.errors import ModelError, RunError
from kdsuite.models.forward import LOG_NOTHING
from kdsuite.models.generation import STOP
from kdsuite.store.files import fingerprint
from kdsuite.tasks.encoding import ChatTokenizer, Encoded
from kdsuite.teacher.base import Record, Teacher
from kdsuite.teacher.client import ServerError
from kdsuite.teacher.dialects import Answer, Found, Scores, Server
from kdsuite.teacher.local import OutputSettings

Item = TypeVar("Item")
Given = TypeVar("Given")


@dataclass
class Journal:
    """What was answered so far, a line each, by the fingerprint of the question: nothing is asked twice.

    Without a `path` nothing is remembered. A line that a killed process left half written is as good as none.
    """

    path: Path | None = None
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    @cached_property
    def _known(self) -> dict[str, Any]:
        known: dict[str, Any] = {}
        if self.path and self.path.exists():
            for line in self.path.read_bytes().split(b"\n"):
                try:
                    key, said = json.loads(line)
                except (ValueError, TypeError):
                    continue
                known[key] = said
        return known

    def get(self, question: Any, ask: Callable[[], Any]) -> Any:
        """The answer that is known, else the one that `ask` gets, JSON-ready."""
        if self.path is None:
            return ask()
        key = fingerprint(question)
        with self._lock:
            if key in self._known:
                return self._known[key]
        said = ask()
        with self._lock:
            self._known[key] = said
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(b"\n" + json.dumps([key, said]).encode())
        return said

    def clear(self) -> None:
        """All that is answered is kept elsewhere now."""
        if self.path:
            self.path.unlink(missing_ok=True)
        self.__dict__.pop("_known", None)


@dataclass(frozen=True, eq=False)
class HttpTeacher(Teacher):
    """A served model, asked for what `keep` says by `concurrency` requests at once; its answers are of at most
    `max_new_tokens`. `known` as of a local teacher; `server` makes the connection when something is to be asked.

    RunError for what goes wrong, and where the tokenizer is not the one that the server has.
    """

    connect: Callable[[], Server]
    found: Found
    concurrency: int
    chat: ChatTokenizer
    keep: OutputSettings = field(default_factory=OutputSettings)
    max_new_tokens: int = 0
    known: dict[str, Encoded] = field(default_factory=dict)
    journal: Journal = field(default_factory=Journal)

    @property
    def offers(self) -> frozenset[str]:
        return frozenset(self.found.offers)

    @property
    def temperatures(self) -> tuple[float, ...]:
        return (1.0, *self.keep.temperatures) if self.keep.top_k else ()

    def outputs(self, examples: Sequence[Encoded]) -> list[Record]:
        return self.score([self.known[e.id] for e in examples] if self.known else examples)

    def score(self, sequences: Sequence[Encoded]) -> list[Record]:
        self._needs("distributions")
        return self._all(self._record, sequences)

    def answers(self, examples: Sequence[Encoded]) -> list[tuple[str, float]]:
        said = self.generate([e.prompt for e in examples], self.max_new_tokens)
        return [(text, float(np.exp(confidence))) for text, confidence in said]

    def generate(self, prompts: Sequence[list[int]], new_tokens: int) -> list[tuple[str, float]]:
        """As `models.generation.generate`; of a server that tells no log-probabilities these are as low as can be."""
        self._needs("answers")
        return [said[:2] for said in self._all(lambda prompt: self._answer(prompt, new_tokens), prompts)]

    def rationales(self, prompts: Sequence[list[int]]) -> list[tuple[str, bool]]:
        self._needs("answers")
        said = self._all(lambda prompt: self._answer(prompt, self.max_new_tokens), prompts)
        return [(text, whole) for text, _, whole in said]

    def reading(self, examples: Sequence[Encoded]) -> AbstractContextManager[None]:
        """What prompts begin with alike is the server's to keep."""
        return nullcontext()

    def label_scores(self, encoded: Sequence[Encoded], labels: int) -> list[list[float]]:
        """As `evaluate.predict.label_scores`: of every label with its end of turn, [examples][labels]."""
        self._needs("class_scores")
        return self._all(lambda example: self._labels(example, labels), encoded)

    def _needs(self, offer: str) -> None:
        if offer not in self.offers:
            raise self._lacks(offer.replace("_", " "))

    def _all(self, ask: Callable[[Given], Item], items: Sequence[Given]) -> list[Item]:
        """What `ask` says of each, several at once. After an error nothing new is asked; what came is remembered."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(ask, item) for item in items]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                with suppress(ModelError):  # where no connection is made, there is none to end
                    stopped = self.connect().client.stopped
                    stopped.set()
                    pool.shutdown()
                    stopped.clear()
                raise

    def _record(self, example: Encoded) -> Record:
        k = min(self.keep.top_k, len(self.chat.token_bytes))
        told = self._scored(example, example.gold, k)
        record = record_of(example, told.ids, told.logprobs, len(self.chat.token_bytes), self.keep)
        if self.keep.labels:
            record["class_scores"] = np.array(self._labels(example, self.keep.labels), dtype=np.float32)
        return record

    def _labels(self, example: Encoded, labels: int) -> list[float]:
        k = max(min(self.keep.top_k, len(self.chat.token_bytes)), 1)
        return [float(np.sum(self._scored(example, choice, k).own)) for choice in range(labels)]

    def _scored(self, example: Encoded, choice: int, k: int) -> Scores:
        """The server's word on one continuation of an example's prompt, checked against the tokenizer."""
        prompt = example.prompt
        targets = [t for t, c in zip(example.targets, example.choices, strict=True) if c == choice]
        ids = [*prompt, *targets]

        def ask() -> dict[str, Any]:
            told = self.connect().score(ids, len(prompt), k)
            self._refuse_other_tokens(told)
            return {"own": told.own, "ids": told.ids, "logprobs": told.logprobs}

        return Scores(**self.journal.get([str(self.found), "score", ids, len(prompt), k], ask))

    def _answer(self, prompt: list[int], new_tokens: int) -> tuple[str, float, bool]:
        asked: Any = prompt
        if self.chat.asked is not None:
            asked = self.chat.asked.get(tuple(prompt))
            if asked is None:  # the answer's first token reaches into it
                raise RunError("the tokenizer joins answer and prompt; take another one for models.teacher.tokenizer")

        def ask() -> list[Any]:
            server = self.connect()
            said = server.answer(asked, new_tokens, sorted(self.chat.final_ids))
            logprobs = [None if value is None else server.log(value) for value in said.logprobs]
            return [said.ids, said.text, logprobs, said.cut]

        said = Answer(*self.journal.get([str(self.found), "answer", asked, new_tokens], ask))
        text, count = said.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), len(said.logprobs) or 1
        if said.ids is not None:
            if any(not 0 <= id < len(self.chat.token_bytes) for id in said.ids):
                raise self._does_not_fit(f"it wrote token {max(said.ids)}")
            kept = self.chat.cut(said.ids)
            if STOP.search(self.chat.decode(kept)):  # not all servers stop there
                kept = kept[: next(n for n in range(len(kept) + 1) if STOP.search(self.chat.decode(kept[:n])))]
            text, count = self.chat.decode(kept), max(len(kept), 1)
        told = [value for value in said.logprobs[:count] if value is not None]
        text, *rest = STOP.split(text, maxsplit=1)
        return text, sum(told) / len(told) if told else LOG_NOTHING, bool(rest) or not said.cut

    def _refuse_other_tokens(self, told: Scores) -> None:
        """RunError where a token is not what the tokenizer says: one that it has not, or of other bytes."""
        greatest = max((id for row in told.ids for id in row), default=0)
        if greatest >= len(self.chat.token_bytes):
            raise self._does_not_fit(f"it told of token {greatest}")
        for id, piece in told.pieces.items():
            own = (self.chat.token_bytes[id] or b"").decode(errors="replace")  # a special token has none
            if own and "�" not in own and piece.strip() != own.strip():  # a single token may have lost its blanks
                raise self._does_not_fit(f"to it token {id} is {piece!r}, to the tokenizer {own!r}")

    def _does_not_fit(self, what: str) -> ServerError:
        name, size = self.chat.tokenizer.name_or_path, len(self.chat.token_bytes)
        return ServerError(
            f"the tokenizer {name} ({size:,} tokens) is not that of the served model: {what}; correct "
            "models.teacher.tokenizer"
        )


def record_of(example: Encoded, ids: Any, logprobs: Any, vocabulary: int, keep: OutputSettings) -> Record:
    """An example's record from the k likeliest of `vocabulary` tokens at its p target positions, [p, k] each."""
    logprobs = np.array(logprobs, dtype=np.float64)
    logsumexp, log_tail = normalisers(logprobs, vocabulary, (1.0, *keep.temperatures))
    return {
        "spans": np.array(example.spans[example.gold_slice], dtype=np.int32),
        "topk_ids": np.array(ids, dtype=np.int32),
        "topk_logprobs": logprobs.astype(keep.dtype),
        "logsumexp": logsumexp.astype(np.float32),
        "log_tail": log_tail.astype(np.float32),
    }


def normalisers(logprobs: np.ndarray, vocabulary: int, temperatures: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """logsumexp and log_tail [p, temperatures] from the k likeliest of `vocabulary` tokens, logprobs [p, k] at T = 1.

    Logits are taken to be the log-probabilities, so that logsumexp is 0 at T = 1, where log_tail is exact. At another
    T the tail is Σ p(r)^(1/T) over its ranks r = k + 1 … V with p(r) = p(k)·(r / k)^−s: s is what makes Σ p(r) the tail
    at T = 1; sums are integrals from k + ½ to V + ½. s = 0 is a flat tail.
    """
    k = logprobs.shape[1]
    tail, least = np.maximum(1.0 - np.exp(logprobs).sum(-1), 0.0), logprobs[:, -1]  # [p]
    first, last = np.log((k + 0.5) / k), np.log((max(vocabulary, k + 1) + 0.5) / k)
    none = (tail == 0.0) | (vocabulary <= k)

    def log_sum(s: np.ndarray) -> np.ndarray:
        """log of Σ (r / k)^−s over the tail's ranks."""
        a = np.where(np.abs(1.0 - s) < 1e-9, 1e-9, 1.0 - s)
        return np.log(k) + a * first + np.log(np.expm1(a * (last - first)) / a)

    with np.errstate(divide="ignore"):
        wanted = np.log(tail) - least
    low, high = np.zeros(len(tail)), np.full(len(tail), 200.0)
    for _ in range(60):
        middle = (low + high) / 2
        heavy = log_sum(middle) > wanted
        low, high = np.where(heavy, middle, low), np.where(heavy, high, middle)
    columns = []
    for t in temperatures:
        rest = np.log(np.maximum(tail, np.exp(LOG_NOTHING))) if t == 1.0 else least / t + log_sum(low / t)
        rest = np.where(none, LOG_NOTHING, rest)
        whole = np.logaddexp(np.log(np.exp(logprobs / t).sum(-1)), rest) if t != 1.0 else np.zeros(len(tail))
        columns.append((whole, np.maximum(rest - whole, LOG_NOTHING)))
    logsumexp, log_tail = (np.stack(column, -1) for column in zip(*columns, strict=True))
    return logsumexp, log_tail

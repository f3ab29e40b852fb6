"""What a teacher is, wherever it runs: what it offers and how it is asked. No torch here: a plan reads the offers."""

from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kdsuite.config import ServedTeacherSettings, TeacherSettings
from kdsuite.errors import RunError
from kdsuite.models.costs import DTYPE_BYTES

if TYPE_CHECKING:
    from kdsuite.tasks.encoding import Encoded

HERE = frozenset(
    {"answers", "class_scores", "distributions", "states", "live", "rationales"}
)  # offered by a model loaded here
SCORED = HERE - {"states"}  # by a server that tells the log-probabilities of given tokens


def at_most(teacher: TeacherSettings | ServedTeacherSettings) -> frozenset[str]:
    """What a teacher may offer at best: known without asking its server, if it is behind one."""
    if isinstance(teacher, TeacherSettings):
        return HERE
    return frozenset({"answers", "rationales"}) if teacher.api in ("openai", "ollama") else SCORED


Record = dict[str, np.ndarray]
"""What a teacher says of one example with p target positions, as far as it is offered and kept:

    spans         [p, 2] int32, the bytes of the predicted token in the target: what students are aligned by
    topk_ids      [p, k] int32, topk_logprobs [p, k] at T = 1                       distributions
    logsumexp     [p, temperatures] float32 of z / T                                distributions
    log_tail      [p, temperatures] float32, log-probability at T of all others     distributions
    standardised  [p, 1 + 2·temperatures] float32, the logits' deviation σ, logsumexp and log_tail at T·σ, if kept
    <kind>_ids    [p, temperatures, s] int32, tokens drawn at T (see `drawn_entries`), if kept
    <kind>_logprobs  [p, temperatures, s] at T = 1
    class_scores  [labels] float32, log-probability of each label with its end      class_scores
    hidden_<l>    [p, H], see `local.kept_states`                                   states
"""


def drawn_entries(kind: str, k: int) -> int:
    """How many of the k entries that stand for a distribution are drawn: all (`sampled`), or those beyond its k // 2
    likeliest tokens (`topk_sampled`)."""
    return k if kind == "sampled" else k - k // 2


@dataclass(frozen=True)
class OutputSettings:
    """What is kept per target position."""

    top_k: int = 0  # 0: hidden states only, and the forward pass ends at the highest of `layers`
    dtype: str = "float32"  # of the log-probabilities, float16 or float32
    temperatures: tuple[float, ...] = ()  # T ≠ 1 of the grid; T = 1 is always kept
    layers: tuple[int, ...] = ()  # teacher layers whose hidden states are kept
    labels: int = 0  # number of label words that are scored, 0 for none
    standardised: bool = False  # the same distributions of logits that are divided by their deviation, too
    draws: tuple[str, ...] = ()  # kinds of drawn entries that are kept, too

    @property
    def entries(self) -> int:
        """Tokens per position, with those that are drawn."""
        drawn = sum(drawn_entries(kind, self.top_k) for kind in self.draws)
        return self.top_k + drawn * (1 + len(self.temperatures))

    def as_key(self) -> dict[str, Any]:
        """What a cache is known by; what came later is named only where it is kept."""
        return {name: value for name, value in vars(self).items() if name not in ("standardised", "draws") or value}

    def disk_bytes(self, examples: int, positions: float, width: int, dtype: str, vocabulary: int | None = None) -> int:
        """Bytes of the records of so many examples on disk (docs/cache.md), but for headers and the manifest.

        `positions`: supervised ones per example; `width`: of the teacher's hidden states, which it computes in `dtype`;
        `vocabulary`: its tokens, where they are known.
        """
        top_k = self.top_k if vocabulary is None else min(self.top_k, vocabulary)
        entries, columns = replace(self, top_k=top_k).entries, 1 + len(self.temperatures)
        per_position = entries * (4 + DTYPE_BYTES[self.dtype]) + 2 * 4 * columns + 2 * 4
        per_position += 4 * (1 + 2 * columns) * self.standardised + len(self.layers) * width * DTYPE_BYTES[dtype]
        return round(examples * (positions * per_position + 8 + 4 * self.labels))


def likeliest(labels: Sequence[str], scores: Any) -> list[tuple[str, float]]:
    """The best of the labels by each row of their scores [n, labels], with its probability among them."""
    scores = np.asarray(scores, dtype=np.float64)
    shares = 1.0 / np.exp(scores - scores.max(-1, keepdims=True)).sum(-1)
    return list(zip(np.array(labels)[scores.argmax(-1)].tolist(), shares.tolist(), strict=True))


class Teacher:
    """The large frozen model: loaded here, behind a URL, or what is kept on disk of what it said.

    It does what it `offers`: `distributions`, `class_scores` and `states` are parts of its records, `answers` are
    texts, `live` is to read any text, of which nothing was known before. `temperatures` are those that the columns
    of its distributions are of. RunError for what it does not offer.
    """

    @property
    def offers(self) -> frozenset[str]:
        raise NotImplementedError

    @property
    def temperatures(self) -> tuple[float, ...]:
        return ()

    def outputs(self, examples: "Sequence[Encoded]") -> list[Record]:
        """What it says of training examples, in their order. KeyError for one that it does not know."""
        raise self._lacks("outputs")

    def answers(self, examples: "Sequence[Encoded]") -> list[tuple[str, float]]:
        """Its raw answer to each prompt, all of which are read together, with the probability that it gives it: of
        a label among the labels, of a text per token (geometric mean)."""
        raise self._lacks("answers")

    def rationales(self, prompts: Sequence[list[int]]) -> list[tuple[str, bool]]:
        """What it writes to prompts, in its own tokens, that ask for reasons, and whether it came to an end there."""
        raise self._lacks("rationales")

    def prompt_batches(self, prompts: Sequence[list[int]], new_tokens: int, size: int) -> list[list[int]]:
        """Prompts by index, at most so many at once, as they are best answered together."""
        return [list(range(len(prompts)))[at : at + size] for at in range(0, len(prompts), size)]

    def score(self, sequences: "Sequence[Encoded]") -> list[Record]:
        """What it says of any texts in its own tokens, such as the student's samples."""
        raise self._lacks("scores of new texts")

    def _lacks(self, what: str) -> RunError:
        offered = ", ".join(sorted(self.offers)) or "nothing"
        return RunError(f"this teacher gives no {what} (it offers {offered}); take a teacher that does")


class Together(Teacher):
    """Several views of one teacher, each asked for its outputs: what is cached, and what is computed instead."""

    def __init__(self, *parts: Teacher):
        self.parts = parts

    @property
    def offers(self) -> frozenset[str]:
        return frozenset().union(*(part.offers for part in self.parts))

    @property
    def temperatures(self) -> tuple[float, ...]:
        return next((part.temperatures for part in self.parts if part.temperatures), ())

    def outputs(self, examples: "Sequence[Encoded]") -> list[Record]:
        """The records of all, as one; of what several say the first is taken."""
        said = [part.outputs(examples) for part in self.parts]
        return [dict(ChainMap(*records)) for records in zip(*said, strict=True)]

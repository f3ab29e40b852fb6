"""An example, and what a task must know: where its examples come from, how it asks, how it scores."""

from __future__ import annotations

import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from kdsuite.config import TaskSettings
from kdsuite.config.plugins import TASKS, plugins
from kdsuite.errors import DataError
from kdsuite.tasks.metrics import percent

Message = dict[str, str]


@dataclass(frozen=True)
class Example:
    """One thing to learn or to be asked.

    `inputs` are the texts the prompt is made of; `target` is what the student learns to produce (in Unicode
    NFC, as byte spans of it tie teacher and student together); `references` are what a prediction is scored
    against, untouched; `group` (a passage, a repeated sentence) is what statistics take as one exchangeable unit;
    `answer_start` is the target's character offset in the context, for tasks that have one; `origin` is the larger
    whole that a group was taken from (an article), where it is known: dev shares none with training.
    """

    id: str
    inputs: dict[str, str]
    target: str
    references: tuple[str, ...]
    group: str
    answer_start: int | None = None
    origin: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> Example:
        fields = json.loads(line)
        return cls(**{**fields, "references": tuple(fields["references"])})


@dataclass(frozen=True)
class Split:
    """Examples of a split, the mean characters of their prompts and targets, and those of the longest prompt."""

    examples: int
    prompt: float
    target: float
    longest: int


class Task(ABC):
    """A kind of task, or one that is known by name: a class, registered as an entry point of `kdsuite.tasks`.

    An object of it is a task of a configuration, under the name that it has there.
    """

    name: str
    Settings: ClassVar[type[TaskSettings]] = TaskSettings
    title: str | None = None  # what tables and figures call it; default: its name
    metric: str  # primary metric: a key of `aggregate`, in percent
    secondary_metric: str
    labels: tuple[str, ...] | None = None  # a closed set of targets, scored rather than generated
    hub_id: str | None = None  # where its official data are
    licence: str | None = None  # of the data, with their name
    citation: str | None = None  # of the data, as a page names its sources
    sizes: tuple[Split, Split] | None = None  # of the official training and reported split
    fragments: bool = False  # training examples are parts of each other's texts, reported ones are whole

    def __init__(self, name: str | None = None):
        self.name = name or self.name

    @abstractmethod
    def load(self, settings: TaskSettings, split: str) -> list[Example]:
        """All examples of `train` or `validation`, in the source's order. Raises DataError, naming the place."""

    def file(self, settings: TaskSettings, split: str) -> Path:
        """Where the examples of a split are, if the source is a folder."""
        return Path(settings.source) / (settings.train_file if split == "train" else settings.validation_file)

    @abstractmethod
    def messages(self, example: Example, context: str | None = None) -> list[Message]:
        """The prompt as chat messages; `context` replaces the example's own, for windows."""

    def pattern(self, fields: Iterable[str]) -> str:
        """The prompt as text, with the name of each input in its place, between U+E000 and U+E001."""
        sample = Example("", {name: f"\ue000{name}\ue001" for name in fields}, "", ("",), "")
        return "\n\n".join(message["content"] for message in self.messages(sample))

    def label_texts(self, settings: TaskSettings) -> dict[str, str]:
        """How each label is spelled in an answer."""
        return {label: label for label in self.labels or ()}

    def clean(self, raw: str, example: Example) -> str:
        """From what a model wrote to the answer it means, without looking at the gold answer; "" for none.

        Answers are scored as they came. This is what KD2 learns of the teacher's, and what is scored beside.
        """
        return raw.strip()

    @abstractmethod
    def score(self, prediction: str, references: Sequence[str]) -> dict[str, float]:
        """Scores of one prediction, each 0–1."""

    def aggregate(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """Metrics over a split, in percent, with `n`; where nothing else is said, means of the scores of that name."""
        scores = [self.score(p, r) for p, r in zip(predictions, references, strict=True)]
        means = {metric: percent([s[metric] for s in scores]) for metric in (self.metric, self.secondary_metric)}
        return {**means, "n": len(scores)}


def task_of(name: str, settings: TaskSettings) -> Task:
    """The task of a section of a configuration, under its name there."""
    kinds = plugins(TASKS)
    said = kinds.get(settings.preset or settings.kind or "")
    return (said or next(kind for kind in kinds.values() if kind.Settings is type(settings)))(name)


def canonical(text: str) -> str:
    """Unicode NFC: what tokenizers with a normalizer (Qwen2.5) make of a text anyway."""
    return unicodedata.normalize("NFC", text)


def read_bytes(path: Path) -> bytes:
    """A data file's content. DataError says which file is missing or cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"no data file {path}; set the task's source, train_file and validation_file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def read_text(path: Path) -> str:
    """A data file's text. DataError like `read_bytes`, and where it is empty or not UTF-8."""
    try:
        text = read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty; download it again")
    return text

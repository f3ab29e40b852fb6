"""An example, and what a task must know: where its examples come from, how it asks, how it scores."""

from __future__ import annotations

import copy
import hashlib
import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

from jinja2 import Template, TemplateError

from kdsuite.config import LANGUAGE, MESSAGES, TaskSettings
from kdsuite.config.plugins import TASKS, plugins
from kdsuite.errors import first_line
from kdsuite.tasks import sources
from kdsuite.tasks.metrics import percent
from kdsuite.tasks.sources import Row, is_empty

Message = dict[str, str]
UNLABELED = "unlabeled"  # the split of what only a teacher can answer
FAULTS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)  # of a template


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
    def from_json(cls, fields: dict[str, Any]) -> Example:
        return cls(**{**fields, "references": tuple(fields["references"])})


class Task(ABC):
    """A kind of task: a class, registered as an entry point of `kdsuite.tasks`.

    An object of it is a task of a configuration: its section there, under the name that it has.
    """

    name: str
    Settings: ClassVar[type[TaskSettings]] = TaskSettings
    usual: ClassVar[Mapping[str, Sequence[str]]] = {  # the columns where a configuration names none, first come
        "references": ("references",), "id": ("id",), "group": ("group",),
    }  # fmt: skip
    question: ClassVar[str] = ""  # the prompt where a configuration has none
    metric: str  # primary metric: a key of `aggregate`, in percent
    secondary_metric: str
    labels: Mapping[str, str] | None = None  # a closed set of targets, each as it is spelled; scored, not generated
    request: str = ""  # what is put behind every question: to explain the answer

    def __init__(self, name: str, settings: TaskSettings):
        self.name, self.settings = name, settings
        self.shots: Sequence[Example] = ()  # solved examples that stand before every question

    @abstractmethod
    def example(self, row: Row, id: str) -> Example:
        """What a row says; `id` is what it is known by if it names none. DataError, naming the place."""

    def load(self, split: str) -> list[Example]:
        """All examples of `train`, `validation` or `unlabeled` (these without target and references), in the source's
        order; none of a reported split that is to be carved out of train. DataError, naming the place."""
        stem, places = f"{self.settings.preset or self.name}-{split}", dict[str, str]()
        examples = []
        for number, row in enumerate(sources.rows(self.settings, split)):
            known_as = f"{stem}-{number}"
            if split == UNLABELED:
                example = Example(**self._read(row, known_as), target="", references=())
            else:
                example = self.example(row, known_as)
            if other := places.get(example.id):
                raise row.error(f"the id {example.id!r} is that of {other}, too; ids must be unique")
            places[example.id] = row.place
            self._ask(row, example)
            if not examples and example.references:
                self.score(example.target, example.references)  # a metric that cannot be computed is told now
            examples.append(example)
        return examples

    def messages(self, example: Example, context: str | None = None) -> list[Message]:
        """The question as chat messages; `context` replaces the example's own, for windows."""
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        solved = [
            message
            for shot in self.shots
            for message in (*self._turns(shot.inputs), {"role": "assistant", "content": self._spelled(shot)})
        ]
        inputs = example.inputs if context is None else {**example.inputs, "context": context}
        *turns, last = self._turns(inputs)
        asked = {**last, "content": f"{last['content']}\n\n{self.request}"} if self.request else last
        return [*system, *solved, *turns, asked]

    def explaining(self, request: str) -> Task:
        """The same task, whose questions ask for the reason of an answer."""
        task = copy.copy(self)
        task.request = request
        return task

    def pattern(self, fields: Iterable[str]) -> str:
        """The prompt as text, with the name of each input in its place, between U+E000 and U+E001; "" where it takes
        them apart, so that names do not stand for them."""
        if MESSAGES in fields:
            return f"\ue000{MESSAGES}\ue001"
        try:
            turns = self._turns({name: f"\ue000{name}\ue001" for name in fields})
        except FAULTS:
            return ""
        return "\n\n".join([*([self.settings.system] if self.settings.system else []), turns[-1]["content"]])

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
        means = {name: percent([s[name] for s in scores]) for name in (self.metric, self.secondary_metric)}
        return {**means, "n": len(scores)}

    # --- what kinds read a row with

    def _column(self, key: str, row: Row) -> str | None:
        """The column that a key stands for: what the configuration says, else the first usual one that is there."""
        said = getattr(self.settings.columns, key)
        return said or next((name for name in self.usual.get(key, ()) if name in row.cells), None)

    def _needed(self, key: str, row: Row) -> str:
        """That column, which has to be there. DataError names what is, and the key that maps it."""
        column = self._column(key, row)
        if column is None:
            usual = " or ".join(map(repr, self.usual.get(key, ())))
            raise row.error(f"no column {usual}; there are {', '.join(map(str, row.cells))} (columns.{key} names it)")
        row.cell(column, key)
        return column

    def _given(self, key: str, row: Row) -> str | None:
        """That column, if it is there; one that a configuration names has to be. DataError names what is."""
        return self._needed(key, row) if getattr(self.settings.columns, key) else self._column(key, row)

    def _asked(self, row: Row) -> dict[str, str]:
        """The inputs of a row: what its columns hold, by their names in the prompt."""
        named = self._inputs or {(column := self._needed("input", row)): column}
        return {name: canonical(row.text(column, "input").strip()) for name, column in named.items()}

    def _read(self, row: Row, id: str) -> dict[str, Any]:
        """Of an example its id, group, origin and inputs."""
        inputs = self._asked(row)
        passage = inputs.get("context")
        own = " ".join(" ".join(inputs.values()).casefold().split())
        group = own if passage is None else hashlib.sha256(passage.encode()).hexdigest()[:16]
        found: dict[str, Any] = {"id": id, "group": group, "inputs": inputs}
        for key in ("id", "group", "origin"):
            column = self._column(key, row)
            if not column or (column not in row.cells and not self.settings.own("columns", key)):
                continue
            if not is_empty(row.cell(column, key)):
                found[key] = row.text(column)
        return found

    def _turns(self, inputs: Mapping[str, str]) -> list[Message]:
        if MESSAGES in inputs:
            return json.loads(inputs[MESSAGES])
        own = {"context"} if self.settings.prompt or "context" in self.settings.offered else set()  # it is named there
        others = {name: text for name, text in inputs.items() if name not in own}
        named = {"context": "", "labels": list((self.labels or {}).values()), **inputs, "inputs": others}
        return [{"role": "user", "content": self._template.render(named)}]

    @cached_property
    def _inputs(self) -> dict[str, str]:
        return self.settings.inputs

    @cached_property
    def _template(self) -> Template:
        return LANGUAGE.from_string(self.settings.prompt or self.question)

    def _spelled(self, example: Example) -> str:
        return (self.labels or {}).get(example.target, example.target)

    def _ask(self, row: Row, example: Example) -> None:
        """DataError where the question cannot be rendered, or is empty."""
        try:
            asked = self._turns(example.inputs)[-1]["content"]
        except FAULTS as error:
            raise row.error(f"the prompt cannot be rendered: {first_line(error)}") from None
        if not asked.strip():
            raise row.error("the prompt comes out empty; mend the row or the prompt")


def task_of(name: str, settings: TaskSettings) -> Task:
    """The task of a section of a configuration, under its name there."""
    return plugins(TASKS)[settings.kind or ""](name, settings)


def canonical(text: str) -> str:
    """Unicode NFC: what tokenizers with a normalizer (Qwen2.5) make of a text anyway."""
    return unicodedata.normalize("NFC", text)

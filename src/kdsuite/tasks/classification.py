"""Classification: one of a closed set of labels, which are scored, never generated, so that nothing is unparsable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from kdsuite.config import TaskSettings, Unique, nearest
from kdsuite.tasks.example import Example, Task, canonical
from kdsuite.tasks.metrics import binary_f1, held_against, percent
from kdsuite.tasks.sources import Row


def _named(values: Any) -> Any:
    """Labels as they are written: YAML reads `true` and `1` as something else."""
    if not isinstance(values, list | tuple):
        return values
    return [str(v).lower() if isinstance(v, bool) else str(v) if isinstance(v, int) else v for v in values]


class ClassificationSettings(TaskSettings):
    offered = TaskSettings.offered | {"labels"}
    labels: Annotated[tuple[str, ...], Unique, BeforeValidator(_named), Field(min_length=2)] = Field(
        description="the labels by name; a number in the data is a place in this list, unless labels are numbers"
    )
    labels_text: dict[str, str] = Field(
        default={},
        description="how labels are spelled in answers, as {positive: Positive}; predictions and metrics keep their "
        "names; default: as they are named",
    )
    positive: str | None = Field(
        default=None, description="of two labels the one whose F1 is told beside accuracy; default: F1 over all, macro"
    )

    @field_validator("labels")
    @classmethod
    def _without_blanks(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        for label in labels:
            if not label or label != label.strip():
                raise ValueError(f"label {label!r} needs a name without blanks around it")
        return labels

    @model_validator(mode="after")
    def _spelled_apart(self) -> Self:
        for label, text in self.labels_text.items():
            if label not in self.labels:
                raise ValueError(f"labels_text: unknown label {label!r}{nearest(label, self.labels)}")
            if not text or text != text.strip():
                raise ValueError(f"labels_text: label {label!r} needs a text without blanks around it")
        spelled = [canonical(self.labels_text.get(label, label)) for label in self.labels]
        if repeated := [text for text in spelled if spelled.count(text) > 1]:
            raise ValueError(f"labels_text: two labels have the same text {repeated[0]!r}")
        if self.positive is not None and self.positive not in self.labels:
            raise ValueError(f"positive: unknown label {self.positive!r}{nearest(self.positive, self.labels)}")
        return self


class Classification(Task):
    name = "classification"
    Settings = ClassificationSettings
    usual = {**Task.usual, "input": ("text",), "target": ("label",)}
    question = (
        "{% for name, text in inputs.items() %}{% if inputs | length > 1 %}{{ name }}: {% endif %}{{ text }}\n\n"
        "{% endfor %}Which of these is it: {{ labels | join(', ') }}? Answer with one of them."
    )
    metric = "accuracy"
    settings: ClassificationSettings

    def __init__(self, name: str, settings: ClassificationSettings):
        super().__init__(name, settings)
        texts = settings.labels_text
        self.labels = {label: canonical(texts.get(label, label)) for label in settings.labels}
        self.secondary_metric = "f1" if settings.positive else "macro_f1"

    def example(self, row: Row, id: str) -> Example:
        label, column = self._label(row, self._needed("target", row)), self._given("references", row)
        right = [self._label(one, column) for one in row.items(column)] if column else []
        return Example(**self._read(row, id), target=label, references=tuple(right or [label]))

    def _label(self, row: Row, column: str) -> str:
        """The label that a cell names, by its name or, unless labels are numbers, by its place in the list."""
        labels, said, value = self.settings.labels, row.text(column).strip(), row.cells[column]
        number = str(int(value)) if isinstance(value, bool) else said
        if name := next((name for name in (said, number) if name in labels), None):
            return name
        if number.isdecimal() and int(number) < len(labels) and not any(map(str.isdecimal, labels)):
            return labels[int(number)]
        unknown = "; the hub has -1 where a label is kept secret" if said == "-1" else nearest(said, labels)
        raise row.error(f"column {column!r}: {said!r} is none of the labels{unknown}")

    def score(self, prediction: str, references: Sequence[str]) -> dict[str, float]:
        return {"accuracy": float(prediction in references)}

    def aggregate(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        gold = [held_against(p, r) for p, r in zip(predictions, references, strict=True)]
        accuracy = percent([float(p == g) for p, g in zip(predictions, gold, strict=True)])
        met = {*gold, *predictions}  # of a label that is neither gold nor answered, nothing is known
        one = self.settings.positive
        counted = [one] if one else [label for label in self.settings.labels if label in met]
        f1 = [binary_f1([p == label for p in predictions], [g == label for g in gold]) for label in counted]
        return {"accuracy": accuracy, self.secondary_metric: 100.0 * sum(f1) / len(f1), "n": len(gold)}

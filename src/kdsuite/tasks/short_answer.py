"""Short answers: a word, a number, a span of a passage. They are generated, and scored as SQuAD's are
(Rajpurkar et al. 2016, arXiv:1606.05250): exact match and token F1 after normalisation, over all references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdsuite.config import TaskSettings
from kdsuite.tasks.cleaning import clean_answer
from kdsuite.tasks.example import Example, Task, canonical
from kdsuite.tasks.metrics import squad_exact_match, squad_f1
from kdsuite.tasks.sources import Row, is_empty


class ShortAnswerSettings(TaskSettings):
    offered = TaskSettings.offered | {"context"}


class ShortAnswer(Task):
    name = "short_answer"
    Settings = ShortAnswerSettings
    usual = {**Task.usual, "input": ("question",), "target": ("answers", "answer"), "context": ("context",)}
    question = (
        "{% if context %}Context: {{ context }}\n\n{% endif %}"
        "{% for name, text in inputs.items() %}{{ name | capitalize }}: {{ text }}\n\n{% endfor %}"
        "{% if context %}Answer with a short span copied from the context."
        "{% else %}Answer with a few words.{% endif %}"
    )
    metric = "f1"
    secondary_metric = "exact_match"

    def example(self, row: Row, id: str) -> Example:
        about, column = self._read(row, id), self._needed("target", row)
        passage = about["inputs"].get("context")
        answers = _answers(row, column)
        (text, start), others = answers[0], self._given("references", row)
        references = [t for t, _ in (_answers(row, others) if others else answers)]
        if passage is not None:
            start = _place(row, passage, text, start)
        lead = len(text) - len(text.lstrip())
        return Example(
            **about,
            target=canonical(text.strip()),
            references=tuple(references),
            answer_start=None if start is None else start + lead,
        )

    def _asked(self, row: Row) -> dict[str, str]:
        """The inputs, of which the passage stays as it is: the places of answers are in it."""
        said, column = super()._asked(row), self._inputs.get("context") or self._given("context", row)
        passage = {"context": row.text(column)} if column else {}
        return {**passage, **said, **passage}

    def clean(self, raw: str, example: Example) -> str:
        if (context := example.inputs.get("context")) is None:
            return next((line.strip() for line in raw.splitlines() if line.strip()), "")
        asked = " ".join(text for name, text in example.inputs.items() if name != "context")
        return clean_answer(raw, context, asked)

    def score(self, prediction: str, references: Sequence[str]) -> dict[str, float]:
        said, right = canonical(prediction), [canonical(reference) for reference in references]
        return {
            "exact_match": max(squad_exact_match(said, r) for r in right),
            "f1": max(squad_f1(said, r) for r in right),
        }


def _answers(row: Row, column: str) -> list[tuple[str, int | None]]:
    """The answers of a cell, with their places in the context where it tells them: a text, a list of texts or of
    `{text, answer_start}`, or SQuAD's `{text: […], answer_start: […]}`."""
    cell = row.cells[column]
    if isinstance(cell, dict) and isinstance(texts := cell.get("text"), list | tuple):
        starts = cell.get("answer_start")
        if starts is not None and (not isinstance(starts, list | tuple) or len(starts) != len(texts)):
            raise row.error(f"column {column!r}: as many answer_start as text, please; mend the row")
        said: list[tuple[Any, Any]] = list(zip(texts, starts or [None] * len(texts), strict=True))
    elif isinstance(cell, list | tuple):
        for answer in cell:
            if isinstance(answer, dict) and "text" not in answer:
                raise row.error(f"column {column!r}: an answer has no 'text'; mend the row")
        said = [(a["text"], a.get("answer_start")) if isinstance(a, dict) else (a, None) for a in cell]
    elif isinstance(cell, dict) or cell is None:
        raise row.error(f"column {column!r} should be an answer or a list of answers, but is {cell!r}; mend the row")
    else:
        said = [(row.text(column), None)]
    if not said:
        raise row.error(f"no answer in column {column!r}; every question needs one")
    return [_answer(row, column, text, start) for text, start in said]


def _answer(row: Row, column: str, text: Any, start: Any) -> tuple[str, int | None]:
    start = None if is_empty(start) else start
    if not isinstance(text, str) and (isinstance(text, bool) or not isinstance(text, int | float)):
        raise row.error(f"column {column!r}: an answer should be a text, but is {text!r}; mend the row")
    if is_empty(text):
        raise row.error(f"the answer is empty (column {column!r}); mend the row")
    if start is not None and (isinstance(start, bool) or not isinstance(start, int) or start < 0):
        raise row.error(f"column {column!r}: answer_start should be a number of characters, but is {start!r}")
    return Row(row.place, {column: text}).text(column), start


def _place(row: Row, passage: str, text: str, start: int | None) -> int | None:
    """Where an answer stands in its passage, as the row says or as it is found; None if it is not a span of it."""
    found = passage.find(text)
    if start is None:
        return found if found >= 0 else None
    if passage[start : start + len(text)] != text:
        if found < 0:
            raise row.error(f"the answer {text!r} is not in its context; mend the row")
        raise row.error(f"the answer {text!r} is not at {start} but at {found}; mend answer_start")
    return start

"""Generation: free text. Scored by ROUGE-L, chrF, exact match (of what a pattern extracts) or a metric of one's own."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, field_validator

from kdsuite.config import MESSAGES, TaskSettings, Unique
from kdsuite.errors import DataError
from kdsuite.tasks.example import Example, Message, Task, canonical
from kdsuite.tasks.metrics import metric_source, named_metric
from kdsuite.tasks.sources import Row

ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class GenerationSettings(TaskSettings):
    metrics: Annotated[tuple[str, ...], Unique, Field(min_length=1)] | None = Field(
        default=None,
        description="the first is the primary one: rouge_l, chrf, exact_match, token_f1, or `package:function` of a "
        "prediction and its references, from 0 to 1; default: rouge_l, chrf; with `extract` exact_match, rouge_l",
    )
    extract: str | None = Field(
        default=None,
        description="regular expression whose last match's group is what exact_match compares; default: the whole text",
    )

    @field_validator("metrics")
    @classmethod
    def _are_there(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        called: dict[str, str] = {}  # as scores are, without their package
        for name in names or ():
            metric_source(name)
            if (other := called.setdefault(name.rpartition(":")[2], name)) != name:
                raise ValueError(f"{other!r} and {name!r} have one name in tables; rename one of the functions")
        return names

    @field_validator("extract")
    @classmethod
    def _has_a_group(cls, pattern: str | None) -> str | None:
        try:
            if pattern is not None and re.compile(pattern).groups != 1:
                raise ValueError(f"needs one group, (…), around what is compared, not {re.compile(pattern).groups}")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return pattern

    def identity(self) -> dict[str, Any]:
        """With the code of metrics of one's own: those that were mended give other numbers."""
        sources = {name: source for name in self.metrics or () if (source := metric_source(name)) is not None}
        return super().identity() | ({"metric_sources": sources} if sources else {})

    def scoring(self) -> dict[str, Any]:
        there = self.identity()
        return {key: there[key] for key in ("metrics", "extract", "metric_sources") if key in there}


class Generation(Task):
    name = "generation"
    Settings = GenerationSettings
    usual = {
        **Task.usual, "input": ("prompt",), "target": ("completion", "answer"), "messages": (MESSAGES, "conversations"),
    }  # fmt: skip
    question = "{{ inputs.values() | join('\n\n') }}"
    settings: GenerationSettings

    def __init__(self, name: str, settings: GenerationSettings):
        super().__init__(name, settings)
        extracted = settings.extract is not None
        names = settings.metrics or (("exact_match", "rouge_l") if extracted else ("rouge_l", "chrf"))
        self._metrics = {name.rpartition(":")[2]: named_metric(name) for name in names}
        self._pattern = re.compile(settings.extract) if settings.extract else None
        self.metric, self.secondary_metric = next(iter(self._metrics)), list(self._metrics)[:2][-1]

    def example(self, row: Row, id: str) -> Example:
        about, chat = self._read(row, id), self._chat(row)
        target = _turns(row, chat, answered=True)[1] if chat else row.text(self._needed("target", row))
        column = self._given("references", row)
        said = [one.text(column) for one in row.items(column)] if column else []
        references = [canonical(text.strip()) for text in said or [target]]
        if self._pattern and (missing := [text for text in references if not self._pattern.search(text)]):
            raise row.error(f"`extract` finds nothing in the reference {missing[0][-60:]!r}; mend it or the pattern")
        return Example(**about, target=canonical(target.strip()), references=tuple(references))

    def _chat(self, row: Row) -> str | None:
        """The column of whole conversations, if that is what a row has."""
        return None if self._inputs else self._column("messages", row)

    def _asked(self, row: Row) -> dict[str, str]:
        if chat := self._chat(row):
            return {MESSAGES: json.dumps(_turns(row, chat)[0], ensure_ascii=False)}
        return super()._asked(row)

    def score(self, prediction: str, references: Sequence[str]) -> dict[str, float]:
        return {name: self._scored(name, prediction, references) for name in self._metrics}

    def _scored(self, name: str, prediction: str, references: Sequence[str]) -> float:
        said = canonical(prediction.strip())
        compared = (said, list(references))
        if name == "exact_match" and self._pattern:
            compared = self._extracted(said), [self._extracted(text) for text in references]
        try:
            score = float(self._metrics[name](*compared))
        except Exception as error:  # noqa: BLE001  a person's own function may raise anything
            raise DataError(f"metric {name} raised {type(error).__name__} for {said[:60]!r}: {error}") from None
        if not 0.0 <= score <= 1.0:
            raise DataError(f"metric {name} gave {score} for {said[:60]!r}; a score is from 0 to 1")
        return score

    def _extracted(self, text: str) -> str | None:
        """What the pattern finds last; None, which equals nothing, if it finds nothing."""
        assert self._pattern
        found = self._pattern.findall(text)
        return found[-1].strip() if found else None


def _turns(row: Row, column: str, answered: bool = False) -> tuple[list[Message], str]:
    """A conversation up to the user's last turn, and what the assistant answers, "" if nothing.

    DataError unless it ends so, with an answer where it has to be `answered`.
    """
    said: Any = row.cell(column)
    if not isinstance(said, list | tuple) or not all(isinstance(turn, dict) for turn in said):
        raise row.error(f"column {column!r} should be a list of messages, with role and content; mend the row")
    turns = []
    for turn in said:
        role, content = ROLES.get(str(turn.get("role", turn.get("from")))), turn.get("content", turn.get("value"))
        if role is None or not isinstance(content, str) or not content.strip():
            raise row.error(f"column {column!r}: a message needs a role ({', '.join(ROLES)}) and a text: {turn!r}")
        turns.append({"role": role, "content": content})
    answer = turns.pop()["content"] if turns and turns[-1]["role"] == "assistant" else ""
    if not turns or turns[-1]["role"] != "user" or (answered and not answer):
        raise row.error(f"column {column!r} should end with the user's and the assistant's turn; mend the row")
    return turns, answer

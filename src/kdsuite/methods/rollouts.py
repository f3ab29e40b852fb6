"""Answers that the student samples itself, as examples to learn from; and the teacher's word on each of them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

from kdsuite.errors import DataError
from kdsuite.methods.base import OnPolicy
from kdsuite.methods.targets import SoftTargets, TeacherTargets
from kdsuite.models.generation import sample
from kdsuite.tasks.encoding import Answer, ChatTokenizer, Encoded, lay_out
from kdsuite.teacher.http import HttpTeacher
from kdsuite.teacher.local import LocalTeacher

SPREAD = 1_000_003  # of seeds over steps, as of batches over epochs


@dataclass
class Rollouts:
    """The teacher's targets of a training in which the student writes some of the batches.

    `gold` says what the teacher outputs at gold answers, `teacher` reads new ones; `asked` are the examples in the
    teacher's tokens, by id. Which batches are rolled out, and what is drawn, depends on seed and step alone, so that a
    training that was stopped goes on as if it had not been. A sample is learned from as far as it is text; from one
    that is none at all, or that the teacher's template does not write as it is, the gold answer is learned instead.
    """

    how: OnPolicy
    gold: TeacherTargets
    teacher: LocalTeacher | HttpTeacher
    chat: ChatTokenizer  # the student's
    asking: ChatTokenizer  # the teacher's
    asked: dict[str, Encoded]
    max_new_tokens: int
    _texts: dict[str, Encoded] = field(default_factory=dict)  # of the present step, in the teacher's tokens

    def of(self, batch: Sequence[Encoded]) -> SoftTargets:
        """What the teacher says of a step's examples, be they gold or the student's."""
        if not self._texts:
            return self.gold.of(batch)
        reader = replace(self.teacher, known=self._texts)
        return replace(self.gold, teacher=reader, layers=(), entries="topk_tail").of(batch)

    def learned(
        self, student: Any, examples: Sequence[Encoded], seed: int, step: int, at_once: int | None = None
    ) -> list[Encoded]:
        """The examples of a step as they are learned: with the student's own answers, or as they are. It writes so many
        `at_once`, or all of them."""
        self._texts.clear()
        if random.Random(f"{seed} {step}").random() >= self.how.share:
            return list(examples)
        count = math.ceil(self.how.first_tokens * self.max_new_tokens)
        training = student.training
        student.eval()
        try:
            prompts = [example.prompt for example in examples]
            said = sample(student, self.chat, prompts, count, self.how.temperature, seed * SPREAD + step, at_once)
        finally:
            student.train(training)
        return [self._written(example, ids) for example, ids in zip(examples, said, strict=True)]

    def _written(self, example: Encoded, ids: list[int]) -> Encoded:
        """An example with the sampled tokens as its target; the example itself where they cannot be learned from."""
        other = self.asked[example.id]
        self._texts[example.id] = other
        gap, ids = self.chat.gap, self._text_of(ids)
        whole = bool(ids) and ids[-1] in self.chat.final_ids  # it ended its turn
        said = self.chat.bytes_of(ids[:-1] if whole else ids) or b""
        joined = example.spans[example.gold_slice.start][0] < 0 or other.spans[other.gold_slice.start][0] < 0
        if len(said) <= len(gap) or not said.startswith(gap) or joined:
            return example
        size = len(said) - len(gap)
        lengths = (len(self.chat.token_bytes[id] or b"") for id in ids)
        ends = [min(max(end, 0), size) for end in accumulate(lengths, initial=-len(gap))]
        own = read = Answer(ids, list(pairwise(ends)), [])
        try:
            if not self._one_vocabulary:  # else it reads these very tokens, not those that it makes of the text
                read = self.asking.answer(said[len(gap) :].decode())
                if not whole:  # an end of turn is nothing that the student came to
                    count = len(read.target_ids)
                    read = Answer(read.ids[:count], read.spans[:count], read.joined)
            self._texts[example.id] = lay_out(example.id, other.prompt, {"": read}, "")
        except DataError:
            return example
        return lay_out(example.id, example.prompt, {"": own}, "")

    @cached_property
    def _one_vocabulary(self) -> bool:
        """Whether the teacher's template writes a text as the student's does: the same tokens, blanks and ending."""
        names = ("token_bytes", "final_ids", "gap", "ending_ids")
        return all(getattr(self.chat, name) == getattr(self.asking, name) for name in names)

    def _text_of(self, ids: list[int]) -> list[int]:
        """As many of the tokens as are whole characters, the end of the turn if it comes behind all of them."""
        said = self.chat.cut(ids)
        for count in range(len(said), 0, -1):
            try:
                (self.chat.bytes_of(said[:count]) or b"").decode()
            except UnicodeDecodeError:
                continue
            return ids[: count + 1] if count == len(said) else said[:count]
        return []

"""Two tokenizers: which positions correspond, and which tokens.

Positions correspond where both tokenizations of the target have a boundary at the same byte: there both
models have read the same text and predict what comes next. The first position (byte 0) and the end of turn
always do. Where tokenizations disagree inside the target, the positions in between are left out.

Tokens correspond when their bytes are equal; the two end-of-turn tokens correspond by their role. The map is
one to one, so that the kept tokens partition the student's vocabulary: of several tokens with equal bytes
(`A` and `<0x41>`) the ordinary one is taken, and the other's probability counts as "other".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdsuite.tasks.encoding import ChatTokenizer
from kdsuite.tasks.vocabulary import is_byte_token

Span = tuple[int, int]


@dataclass(frozen=True)
class VocabularyMap:
    """`to_student[i]` is the student's id for the teacher's id i, or −1.

    `reached` student tokens have a counterpart by bytes or by role; of those with equal bytes all count here,
    though only one of them is in the map.
    """

    to_student: np.ndarray  # [teacher ids] int64
    reached: int
    student_size: int

    @property
    def share(self) -> float:
        return self.reached / self.student_size

    @property
    def unmapped(self) -> np.ndarray:
        """[student ids] bool: the student's tokens that stand for no token of the teacher."""
        lonely = np.ones(self.student_size, dtype=bool)
        lonely[self.to_student[self.to_student >= 0]] = False
        return lonely

    def __call__(self, teacher_ids: np.ndarray) -> np.ndarray:
        """Student ids of teacher ids of any shape, −1 where there is none."""
        return self.to_student[teacher_ids]


def map_vocabulary(teacher: ChatTokenizer, student: ChatTokenizer) -> VocabularyMap:
    """Match two vocabularies by bytes."""
    by_bytes: dict[bytes, int] = {}
    for id in _ordinary_last(student):
        spelled = student.token_bytes[id]
        if spelled:
            by_bytes[spelled] = id
    to_student = np.full(len(teacher.token_bytes), -1, dtype=np.int64)
    taken: dict[int, int] = {}
    for id in _ordinary_last(teacher):
        match = by_bytes.get(teacher.token_bytes[id] or b"")
        if match is not None:
            to_student[taken.get(match, id)] = -1
            to_student[id], taken[match] = match, id
    to_student[teacher.end_id] = student.end_id
    said = {spelled for spelled in teacher.token_bytes if spelled}
    reached = 1 + sum(spelled in said for spelled in student.token_bytes if spelled)
    return VocabularyMap(to_student, reached, len(student.token_bytes))


def _ordinary_last(chat: ChatTokenizer) -> list[int]:
    """All ids, byte-fallback tokens first, so that ordinary tokens with the same bytes overrule them."""
    tokens = chat.tokenizer.convert_ids_to_tokens(range(len(chat.token_bytes)))
    return sorted(range(len(tokens)), key=lambda i: (not is_byte_token(tokens[i] or ""), -i))


def align(teacher: Sequence[Span], student: Sequence[Span]) -> list[tuple[int, int]]:
    """Pairs (student position, teacher position) that begin at the same byte of the target.

    Both span lists cover the target without gap or overlap and end with the empty span of the end of turn.
    """
    at = {start: index for index, (start, _) in enumerate(teacher)}
    return [(index, at[start]) for index, (start, _) in enumerate(student) if start in at]

"""Two tokenizers: which positions correspond, and which tokens.

Positions correspond where both tokenizations of the target have a boundary at the same byte: there both
models have read the same text and predict what comes next. The first position (byte 0) and the end of turn
always do. Where tokenizations disagree inside the target, the positions in between are left out. Of several
tokens at one byte (a template's blank before the answer, or before `</s>`) the last correspond, then those before.

Tokens correspond when their bytes are equal; the two end-of-turn tokens correspond by their role. The map is
one to one, so that the kept tokens partition the student's vocabulary: of several tokens with equal bytes
(`A` and `<0x41>`) the ordinary one is taken, and the other's probability counts as "other". A first token that
a template's blank is joined to (`▁Oslo` behind `[/INST]`) corresponds by its bytes behind that blank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    first: Mapping[tuple[bool, bool], np.ndarray] = field(default_factory=dict)  # other maps for first tokens

    @property
    def share(self) -> float:
        return self.reached / self.student_size

    @property
    def unmapped(self) -> np.ndarray:
        """[student ids] bool: the student's tokens that stand for no token of the teacher."""
        return self._missed(self.to_student)

    def others(self, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
        """The same for each of some positions, [positions, student ids], or for all of them alike, [1, student ids]."""
        if not self.first:
            return self.unmapped[None]
        missed = {place: self._missed(to_student) for place, to_student in self.first.items()}
        return np.stack([missed.get((other == 0, own == 0), self.unmapped) for own, other in pairs])

    def _missed(self, to_student: np.ndarray) -> np.ndarray:
        lonely = np.ones(self.student_size, dtype=bool)
        lonely[to_student[to_student >= 0]] = False
        return lonely

    def __call__(self, teacher_ids: np.ndarray, pairs: Sequence[tuple[int, int]] = ()) -> np.ndarray:
        """Student ids of teacher ids of any shape, −1 where there is none.

        `pairs`: the positions (as `align` gives them) that the rows of teacher ids [m, k] are of.
        """
        mapped = self.to_student[teacher_ids]
        for place, to_student in self.first.items():
            rows = np.array([(other == 0, own == 0) == place for own, other in pairs], dtype=bool)
            if rows.any():
                mapped[rows] = to_student[teacher_ids[rows]]
        return mapped


def map_vocabulary(teacher: ChatTokenizer, student: ChatTokenizer) -> VocabularyMap:
    """Match two vocabularies by bytes."""
    to_student = _matches(teacher, student, b"", b"")
    first = {}
    for place in ((True, True), (True, False), (False, True)):
        gaps = teacher.gap * place[0], student.gap * place[1]
        if gaps[0] != gaps[1]:
            first[place] = _matches(teacher, student, *gaps)
    said = {spelled for spelled in teacher.token_bytes if spelled}
    reached = 1 + sum(spelled in said for spelled in student.token_bytes if spelled)
    return VocabularyMap(to_student, reached, len(student.token_bytes), first)


def _matches(teacher: ChatTokenizer, student: ChatTokenizer, gap: bytes, student_gap: bytes) -> np.ndarray:
    """The student's id for each of the teacher's, or −1; by the bytes behind the blanks that they begin with."""
    by_bytes: dict[bytes, int] = {}
    for id in _ordinary_last(student):
        spelled = student.token_bytes[id] or b""
        if spelled.startswith(student_gap) and spelled != student_gap:
            by_bytes[spelled[len(student_gap) :]] = id
    to_student = np.full(len(teacher.token_bytes), -1, dtype=np.int64)
    taken: dict[int, int] = {}
    for id in _ordinary_last(teacher):
        spelled = teacher.token_bytes[id] or b""
        match = by_bytes.get(spelled[len(gap) :]) if spelled.startswith(gap) else None
        if match is not None:
            to_student[taken.get(match, id)] = -1
            to_student[id], taken[match] = match, id
    to_student[teacher.end_id] = student.end_id
    return to_student


def _ordinary_last(chat: ChatTokenizer) -> list[int]:
    """All ids, byte-fallback tokens first, so that ordinary tokens with the same bytes overrule them."""
    tokens = chat.tokenizer.convert_ids_to_tokens(range(len(chat.token_bytes)))
    return sorted(range(len(tokens)), key=lambda i: (not is_byte_token(tokens[i] or ""), -i))


def align(teacher: Sequence[Span], student: Sequence[Span]) -> list[tuple[int, int]]:
    """Pairs (student position, teacher position) that begin at the same byte of the target.

    Both span lists cover the target without gap or overlap; empty spans at its ends are a template's blanks
    and, last, the end of turn.
    """
    at: dict[int, list[int]] = defaultdict(list)
    own: dict[int, list[int]] = defaultdict(list)
    for spans, places in ((teacher, at), (student, own)):
        for index, (start, _) in enumerate(spans):
            places[start].insert(0, index)
    return sorted(pair for start, mine in own.items() if start in at for pair in zip(mine, at[start], strict=False))

"""What does the KD1 loss cost across two tokenizers, against the loss of TRL's GOLD?

Ours compares, at the positions where both tokenizations of the answer have a boundary, the teacher's cached top 64
in the student's tokens of equal bytes (`byte_map`); `hybrid` adds the sorted probabilities of the rest. GOLD's
`ULDLoss` compares whole vocabularies, sorted, with tokens between common boundaries merged; its hybrid compares
tokens of equal names and sorts the rest only. Each is timed against ours of its kind.

A step goes from the student's hidden states through head and loss and back to the gradients of both. GOLD's has
the teacher's head in it, as it needs the teacher's logits; nobody's has the teacher's backbone. `GOLDTrainer` takes
both models' logits at all positions, which is what is timed; what its loss would cost with logits at the answers
alone is given too, without a target. Ours includes the cross-entropy, GOLD's does not by default.

The objectives differ, so there is no equality to assert, but both must be zero for two models that are the same and
positive for two that are not. Tokenizers, answers and their alignment are real, made on the spot as the offline
models' are; the vocabularies are filled up with names to the size of TinyLlama's and Qwen2.5's, three quarters of
the student's in both. GOLD is told the counterparts that we find by bytes, as it compares names.

    python benchmarks/cross_tokenizer.py [--quick] [--repeats 2]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from types import SimpleNamespace

import numpy as np
import torch
from kd_loss import ALPHA, IGNORED, KEPT, TEMPERATURE, Readout, Shape, batch_of, distilled, soft_targets, step
from measure import Finding, Work, arguments, asked, ratio, show, side_by_side, spread
from peers import installed, left_out, peer
from torch.nn import functional as F

from kdsuite.extras.offline.corpora import passages, pretraining_text
from kdsuite.extras.offline.tokenizers import byte_level_tokenizer, sentencepiece_tokenizer
from kdsuite.methods.alignment import VocabularyMap, align, map_vocabulary
from kdsuite.methods.targets import SoftTargets
from kdsuite.tasks.batching import Batch
from kdsuite.tasks.encoding import ChatTokenizer

LENGTHS = range(2, 9)  # supervised tokens of an answer, end of turn included
SHARED = 0.75  # of the names that fill up the student's vocabulary, also in the teacher's
NOTHING = 1e-4  # what a loss of two equal models may be, as a share of that of two different ones


@dataclass(frozen=True)
class Size:
    batch: int
    length: int  # tokens of an example, of both models
    student: int  # vocabulary
    teacher: int
    width: int  # of both


FULL, QUICK = Size(3, 350, 32_000, 151_665, 256), Size(3, 40, 2_000, 3_000, 32)


@dataclass(frozen=True)
class Told:
    """An answer as one model reads it, behind a prompt: [B, S] ids, labels, and [B, S, 2] bytes of the answer."""

    ids: torch.Tensor
    labels: torch.Tensor  # the id itself where it is the answer's, else IGNORED
    bytes: torch.Tensor
    first: int  # position of the answer's first token

    @classmethod
    def of(cls, chat: ChatTokenizer, answers: Sequence[str], length: int) -> Told:
        spelled = [chat.answer(answer) for answer in answers]
        first = length - max(len(answer.target_ids) for answer in spelled) - 1
        ids = torch.zeros(len(answers), length, dtype=torch.long)
        labels, spans = torch.full_like(ids, IGNORED), torch.zeros(*ids.shape, 2, dtype=torch.long)
        for row, answer in enumerate(spelled):
            own = answer.target_ids
            told = slice(first, first + len(own) + 1)
            ids[row, told] = labels[row, told] = torch.tensor([*own, chat.end_id])
            spans[row, told] = torch.tensor(answer.spans)
        return cls(ids, labels, spans, first)

    def spans(self, row: int) -> list[tuple[int, int]]:
        return [(int(a), int(b)) for a, b in self.bytes[row][self.labels[row] != IGNORED]]


@dataclass(frozen=True)
class Problem:
    """The same answers for all sides."""

    student: Readout
    told: Told
    batch: Batch  # ours
    soft: SoftTargets  # ours: the cache's arrays at the m aligned positions
    vocabulary: VocabularyMap
    heard: Told  # GOLD: as the teacher reads it
    states: torch.Tensor  # GOLD: [B, S, H] the teacher's
    head: torch.Tensor  # GOLD: [V of the teacher, H] the teacher's


def problem(size: Size, chats: tuple[ChatTokenizer, ChatTokenizer], same: bool = False) -> Problem:
    """Random states and heads and real answers; with `same` the teacher is the student itself."""
    torch.manual_seed(0)
    own, other = (chats[0], chats[0]) if same else chats
    answers = _answers(chats[0], size.batch)
    told, heard = (Told.of(chat, answers, size.length) for chat in (own, other))
    lengths = (told.labels != IGNORED).sum(-1).tolist()
    student = Readout(Shape("", size.length, tuple(lengths), size.student, size.width))
    vocabulary = _filled(own, other, size.student, size.student if same else size.teacher)
    if same:
        states, weight = student.states.detach(), student.head.weight.detach()
    else:
        states = torch.randn(size.batch, size.length, size.width)
        weight = 3 * torch.randn(size.teacher, size.width) / size.width**0.5
    rows, columns = (told.labels != IGNORED).nonzero(as_tuple=True)
    batch = batch_of(answers, told.ids, rows, columns - 1, told.ids[rows, columns])
    positions, asked, start = [], [], 0
    for row, length in enumerate(lengths):
        for mine, its in align(heard.spans(row), told.spans(row)):
            positions.append(start + mine)
            asked.append((row, heard.first - 1 + its))
        start += length
    kept = soft_targets(states[tuple(torch.tensor(asked).T)] @ weight.T, KEPT)
    assert kept.ids is not None
    mapped = torch.from_numpy(vocabulary(kept.ids.numpy()))  # in the student's tokens
    soft = replace(kept, positions=torch.tensor(positions), ids=mapped)
    return Problem(student, told, batch, soft, vocabulary, heard, states, weight)


def tokenizers() -> tuple[ChatTokenizer, ChatTokenizer]:
    """The student's and the teacher's, of the kinds of TinyLlama and Qwen2.5."""
    texts = pretraining_text(300, seed=7)
    return ChatTokenizer(sentencepiece_tokenizer(texts, 600)), ChatTokenizer(byte_level_tokenizer(texts, 700))


def _answers(chat: ChatTokenizer, count: int) -> list[str]:
    """A draw in which a few positions are not aligned, as between TinyLlama and Qwen2.5 on SQuAD."""
    texts = dict.fromkeys(str(row["answer"]) for row in passages(200, seed=1))
    return Random(2).sample([text for text in texts if len(chat.answer(text).target_ids) + 1 in LENGTHS], count)


def _filled(student: ChatTokenizer, teacher: ChatTokenizer, own: int, other: int) -> VocabularyMap:
    """The map of two tokenizers whose vocabularies are filled up to `own` and `other` tokens."""
    real = map_vocabulary(teacher, student).to_student
    first = len(student.token_bytes)
    shared = own - first if student is teacher else int(SHARED * (own - first))
    to_student = np.full(other, -1, dtype=np.int64)
    to_student[: len(real)] = real
    to_student[len(real) : len(real) + shared] = np.arange(first, first + shared)
    return VocabularyMap(to_student, int((to_student >= 0).sum()), own)


def ours(how: str, given: Problem, alpha: float = ALPHA) -> torch.Tensor:
    unmapped = torch.from_numpy(given.vocabulary.unmapped)
    return distilled(given.student, given.batch, given.soft, alpha, how=how, unmapped=unmapped)


def gold(loss: Callable[..., torch.Tensor], given: Problem, answers_only: bool = False) -> torch.Tensor:
    """As `GOLDTrainer.compute_loss` calls it, with logits at all positions; or at the answers' alone."""
    own, other = (told.first if answers_only else 0 for told in (given.told, given.heard))
    logits = given.student.head(given.student.states[:, own:])
    with torch.no_grad():
        teacher = F.linear(given.states[:, other:], given.head)
    return loss(
        logits,
        teacher,
        given.told.labels[:, own:],
        given.heard.labels[:, other:],
        given.told.ids[:, own:],
        given.heard.ids[:, other:],
        given.told.bytes[:, own:],
        given.heard.bytes[:, other:],
    )


def uld_loss(vocabulary: VocabularyMap, hybrid: bool) -> Callable[..., torch.Tensor]:
    """GOLD's loss with the defaults of `GOLDConfig`, but for our temperature and a forward KL in its hybrid."""
    settings = SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=TEMPERATURE,
        uld_teacher_temperature=TEMPERATURE,
        uld_skip_student_eos=True,
        uld_skip_teacher_eos=True,
        use_extended_uld=True,
        uld_token_merge_strategy="observed",
        uld_use_hybrid_loss=hybrid,
        uld_hybrid_matched_weight=None,
        uld_hybrid_unmatched_weight=None,
        beta=0.0,
    )
    student = {f"student {i}": i for i in range(vocabulary.student_size)}
    mapped = enumerate(vocabulary.to_student.tolist())
    teacher = {f"student {i}" if i >= 0 else f"teacher {its}": its for its, i in mapped}
    named = [SimpleNamespace(get_vocab=lambda names=names: names) for names in (student, teacher)]
    return peer("trl.experimental.gold.gold_trainer", "ULDLoss")(settings, *named)


Loss = Callable[[Problem], torch.Tensor]


def losses(vocabulary: VocabularyMap, alpha: float = ALPHA) -> dict[str, Loss]:
    """Ours, and those of GOLD if it is installed; building one of these takes a while, so it is done once."""
    found: dict[str, Loss] = {how: partial(ours, how, alpha=alpha) for how in ("byte_map", "hybrid")}
    if installed("trl"):
        for name, hybrid in (("TRL GOLD", False), ("TRL GOLD hybrid", True)):
            loss = uld_loss(vocabulary, hybrid)
            found[name] = partial(gold, loss)
            found[f"{name}, answers only"] = partial(gold, loss, answers_only=True)
    return found


def own_kind(name: str) -> str:
    return "hybrid" if "hybrid" in name else "byte_map"


def assert_sound(size: Size, chats: tuple[ChatTokenizer, ChatTokenizer]) -> None:
    """Every loss is zero for two equal models, and positive for two different ones."""
    equal, unequal = problem(size, chats, same=True), problem(size, chats)
    zero = {name: float(loss(equal).detach()) for name, loss in losses(equal.vocabulary, alpha=0.0).items()}
    for name, loss in losses(unequal.vocabulary, alpha=0.0).items():
        value = float(loss(unequal))
        assert value > 0, f"{name} is {value:.1e} for different models"
        assert abs(zero[name]) < NOTHING * value, f"{name} is {zero[name]:.1e} for equal models"


def compare(given: Problem, repeats: int) -> tuple[list[list[str]], list[Finding]]:
    """A row per loss: time, and how it compares to ours of its kind; the ratios as findings."""
    steps: dict[str, Work] = {name: partial(step, loss, given) for name, loss in losses(given.vocabulary).items()}
    for how in ("byte_map", "hybrid"):
        steps[how]()  # the others take long enough that a first time counts for nothing
    times = side_by_side(steps, repeats, warm=True)
    rows, findings = [], []
    for name in steps:
        slow, fast = times[name].cpu, times[own_kind(name)].cpu
        rows.append([name, spread(slow), spread(times[name].wall), own_kind(name), ratio(slow, fast)])
        if name != own_kind(name):
            goal = {} if "answers only" in name else {"at_least": 10.0}
            what = f"cross-tokenizer KD1 loss and gradients, {own_kind(name)}"
            findings.append(Finding.of_ratio(what, name, "CPU time", slow, fast, **goal))
    return rows, findings


def main() -> None:
    options = asked(arguments(__doc__, 2))
    if not installed("trl"):
        print(left_out("trl"))
    size, chats = QUICK if options.quick else FULL, tokenizers()
    assert_sound(QUICK, chats)
    print("All losses are zero for two equal models and positive for two different ones")
    given = problem(size, chats)
    print(
        f"{size.batch} × {size.length} tokens, vocabularies {size.student:,} and {size.teacher:,}, width {size.width}; "
        f"{len(given.batch.targets)} supervised positions of the student, {len(given.soft.positions)} aligned; "
        f"answers: {', '.join(given.batch.ids)}",
        flush=True,
    )
    rows, findings = compare(given, options.repeats)
    show(options, ("loss", "CPU ms", "wall ms", "against ours", "CPU ratio"), rows, findings)


if __name__ == "__main__":
    main()

"""Drawn entries stand for the whole distribution: right on average, which the likeliest tokens alone are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdsuite.methods.alignment import VocabularyMap, map_vocabulary
from kdsuite.methods.kd1 import Kd1Settings
from kdsuite.methods.targets import TeacherTargets, suited
from kdsuite.methods.terms import Divergence, Seen
from kdsuite.models.forward import supervised_logits
from kdsuite.tasks.batching import collate
from kdsuite.tasks.encoding import Encoded, encode
from kdsuite.tasks.example import task_of
from kdsuite.teacher.base import Record, Teacher
from kdsuite.teacher.cached import build_cache
from kdsuite.teacher.local import OutputSettings, _distribution, _drawn, ask, draw

KINDS = ("sampled", "topk_sampled")
POSITIONS, V, K, TIMES = 3, 40, 8, 400


class Dense(Teacher):
    """Says the same at the positions of every example, as it is kept; what is drawn is each example's own."""

    def __init__(self, kind: str, logits: torch.Tensor, temperature: float, k: int = K):
        self.kind, self.logits, self.keep = kind, logits, OutputSettings(k, temperatures=(temperature,))

    @property
    def temperatures(self) -> tuple[float, ...]:
        return (1.0, *self.keep.temperatures)

    def outputs(self, examples: Sequence[Encoded]) -> list[Record]:
        logits = self.logits.repeat(len(examples), 1)
        rows = torch.arange(len(examples)).repeat_interleave(POSITIONS)
        flat = _distribution(logits, self.keep)
        flat |= _drawn(self.kind, logits, rows, examples, flat, self.temperatures)
        spans = {"spans": np.array(examples[0].spans)}
        return [{name: v[rows == i].numpy() for name, v in flat.items()} | spans for i in range(len(examples))]


def example(id: str) -> Encoded:
    every = list(range(POSITIONS))
    return Encoded(id, every, every, every, every, every, [0] * POSITIONS, [(i, i + 1) for i in every], 0)


def random(size: int, seed: int) -> torch.Tensor:
    return 2 * torch.randn(POSITIONS, size, generator=torch.Generator().manual_seed(seed))


def maps(kind: str) -> VocabularyMap:
    if kind == "one tokenizer":
        return VocabularyMap(np.arange(V), V, V)
    size = V - 5  # a student with fewer tokens, in another order; a quarter of the teacher's have no counterpart
    orders = [np.random.default_rng(seed).permutation(V) for seed in (0, 1)]
    one, first = (np.where(order < 3 * V // 4, order, -1) for order in orders)
    return VocabularyMap(one, 3 * V // 4, size, {(True, True): first} if kind == "another first map" else {})


def dense_gradient(p: torch.Tensor, q: torch.Tensor, vocabulary: VocabularyMap, temperature: float) -> torch.Tensor:
    """Of T²·KL over {every token with a counterpart, all others}, by plain autograd, with respect to q's logits."""
    logits = q.double().requires_grad_()
    value = torch.zeros((), dtype=torch.float64)
    for row, teacher, student in zip(range(POSITIONS), p, logits, strict=True):
        to_student = vocabulary.first.get((row == 0, row == 0), vocabulary.to_student)
        there = torch.from_numpy(to_student >= 0)
        shares, own = (teacher.double() / temperature).softmax(-1), (student / temperature).softmax(-1)
        mapped = own[torch.from_numpy(to_student)[there]]
        pairs = [(shares[there], mapped)]
        if not there.all():
            pairs.append((shares[~there].sum()[None], 1 - mapped.sum()[None]))
        value = value + temperature**2 * sum((a * (a / b).log()).sum() for a, b in pairs)
    [gradient] = torch.autograd.grad(value, logits)
    return gradient


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("map_kind", ["one tokenizer", "two tokenizers", "another first map"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_gradient_is_that_of_the_whole_vocabulary_and_truncations_is_not(kind, map_kind, temperature) -> None:
    vocabulary, teacher = maps(map_kind), random(V, seed=0)
    student = random(vocabulary.student_size, seed=1)
    examples = [example(f"{i}") for i in range(TIMES)]
    soft = TeacherTargets(Dense(kind, teacher, temperature), vocabulary, temperature, (), kind).of(examples)
    logits = student.repeat(TIMES, 1).requires_grad_()
    Divergence(1.0, temperature)(Seen(logits, torch.empty(0)), soft).sum().backward()
    assert logits.grad is not None
    gradients = logits.grad.double().view(TIMES, *student.shape)
    full = dense_gradient(teacher, student, vocabulary, temperature)
    error = (gradients.var(0).sum() / TIMES).sqrt()  # of the mean, as a distance
    assert (gradients.mean(0) - full).norm() < 3 * error < 0.2 * full.norm()

    truncated = teacher.masked_fill(teacher < teacher.topk(K).values[:, -1:], float("-inf"))
    renormalised = dense_gradient(truncated.clamp_min(-100), student, vocabulary, temperature)
    assert (renormalised - full).norm() > 3 * error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, V])
def test_one_entry_is_a_drawn_one_and_as_many_as_there_are_equal_tokens_are_all_of_them(kind: str, k: int) -> None:
    teacher, student = (random(V, seed=2), torch.zeros(POSITIONS, V))[:: 1 if k == 1 else -1]
    soft = TeacherTargets(Dense(kind, teacher, 2.0, k), maps("one tokenizer"), 2.0, (), kind).of([example("a")])
    assert soft.ids is not None and soft.ids.shape == (POSITIONS, k)
    value = Divergence(1.0, 2.0)(Seen(student, torch.empty(0)), soft)
    p, q = ((z / 2.0).log_softmax(-1) for z in (teacher, student))
    expected = (p - q).gather(-1, soft.ids)[:, 0] if k == 1 else (p.exp() * (p - q)).sum(-1)
    torch.testing.assert_close(value, 4.0 * expected, atol=1e-5, rtol=1e-5)


def test_tokens_are_drawn_as_often_as_they_are_likely_and_exact_ones_never() -> None:
    logits, exact = random(V, seed=4)[:1], torch.tensor([[3, 7]])
    uniform = torch.from_numpy(np.random.default_rng(0).random((TIMES, K)))
    ids = draw(logits.expand(TIMES, -1), exact.expand(TIMES, -1), uniform)
    counts = torch.nn.functional.one_hot(ids, V).sum(1).double()  # [times, V]
    expected = K * logits[0].double().index_fill(0, exact[0], float("-inf")).softmax(-1)
    error = (counts.var(0).sum() / TIMES).sqrt()
    assert (counts.mean(0) - expected).norm() < 3 * error
    assert counts[:, exact[0]].sum() == 0


@pytest.mark.slow
def test_draws_at_the_temperature_are_less_noisy_than_weighted_ones_at_1() -> None:
    z = 3 * torch.randn(2000, generator=torch.Generator().manual_seed(0)).double()
    p, soft = z.softmax(-1), (z / 2).softmax(-1)
    uniform = torch.from_numpy(np.random.default_rng(0).random((TIMES, K)))
    none = torch.empty(TIMES, 0, dtype=torch.long)
    at_one, at_two = (draw((z / t).expand(TIMES, -1), none, uniform) for t in (1, 2))
    estimates = [torch.zeros(TIMES, 2000).double().scatter_add(-1, ids, (soft / from_)[ids] / K)
                 for ids, from_ in ((at_one, p), (at_two, soft))]  # fmt: skip
    weighted, drawn = ((estimate - soft).square().sum(-1).mean().sqrt() for estimate in estimates)
    assert weighted > 3 * drawn


def test_a_certain_teacher_leaves_draws_of_no_weight() -> None:
    """Where the rest has no probability in float64, tokens are drawn from it all the same, and count nothing."""
    logits = torch.zeros(POSITIONS, V)
    logits[:, 5] = 900.0
    teacher = Dense("topk_sampled", logits, 1.5)
    soft = TeacherTargets(teacher, maps("one tokenizer"), 1.0, (), "topk_sampled").of([example("a")])
    value = Divergence(1.0, 1.0)(Seen(random(V, seed=5), torch.empty(0)), soft)
    expected = -random(V, seed=5).log_softmax(-1)[:, 5]
    torch.testing.assert_close(value, expected)
    ends = torch.tensor([[0.0, 1 - 2**-53]], dtype=torch.float64)
    assert draw(logits[:1], torch.tensor([[5]]), ends).tolist() == [[0, V - 1]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_its_teacher_has_no_loss_and_another_one_has(
    tmp_path: Path, kind: str, squad_settings, qwen_model, qwen_chat, llama_model, llama_chat
) -> None:
    task, keep = task_of("squad", squad_settings), OutputSettings(16, temperatures=(2.0,), draws=(kind,))
    texts = task.load("train")[:8]
    examples, students = (encode(task, chat, texts) for chat in (qwen_chat, llama_chat))
    key = {"outputs": keep.as_key()}
    cache = build_cache(tmp_path, key, examples, lambda some: ask(qwen_model, qwen_chat, some, keep), 4)
    size = len(qwen_chat.token_bytes)
    same = VocabularyMap(np.arange(size), size, size)
    own = loss(qwen_model, qwen_chat, examples, TeacherTargets(cache, same, 2.0, (), kind))
    other = TeacherTargets(cache, map_vocabulary(qwen_chat, llama_chat), 2.0, (), kind)
    assert own.abs().max() < 1e-4
    assert loss(llama_model, llama_chat, students, other).mean() > 0.01


@torch.no_grad()
def loss(model, chat, examples: Sequence[Encoded], targets: TeacherTargets) -> torch.Tensor:
    batch, soft = collate(examples, chat.pad_id), targets.of(examples)
    logits, _ = supervised_logits(model, batch, batch.on_target, len(chat.token_bytes), ())
    return Divergence(1.0, 2.0)(Seen(logits, torch.empty(0), soft.positions), soft)


@pytest.mark.parametrize(("tail", "entries"), [(0.01, "topk_tail"), (0.2, "topk_sampled"), (0.7, "sampled")])
def test_what_suits_is_told_from_the_mean_tail_at_the_temperature(tmp_path: Path, tail: float, entries: str) -> None:
    tails = np.log(np.array([[0.999, 0.5 * tail], [0.001, 1.5 * tail]], dtype=np.float32))
    record = {"topk_ids": np.zeros((2, 1), np.int32), "log_tail": tails, "spans": np.array([(0, 1), (1, 1)])}
    key = {"outputs": OutputSettings(1, temperatures=(2.0,)).as_key()}
    cache = build_cache(tmp_path, key, [example("a"), example("b")], lambda some: [record] * len(some), 1)
    assert cache.tail(2.0) == pytest.approx(tail)
    assert suited(cache.tail(2.0)) == entries


@pytest.mark.parametrize("targets", ["sampled", "topk_sampled", "auto"])
@pytest.mark.parametrize(
    "other",
    [{"divergence": "reverse_kl"}, {"cross_tokenizer": "hybrid"}, {"standardise": True}, {"divergence": "taid"}],
)
def test_what_draws_do_not_estimate_is_refused_in_a_line(targets: str, other: dict) -> None:
    [(name, value)] = other.items()
    with pytest.raises(
        ValidationError, match=f"targets {targets} with {name} {value}: .* set {name} to .*, or targets"
    ):
        Kd1Settings(targets=targets, **other)  # pyright: ignore[reportArgumentType]
    assert Kd1Settings(**other).targets == "topk_tail"

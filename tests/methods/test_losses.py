"""Each loss is what its equation says: against plain dense arithmetic, at its limits, by its gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdsuite.methods.divergences import forward_kl
from kdsuite.methods.losses import (
    cross_entropy,
    feature_distance,
    student_partition,
    student_sorted,
    teacher_partition,
    teacher_tempered,
    tempered,
)
from kdsuite.models.forward import LOG_NOTHING
from kdsuite.teacher.local import OutputSettings, _distribution

N, V, K = 12, 50, 8


@pytest.fixture
def teacher_logits() -> torch.Tensor:
    return torch.randn(N, V, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def student_logits() -> torch.Tensor:
    return torch.randn(N, V, generator=torch.Generator().manual_seed(1)) * 3


def cached(logits: torch.Tensor, temperature: float, k: int = K):
    """The teacher at T as it comes out of what the cache keeps of dense logits: kept tokens, tail, their ids."""
    keep = OutputSettings(k, "float32", (temperature,), (), 0)
    kept = {name: torch.as_tensor(values) for name, values in _distribution(logits, keep).items()}
    log_probs = teacher_tempered(kept["topk_logprobs"], kept["logsumexp"][:, 0], kept["logsumexp"][:, 1], temperature)
    return log_probs, kept["log_tail"][:, 1], kept["topk_ids"].long()


def dense_partition(logits: torch.Tensor, ids: torch.Tensor, temperature: float) -> torch.Tensor:
    """The plain way: the full softmax, gathered, and one minus the sum."""
    p = (logits.double() / temperature).softmax(-1)
    kept = p.gather(-1, ids)
    return torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1).log()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 8.0])
def test_kl_from_the_cache_equals_the_dense_kl_over_kept_tokens_and_other(
    teacher_logits, student_logits, temperature
) -> None:
    kept, tail, ids = cached(teacher_logits, temperature)
    teacher = teacher_partition(kept, tail, ids)
    student = student_partition(student_logits, ids, temperature)
    p, q = (dense_partition(z, ids, temperature) for z in (teacher_logits, student_logits))
    expected = (p.exp() * (p - q)).sum(-1)
    torch.testing.assert_close(forward_kl(teacher, student).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 8.0])
def test_a_student_equal_to_the_teacher_has_no_kd_loss_at_any_temperature(teacher_logits, temperature) -> None:
    kept, tail, ids = cached(teacher_logits, temperature)
    teacher = teacher_partition(kept, tail, ids)
    student = student_partition(teacher_logits, ids, temperature)
    torch.testing.assert_close(forward_kl(teacher, student), torch.zeros(N), atol=1e-6, rtol=0)


def test_kl_is_never_negative_and_grows_with_the_number_of_kept_tokens(teacher_logits, student_logits) -> None:
    values = []
    for k in (1, 4, 16, V):
        kept, tail, ids = cached(teacher_logits, 2.0, k)
        teacher = teacher_partition(kept, tail, ids)
        values.append(forward_kl(teacher, student_partition(student_logits, ids, 2.0)))
    assert all((v >= -1e-6).all() for v in values)
    for coarse, fine in zip(values, values[1:], strict=False):  # data-processing inequality
        assert (fine >= coarse - 1e-5).all()
    full = F.kl_div(tempered(student_logits, 2.0), tempered(teacher_logits, 2.0), log_target=True, reduction="none")
    torch.testing.assert_close(values[-1], full.sum(-1), atol=1e-4, rtol=1e-4)


def test_the_gradient_equals_that_of_the_dense_kl(teacher_logits, student_logits) -> None:
    kept, tail, ids = cached(teacher_logits, 2.0)
    teacher = teacher_partition(kept, tail, ids)
    ours = student_logits.clone().requires_grad_()
    forward_kl(teacher, student_partition(ours, ids, 2.0)).sum().backward()
    dense = student_logits.clone().requires_grad_()
    p, q = dense_partition(teacher_logits, ids, 2.0), dense_partition(dense, ids, 2.0)
    (p.exp() * (p - q)).sum().backward()
    torch.testing.assert_close(ours.grad, dense.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, K, V])
def test_the_gradient_by_hand_is_autograds_own(teacher_logits, student_logits, k, dtype) -> None:
    ids = teacher_logits.topk(k).indices
    ids[::2, -1] = -1  # a token without counterpart, in every other position
    weights = torch.rand(N, k + 1, generator=torch.Generator().manual_seed(2))

    def by_autograd(logits: torch.Tensor) -> torch.Tensor:
        taken = (ids[..., None] == torch.arange(V)).any(1)  # [n, V]
        scaled = logits.double() / 2.0
        others = scaled.masked_fill(taken, float("-inf")).exp().sum(-1, keepdim=True).log()
        kept = scaled.gather(-1, ids.clamp_min(0)).masked_fill(ids < 0, float("-inf"))
        return torch.cat([kept, others], -1).log_softmax(-1).clamp_min(LOG_NOTHING)

    gradients = []
    for partition in (by_autograd, lambda logits: student_partition(logits, ids, 2.0)):
        logits = student_logits.to(dtype, copy=True).requires_grad_()
        (partition(logits) * weights).sum().backward()
        assert logits.grad is not None and logits.grad.dtype == dtype
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_unmapped_tokens_count_as_other_on_both_sides(teacher_logits, student_logits) -> None:
    log_probs, tail, ids = cached(teacher_logits, 2.0)
    holes = ids.clone()
    holes[:, 2] = -1
    teacher = teacher_partition(log_probs, tail, holes)
    student = student_partition(student_logits, holes, 2.0)
    torch.testing.assert_close(teacher.exp().sum(-1), torch.ones(N), atol=1e-5, rtol=0)
    torch.testing.assert_close(student.exp().sum(-1), torch.ones(N), atol=1e-5, rtol=0)
    assert (teacher[:, 2] == LOG_NOTHING).all()
    kept = [i for i in range(K) if i != 2]
    p, q = (dense_partition(z, ids[:, kept], 2.0) for z in (teacher_logits, student_logits))
    expected = (p.exp() * (p - q)).sum(-1).float()
    torch.testing.assert_close(forward_kl(teacher, student), expected, atol=1e-5, rtol=1e-5)


def test_a_certain_teacher_gives_the_cross_entropy(student_logits) -> None:
    targets = torch.arange(N)
    certain = F.one_hot(targets, V) * 200.0
    kept, tail, ids = cached(certain, 1.0, 4)
    teacher = teacher_partition(kept, tail, ids)
    loss = forward_kl(teacher, student_partition(student_logits, ids, 1.0))
    torch.testing.assert_close(loss, cross_entropy(student_logits, targets), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gap", [10.0, 30.0, 60.0])
def test_a_tail_far_below_rounding_keeps_its_size(gap) -> None:
    """1 − Σ would be 0 in float32, and a reverse KL would take the student's tail for impossible."""
    logits = torch.zeros(1, V)
    logits[:, :K] = gap
    _, tail, _ = cached(logits, 1.0)
    expected = (torch.tensor(V - K).log() - torch.tensor(K).log() - gap).item()
    assert tail.item() == pytest.approx(expected, abs=1e-3)


def test_rounding_of_a_half_precision_cache_leaves_a_distribution(teacher_logits) -> None:
    keep = OutputSettings(K, "float16", (2.0,), (), 0)
    kept = _distribution(teacher_logits, keep)
    assert kept["topk_logprobs"].dtype == torch.float16
    log_probs = teacher_tempered(kept["topk_logprobs"], kept["logsumexp"][:, 0], kept["logsumexp"][:, 1], 2.0)
    teacher = teacher_partition(log_probs, kept["log_tail"][:, 1], kept["topk_ids"].long())
    torch.testing.assert_close(teacher.exp().sum(-1), torch.ones(N), atol=1e-6, rtol=0)
    exact = dense_partition(teacher_logits, kept["topk_ids"].long(), 2.0).float()
    torch.testing.assert_close(teacher, exact, atol=4e-3, rtol=0)


def test_sorted_probabilities_are_those_of_the_likeliest_tokens(student_logits) -> None:
    p = (student_logits.double() / 2.0).softmax(-1).sort(-1, descending=True).values
    found = student_sorted(student_logits, K, 2.0).exp().double()
    torch.testing.assert_close(found[:, :K], p[:, :K], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[:, K], p[:, K:].sum(-1), atol=1e-6, rtol=0)


def test_sorted_probabilities_among_some_tokens_and_of_fewer_than_k(student_logits) -> None:
    some = torch.zeros(V, dtype=torch.bool)
    some[[3, 7]] = True
    found = student_sorted(student_logits, K, 1.0, among=some)
    p = student_logits.softmax(-1)
    torch.testing.assert_close(found[:, :2].exp(), p[:, [3, 7]].sort(-1, descending=True).values)
    assert (found[:, 2:K] == LOG_NOTHING).all()
    few = student_sorted(student_logits[:, :5], K, 1.0)
    assert few.shape == (N, K + 1) and (few[:, 5:] == LOG_NOTHING).all()


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_feature_distance_is_zero_at_equality_and_does_not_depend_on_width(kind) -> None:
    states = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
    other = torch.randn(5, 16, generator=torch.Generator().manual_seed(3))
    assert feature_distance(states, states, kind).abs().max() < 1e-6
    once = feature_distance(states, other, kind)
    twice = feature_distance(states.repeat(1, 2), other.repeat(1, 2), kind)
    assert (once > 0).all()
    torch.testing.assert_close(once, twice)


def test_mse_sees_scale_and_cosine_does_not() -> None:
    states = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
    assert feature_distance(3 * states, states, "cosine").abs().max() < 1e-6
    torch.testing.assert_close(feature_distance(3 * states, states, "mse"), torch.full((5,), 4.0))

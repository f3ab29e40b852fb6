"""Each loss is what its equation says: against plain dense arithmetic, at its limits, by its gradient."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from kdsuite.methods.divergences import forward_kl, uld
from kdsuite.methods.kd1 import ULD_HOTTEST, Kd1Settings
from kdsuite.methods.losses import (
    cross_entropy,
    feature_distance,
    gram_distance,
    procrustes_distance,
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


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


UNPROJECTED = pytest.mark.parametrize("distance", [gram_distance, procrustes_distance])


@UNPROJECTED
@pytest.mark.parametrize("shape", [(20, 8), (6, 16)], ids=["more positions", "fewer positions"])
def test_geometry_does_not_see_orthogonal_transforms_scale_or_further_dimensions_of_nothing(distance, shape) -> None:
    states, other = random(0, *shape), random(1, *shape)
    turn = torch.linalg.qr(random(2, shape[1], shape[1])).Q
    padded = F.pad(states @ turn, (0, 5))
    for same in (states, states @ turn, 7 * states @ turn, padded):
        torch.testing.assert_close(distance(same, states).mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
        torch.testing.assert_close(distance(same, other).mean(), distance(states, other).mean(), atol=1e-5, rtol=1e-4)
    assert (distance(states, other) > 0).all() and distance(states, other).mean() <= 2


@pytest.mark.parametrize("kind", ["gram", "procrustes"])
def test_geometry_compares_different_widths_and_has_a_value_per_position(kind) -> None:
    value = feature_distance(random(0, 12, 8), random(1, 12, 20).bfloat16(), kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(feature_distance(random(0, 12, 8), random(1, 12, 20).bfloat16(), kind), value)
    assert value.shape == (12,) and value.dtype == torch.float32 and (value > 0).all()
    assert (
        feature_distance(random(0, 1, 8), random(1, 1, 20), kind).abs().max() < 1e-5
    )  # a single position has no geometry


@UNPROJECTED
@pytest.mark.parametrize(("own", "other"), [(8, 8), (6, 11), (11, 6)])
def test_value_and_gradient_of_geometry_are_those_of_the_dense_formula(distance, own: int, other: int) -> None:
    student, teacher = random(3, 9, own), random(4, 9, other)

    def dense(states: torch.Tensor) -> torch.Tensor:
        one, two = (side.double() / side.double().norm() for side in (states, teacher))
        if distance is gram_distance:
            grams = [side @ side.T for side in (one, two)]
            return (grams[0] / grams[0].norm() - grams[1] / grams[1].norm()).square().sum()
        return 2 - 2 * torch.linalg.svdvals(two.T @ one).sum()

    gradients, values = [], []
    for formula in (lambda states: distance(states, teacher).mean(), dense):
        states = student.clone().requires_grad_()
        values.append(formula(states))
        values[-1].backward()
        gradients.append(states.grad)
    torch.testing.assert_close(values[0].double(), values[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-3)


def test_geometry_is_learned_by_gradient_descent_without_a_projection() -> None:
    teacher = random(5, 30, 12)
    for kind in ("gram", "procrustes"):
        states = random(6, 30, 12).requires_grad_()
        optimizer = torch.optim.Adam([states], lr=0.05)
        first = feature_distance(states, teacher, kind).mean().item()
        for _ in range(200):
            optimizer.zero_grad()
            feature_distance(states, teacher, kind).mean().backward()
            optimizer.step()
        assert feature_distance(states, teacher, kind).mean().item() < 0.05 * first


def test_uld_of_64_tokens_keeps_the_direction_of_uld_as_published_up_to_the_hottest_temperature_that_is_allowed() -> (
    None
):
    """Within 45° on a power law over 8,192 tokens, as those of language models are; one step further it is not."""
    generator = torch.Generator().manual_seed(0)

    def logits(exponent: float) -> torch.Tensor:
        ranked = -exponent * torch.arange(1, 8193).log() + 0.5 * torch.randn(32, 8192, generator=generator)
        return ranked.gather(-1, torch.rand(32, 8192, generator=generator).argsort(-1))

    teacher, student = logits(1.4), logits(1.2)

    def cosine(temperature: float) -> float:
        p = (teacher / temperature).softmax(-1).sort(-1, descending=True).values
        cut = torch.cat([p[:, :64], p[:, 64:].sum(-1, keepdim=True)], -1).log()
        gradients = []
        for published in (True, False):
            z = student.clone().requires_grad_()
            if published:
                value = (p - (z / temperature).softmax(-1).sort(-1, descending=True).values).abs().sum(-1)
            else:
                value = uld(cut, student_sorted(z, 64, temperature))
            value.sum().backward()
            gradients.append(z.grad)
        return F.cosine_similarity(gradients[0], gradients[1], dim=-1).mean().item()

    assert cosine(1.0) > 0.99
    assert cosine(ULD_HOTTEST) > 0.707 > cosine(2 * ULD_HOTTEST)
    with pytest.raises(ValidationError, match="cross_tokenizer uld at temperature 4: of the kept tokens"):
        Kd1Settings(cross_tokenizer="uld")
    assert Kd1Settings(cross_tokenizer="uld", temperatures=(1.0, ULD_HOTTEST)).cross_tokenizer == "uld"

"""Each divergence: zero at equality, never negative, right at its limits, its gradient that of the dense formula."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsuite.methods.divergences import (
    Taid,
    adaptive_kl,
    divergence,
    forward_kl,
    interpolated,
    jensen_shannon,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    temperature_power,
    total_variation,
    uld,
)
from kdsuite.methods.kd1 import DivergenceKind
from kdsuite.models.forward import LOG_NOTHING

NAMES = tuple(get_args(DivergenceKind))


def distribution(seed: int, scale: float = 3.0, n: int = 6, m: int = 9) -> torch.Tensor:
    logits = torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return logits.log_softmax(-1)


def dense(name: str, p: torch.Tensor, q: torch.Tensor, beta: float) -> torch.Tensor:
    """The textbook formulas on probabilities, in float64."""
    kl = lambda a, b: (a * (a / b).log()).sum(-1)  # noqa: E731
    m = beta * p + (1 - beta) * q
    t = torch.tensor(0.4)
    r = p ** t.item() * q.detach() ** (1 - t).item()
    r = r / r.sum(-1, keepdim=True)
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: beta * kl(p, m) + (1 - beta) * kl(q, m),
        "skew_kl": lambda: kl(p, m),
        "skew_reverse_kl": lambda: kl(q, beta * q + (1 - beta) * p),
        "adaptive_kl": lambda: akl(p, q, kl),
        "total_variation": lambda: (p - q).abs().sum(-1) / 2,
        "taid": lambda: kl(r, q),
    }[name]()


def akl(p: torch.Tensor, q: torch.Tensor, kl) -> torch.Tensor:
    """Position by position: the fewest tokens that hold half of the teacher's probability, and the rest."""
    values = []
    for one, other in zip(p, q, strict=True):
        head, mass = set(), 0.0
        for token in one.argsort(descending=True).tolist():
            if mass >= 0.5:
                break
            head.add(token)
            mass += one[token].item()
        gap = (one - other).abs().detach().tolist()
        weight = sum(gap[i] for i in head) / sum(gap)
        values.append(weight * kl(one, other) + (1 - weight) * kl(other, one))
    return torch.stack(values)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_value_and_gradient_are_those_of_the_dense_formula(name: str, beta: float) -> None:
    teacher, logits = distribution(1), distribution(2).clone()
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = divergence(name, beta)(teacher, ours.log_softmax(-1))
    expected = dense(name, teacher.exp(), plain.softmax(-1), beta)
    torch.testing.assert_close(value, expected, atol=1e-10, rtol=1e-8)
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_zero_at_equality_also_where_probability_is_missing(name: str) -> None:
    p = distribution(3)
    p[:, 4] = LOG_NOTHING
    p = p - p.logsumexp(-1, keepdim=True)
    assert divergence(name, 0.3)(p, p).abs().max() < 1e-9


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    seeds=st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)),
    scale=st.floats(0.01, 30),
    beta=st.floats(0.01, 0.99),
)
def test_never_negative_and_positive_for_different_distributions(name, seeds, scale, beta) -> None:
    p, q = (distribution(seed, scale).float() for seed in seeds)
    value = divergence(name, beta)(p, q)
    assert (value > -1e-5).all() and value.isfinite().all()
    if seeds[0] != seeds[1] and scale > 0.5:
        assert value.max() > 1e-4


def test_jsd_tends_to_the_forward_kl_as_beta_goes_to_0_and_to_the_reverse_as_it_goes_to_1() -> None:
    p, q = distribution(4), distribution(5)
    torch.testing.assert_close(jensen_shannon(p, q, 1e-7) / 1e-7, forward_kl(p, q), atol=1e-3, rtol=1e-3)
    last = jensen_shannon(p, q, 1 - 1e-7) / 1e-7
    torch.testing.assert_close(last, reverse_kl(p, q), atol=1e-3, rtol=1e-3)


def test_jsd_is_symmetric_at_one_half_and_at_most_log_2() -> None:
    p, q = distribution(4, 20.0), distribution(5, 20.0)
    value = jensen_shannon(p, q, 0.5)
    torch.testing.assert_close(value, jensen_shannon(q, p, 0.5))
    assert (value <= torch.log(torch.tensor(2.0)) + 1e-9).all()


def test_skew_kl_tends_to_the_forward_kl_and_is_bounded() -> None:
    p, q = distribution(4), distribution(5)
    torch.testing.assert_close(skew_kl(p, q, 1e-9), forward_kl(p, q), atol=1e-5, rtol=1e-5)
    far = torch.full_like(q, LOG_NOTHING)
    far[:, 0] = 0.0
    assert (skew_kl(p, far, 0.1) <= -torch.log(torch.tensor(0.1)) + 1e-6).all()


def test_skew_reverse_kl_tends_to_the_reverse_kl_and_is_bounded() -> None:
    p, q = distribution(4), distribution(5)
    torch.testing.assert_close(skew_reverse_kl(p, q, 1e-9), reverse_kl(p, q), atol=1e-5, rtol=1e-5)
    far = torch.full_like(p, LOG_NOTHING)
    far[:, 0] = 0.0
    assert (skew_reverse_kl(far, q, 0.1) <= -torch.log(torch.tensor(0.1)) + 1e-6).all()


def test_adaptive_kl_is_the_forward_kl_where_only_the_head_differs_and_the_reverse_where_only_the_tail_does() -> None:
    p = torch.tensor([[0.3, 0.3, 0.2, 0.2]]).log()
    head, tail = torch.tensor([[0.2, 0.4, 0.2, 0.2]]).log(), torch.tensor([[0.3, 0.3, 0.1, 0.3]]).log()
    torch.testing.assert_close(adaptive_kl(p, head), forward_kl(p, head))
    torch.testing.assert_close(adaptive_kl(p, tail), reverse_kl(p, tail))


def test_adaptive_kl_at_equality_has_a_gradient_of_nothing() -> None:
    logits = distribution(3).requires_grad_()
    adaptive_kl(logits.detach().log_softmax(-1), logits.log_softmax(-1)).sum().backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-9


def test_taid_at_the_end_is_the_forward_kl_and_its_target_is_between_student_and_teacher() -> None:
    p, q = distribution(4), distribution(5)
    torch.testing.assert_close(forward_kl(interpolated(p, q, 1.0), q), forward_kl(p, q))
    torch.testing.assert_close(interpolated(p, q, 0.0), q)
    values = [forward_kl(interpolated(p, q, t), q) for t in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert all((a < b).all() for a, b in zip(values, values[1:], strict=False))


def test_taids_schedule_is_the_papers_algorithm() -> None:
    """Momentum of the relative fall, a step of at most 5e-4·(1 − t), never behind the line from 0.4 to 1."""
    taid, losses = Taid(), [2.0, 1.5, 1.6, 0.9, 0.9, 0.5, 0.4, 0.4]
    t, momentum, before, total = 0.4, 0.0, None, 4000
    for step, loss in enumerate(losses, start=1):
        if before is not None:
            momentum = 0.99 * momentum + 0.01 * (before - loss) / before
        t = min(1.0, max(0.4 + 0.6 * step / total, t + 5e-4 / (1 + 2.718281828459045**-momentum) * (1 - t)))
        before = loss
        taid.stepped(torch.tensor(loss), step / total)
        assert taid.t.item() == pytest.approx(t, abs=1e-6)
    assert 0.4 + 0.6 * len(losses) / total <= taid.t.item()
    taid.stepped(torch.tensor(0.4), 1.0)
    assert taid.t.item() == 1.0


def test_total_variation_of_disjoint_distributions_is_1_and_uld_twice_that() -> None:
    one, other = (torch.tensor([row]).log().clamp_min(LOG_NOTHING) for row in ([1.0, 0.0], [0.0, 1.0]))
    assert total_variation(one, other).item() == pytest.approx(1.0)
    assert uld(one, other).item() == pytest.approx(2.0)


@pytest.mark.parametrize("name", NAMES)
def test_the_power_of_t_keeps_the_size_of_the_gradient(name: str) -> None:
    """Gradients at high temperatures, times T to the power, tend to a limit that is neither nothing nor infinite."""
    teacher, student = (torch.randn(4, 9, generator=torch.Generator().manual_seed(s)).double() for s in (6, 7))
    sizes = []
    for temperature in (32.0, 64.0):
        logits = student.clone().requires_grad_()
        pair = (teacher / temperature).log_softmax(-1), (logits / temperature).log_softmax(-1)
        value = temperature ** temperature_power(name) * divergence(name, 0.5)(*pair)
        value.sum().backward()
        assert logits.grad is not None
        sizes.append(logits.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)

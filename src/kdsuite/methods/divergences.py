"""Divergences of a student's distribution from its teacher's: one pure function each, same interface.

All take log-probabilities over the same m outcomes, teacher first, [n, m] each → [n] in nats (total variation
and ULD: in probability), float32, zero at equality, never negative. Where a share of probability is not there,
its log is LOG_NOTHING.

The gradient of a divergence between two distributions at temperature T shrinks as T grows, by 1/T² for those
that are smooth where the two are equal (Hinton et al. 2015, arXiv:1503.02531, section 2) and by 1/T for those
that are a sum of absolute differences; `temperature_power` says which, so that α means the same at every T.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def forward_kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) = Σ p (log p − log q), p the teacher, q the student: covers all that the teacher might say.

    Hinton et al. 2015 (arXiv:1503.02531).
    """
    share = teacher.exp()
    return torch.where(share > 0, share * (teacher - student), 0.0).sum(-1)


def reverse_kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """KL(q ‖ p): keeps the student away from what the teacher would not say.

    Gu et al. 2024, MiniLLM (arXiv:2306.08543).
    """
    return forward_kl(student, teacher)


def jensen_shannon(teacher: torch.Tensor, student: torch.Tensor, beta: float) -> torch.Tensor:
    """Generalised JSD: β·KL(p ‖ m) + (1 − β)·KL(q ‖ m) with m = β·p + (1 − β)·q, for 0 < β < 1.

    Divided by β it tends to the forward KL as β → 0, divided by 1 − β to the reverse KL as β → 1.
    Agarwal et al. 2024, GKD (arXiv:2306.13649), equation 1.
    """
    middle = _mixture(teacher, student, beta)
    return beta * forward_kl(teacher, middle) + (1.0 - beta) * forward_kl(student, middle)


def skew_kl(teacher: torch.Tensor, student: torch.Tensor, beta: float) -> torch.Tensor:
    """KL(p ‖ β·p + (1 − β)·q): the forward KL with a bounded gradient; β → 0 is the forward KL.

    Ko et al. 2024, DistiLLM (arXiv:2402.03898), where β is called α and 0.1 is advised.
    """
    return forward_kl(teacher, _mixture(teacher, student, beta))


def total_variation(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """½ Σ |p − q|, between 0 and 1. Wen et al. 2023, f-distillation (arXiv:2307.15190)."""
    return 0.5 * (teacher.exp() - student.exp()).abs().sum(-1)


def uld(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Σ |p₍ᵢ₎ − q₍ᵢ₎| over sorted probabilities, whatever tokens they belong to, between 0 and 2.

    The closed form of the Wasserstein distance with uniform costs: Boizard et al. 2025, Universal Logit
    Distillation (TMLR; arXiv:2402.12030), equation 5. Both must be sorted already.
    """
    return 2.0 * total_variation(teacher, student)


def _mixture(teacher: torch.Tensor, student: torch.Tensor, beta: float) -> torch.Tensor:
    """log(β·p + (1 − β)·q)."""
    return torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))


def divergence(name: str, beta: float) -> Divergence:
    """The divergence of a name; `beta` is the weight of the mixture where there is one."""
    return {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "jsd": partial(jensen_shannon, beta=beta),
        "skew_kl": partial(skew_kl, beta=beta),
        "total_variation": total_variation,
    }[name]


def temperature_power(name: str) -> int:
    """The power of T that keeps the size of a divergence's gradient: 1 for absolute differences, else 2."""
    return 1 if name == "total_variation" else 2

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
from torch import nn

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


def skew_reverse_kl(teacher: torch.Tensor, student: torch.Tensor, beta: float) -> torch.Tensor:
    """KL(q ‖ β·q + (1 − β)·p), at most −log β; β → 0 is the reverse KL.

    Ko et al. 2024, DistiLLM (arXiv:2402.03898), where β is called α and 0.1 is advised.
    """
    return skew_kl(student, teacher, beta)


def adaptive_kl(teacher: torch.Tensor, student: torch.Tensor, head: float = 0.5) -> torch.Tensor:
    """w·KL(p ‖ q) + (1 − w)·KL(q ‖ p), w the share of the teacher's head in Σ |p − q|, at each position.

    The head are the fewest of its likeliest outcomes that hold at least `head` of its probability: there the forward KL
    learns first, in the tail the reverse. The weights have no gradient. At equality, where they are 0 / 0, w is ½.
    Wu et al. 2024, AKL (arXiv:2404.02657), where `head` is called μ and is 0.5.
    """
    share, order = teacher.exp().sort(-1, descending=True)
    gap = (share - student.detach().exp().gather(-1, order)).abs()
    inside = torch.where(share.cumsum(-1) - share < head, gap, 0.0).sum(-1)
    whole = gap.sum(-1)
    weight = torch.where(whole > 0, inside / whole.clamp_min(torch.finfo(whole.dtype).tiny), 0.5)
    return weight * forward_kl(teacher, student) + (1.0 - weight) * reverse_kl(teacher, student)


def interpolated(teacher: torch.Tensor, student: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
    """log softmax((1 − t)·log q + t·log p), q without gradient: a teacher between student and teacher, in logits."""
    return ((1.0 - t) * student.detach() + t * teacher).log_softmax(-1)


class Taid(nn.Module):
    """KL(r ‖ q) to a teacher r between student and teacher that moves from t = 0.4 to the teacher, t = 1.

    After every step t goes up by a·σ(m)·(1 − t), m the momentum of the loss's relative fall, and never stays behind the
    straight line over all steps. Shing et al. 2025, TAID (arXiv:2501.16937), with its advised values. What
    changes are buffers, so that a checkpoint has them.
    """

    START, RATE, MOMENTUM = 0.4, 5e-4, 0.99

    def __init__(self) -> None:
        super().__init__()
        self.t: torch.Tensor
        self.momentum: torch.Tensor
        self.before: torch.Tensor
        self.register_buffer("t", torch.tensor(self.START))
        self.register_buffer("momentum", torch.tensor(0.0))
        self.register_buffer("before", torch.tensor(0.0))  # the last step's loss; 0 before the first

    def forward(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        return forward_kl(interpolated(teacher, student, self.t), student)

    def stepped(self, loss: torch.Tensor, progress: float) -> None:
        """After a step of this mean loss, behind which a share of all steps is done."""
        fall = torch.where(self.before > 0, (self.before - loss) / self.before.clamp_min(1e-15), 0.0)
        self.momentum.mul_(self.MOMENTUM).add_((1.0 - self.MOMENTUM) * fall)
        ahead = self.t + self.RATE * self.momentum.sigmoid() * (1.0 - self.t)
        self.t.copy_(ahead.clamp(min=self.START + (1.0 - self.START) * progress).clamp(max=1.0))
        self.before.copy_(loss)


def total_variation(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """½ Σ |p − q|, between 0 and 1. Wen et al. 2023, f-distillation (arXiv:2307.15190)."""
    return 0.5 * (teacher.exp() - student.exp()).abs().sum(-1)


def uld(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Σ |p₍ᵢ₎ − q₍ᵢ₎| over sorted probabilities, whatever tokens they belong to, between 0 and 2.

    The closed form of the Wasserstein distance with uniform costs: Boizard et al. 2025, Universal Logit
    Distillation (TMLR; arXiv:2402.12030), equation 5. Both must be sorted already. Of k kept tokens and the sum of the
    others it is a lower bound of the published one.
    """
    return 2.0 * total_variation(teacher, student)


def _mixture(teacher: torch.Tensor, student: torch.Tensor, beta: float) -> torch.Tensor:
    """log(β·p + (1 − β)·q)."""
    return torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))


def divergence(name: str, beta: float) -> Divergence:
    """The divergence of a name; `beta` is the weight of the mixture where there is one. `taid` has a state."""
    return {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "jsd": partial(jensen_shannon, beta=beta),
        "skew_kl": partial(skew_kl, beta=beta),
        "skew_reverse_kl": partial(skew_reverse_kl, beta=beta),
        "adaptive_kl": adaptive_kl,
        "taid": Taid(),
        "total_variation": total_variation,
    }[name]


def temperature_power(name: str) -> int:
    """The power of T that keeps the size of a divergence's gradient: 1 for absolute differences, else 2."""
    return 1 if name == "total_variation" else 2

"""Why a student should learn on its own text: a toy where it cannot be its teacher, and errors lead away from what the
teacher writes.

A writer holds a lane: its place is the sum of its tokens −1, 0, +1. The teacher steers back to the middle, so its own
text never leaves the lane. The student's logits are bounded: one token in three is wrong at best, and it drifts to
places that the teacher's text never showed it; only its own text does (Ross et al. 2011, DAgger, arXiv:1011.0686;
Agarwal et al. 2024, GKD, arXiv:2306.13649).
"""

from __future__ import annotations

import pytest
import torch

from kdsuite.evaluate.crossed import crossed
from kdsuite.methods.divergences import forward_kl, reverse_kl

FAR, LENGTH, LANE = 12, 20, 2  # places to either side, tokens of a text, places that count as right
SHARPEST = 0.7  # bound of the student's logits
SEEDS, STARTS, STEPS, BATCH = 5, 200, 60, 32
PLACES = torch.arange(-FAR, FAR + 1)
TEACHER = (torch.stack([(-PLACES - d).abs().float() for d in (-1, 0, 1)], dim=-1) * -6.0).log_softmax(-1)


def student(weights: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the next token at each place, [places, 3]."""
    return (SHARPEST * torch.tanh(weights)).log_softmax(-1)


def written(policy: torch.Tensor, starts: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """The places, as indices, from which a writer's tokens are written, [texts, LENGTH]."""
    place, places = starts.clone(), []
    for _ in range(LENGTH):
        places.append(place)
        token = torch.multinomial(policy[place].exp(), 1, generator=random)[:, 0]
        place = (place + token - 1).clamp(0, 2 * FAR)
    return torch.stack(places, dim=1)


def learned(divergence, on_policy: bool, seed: int) -> torch.Tensor:
    """A student after so many steps on text of its own or of its teacher."""
    random = torch.Generator().manual_seed(seed)
    weights = (0.1 * torch.randn(len(PLACES), 3, generator=random)).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=0.2)
    for _ in range(STEPS):
        policy = student(weights)
        starts = torch.full((BATCH,), FAR) + torch.randint(-1, 2, (BATCH,), generator=random)
        places = written((policy if on_policy else TEACHER).detach(), starts, random).flatten()
        optimizer.zero_grad()
        divergence(TEACHER[places], policy[places]).mean().backward()
        optimizer.step()
    return student(weights).detach()


def scores(policy: torch.Tensor, seed: int) -> torch.Tensor:
    """Of each start the share of the places of a text, in percent, that are in the lane."""
    starts = torch.full((STARTS,), FAR)
    places = written(policy, starts, torch.Generator().manual_seed(1000 + seed))
    return 100.0 * ((places - FAR).abs() <= LANE).float().mean(1)


@pytest.mark.slow
def test_on_policy_reverse_kl_is_ahead_of_off_policy_by_the_suites_own_test() -> None:
    assert scores(TEACHER, 0).mean() == 100
    runs = {
        name: torch.stack([scores(learned(*how, seed), seed) for seed in range(SEEDS)])
        for name, how in {
            "on-policy, reverse": (reverse_kl, True),
            "off-policy, reverse": (reverse_kl, False),
            "off-policy, forward": (forward_kl, False),
        }.items()
    }
    on = runs.pop("on-policy, reverse")
    for name, off in runs.items():
        gain = crossed((on - off).numpy())
        p = gain.p_value()
        assert p is not None and p < 0.05 / len(runs), (name, p)
        assert gain.mean > 5, (name, gain.mean, on.mean(), off.mean())


@pytest.mark.slow
def test_where_the_student_can_be_its_teacher_nothing_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SHARPEST", 8.0)
    on, off = (torch.stack([scores(learned(reverse_kl, own, s), s) for s in range(SEEDS)]) for own in (True, False))
    assert abs(crossed((on - off).numpy()).mean) < 1

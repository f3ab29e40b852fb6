"""Our Muon is torch's, but for the precision in which it orthogonalises."""

from __future__ import annotations

import pytest
import torch

from kdsuite.extras.offline.models import Muon, orthogonal


@pytest.mark.parametrize("shape", [(24, 64), (64, 24), (32, 32)])
def test_steps_are_those_of_torchs_own(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape))
    theirs = torch.nn.Parameter(ours.detach().clone())
    begin = ours.detach().clone()
    sides = [(ours, Muon([ours], lr=0.02)), (theirs, torch.optim.Muon([theirs], lr=0.02, weight_decay=0.0))]
    for _ in range(4):
        gradient = torch.randn(shape)
        for matrix, optimizer in sides:
            matrix.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - begin).norm()
    assert (ours - theirs).norm() < 0.02 * moved  # bfloat16 has three digits


def test_singular_values_become_alike() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(20, 50)))
    assert values.min() > 0.4 and values.max() < 1.6

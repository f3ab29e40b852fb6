"""One seed repeats everything random; another one changes it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from kdsuite.runtime.process import seed_everything


def draws(seed: int) -> tuple[float, float, float]:
    seed_everything(seed)
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_same_seed_repeats_every_source_of_randomness():
    assert draws(42) == draws(42)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["python", "numpy", "torch"])
def test_another_seed_changes_every_source_of_randomness(which: int):
    assert draws(42)[which] != draws(123)[which]


def test_seeds_wider_than_numpys_are_accepted():
    assert draws(2**40 + 1) == draws(2**40 + 1)

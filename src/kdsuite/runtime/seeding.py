"""One call that makes everything random repeatable."""

from __future__ import annotations

import random


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and every torch device; the same seed and thread count repeat a CPU run exactly."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # seeds CUDA and MPS, too

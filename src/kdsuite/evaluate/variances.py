"""What the difference between two methods varies by, apart from how many seeds and examples a study has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from kdsuite.evaluate.crossed import POINTS, Crossed, Floats, crossed, one_more


@dataclass(frozen=True)
class Variances:
    """Of a difference between two methods, in points²: of one seed, of one group of examples, and of the answer that
    one run gives to a group beyond both. `basis` says where they are from.
    """

    of_seed: float
    of_group: float
    of_answer: float
    group_size: float
    basis: str
    heaviest: float = POINTS  # that a group's answers add up to

    def study(self, seeds: int, examples: int) -> Crossed:
        """The variances that a mean over so many seeds and examples has, as `crossed` would find them."""
        groups = max(2, round(examples / self.group_size))
        of_seeds = (self.of_seed + self.of_answer / groups) / seeds
        return Crossed(0.0, of_seeds, self.of_group / groups + (self.heaviest / examples) ** 2, seeds, groups)


# a standard deviation of 1 point per run; one answer in ten differs, half of them wherever the method is trained
ASSUMED = Variances(2.0, 500.0, 500.0, 1.0, "assumed: seeds differ by 1 point, 1 answer in 10 by method")


def pooled(differences: Sequence[Floats], groups: ArrayLike, basis: str) -> Variances:
    """Means over several differences [S, n] in points, of two seeds and more, of the same examples in groups [n]."""
    found = []
    for x in differences:
        whole, over_seeds = crossed(x, groups), crossed(x.mean(axis=0), groups)
        count = whole.groups
        of_answer = (over_seeds.of_examples - whole.of_examples) * whole.seeds * count
        of_group = (whole.of_examples - one_more(x, groups)) * count
        heaviest = x.shape[1] ** 2 * one_more(x, groups)  # squared
        size = x.shape[1] / count
        found.append([whole.of_seeds * whole.seeds - of_answer / count, of_group, of_answer, size, heaviest])
    of_seed, of_group, of_answer, size, heaviest = np.mean(found, axis=0).tolist()
    return Variances(max(of_seed, 0.0), max(of_group, 0.0), of_answer, size, basis, heaviest**0.5)

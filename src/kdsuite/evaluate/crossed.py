"""May a mean over seeds *and* examples be told from zero, how far can it lie off, and what could have been seen?

A score matrix is `[S, n]`: S seeds (training runs) by n examples, in points. Both are samples, seeds of all runs that
could have been trained and examples of all that could have been asked; examples that share a source (the questions of
one passage) form a group, and groups are what is exchangeable. The variance of the mean is `of_examples + of_seeds`
(two crossed random factors, Clark 1973, J. Verbal Learning 12; groups as Cameron, Gelbach & Miller 2011, JBES 29): the
first is well known, the second rests on a handful of runs. This is the Behrens-Fisher problem with one variance known.

The p-value is the tail of the mean averaged over the variances that seeds may have (Fisher 1935, Annals of Eugenics 6),
with the density proportional to `v^(-f/2-1) exp(-f·of_seeds/2v) (1 + of_examples/v)^κ`, f = S - 1. With κ = 0 it is
Fisher's own, never too small (Robinson 1976, Annals of Statistics 4(5)), but with few seeds up to seven times too
large; with κ = 1 it is exact to second order, and too small in the tails that corrections for several comparisons use.
`_exponent` lies between, calibrated at every level from .05 to .05/16 (docs/statistics.md has the sizes).
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import root_scalar
from scipy.special import ndtr, stdtr, stdtrit
from scipy.stats import chi2

Floats = NDArray[np.float64]
Interval = tuple[float, float]

FEWEST_SEEDS = 3  # two differences say next to nothing of their own spread
MOST_SEEDS = 100  # beyond it no number of seeds is named
SMALLEST_P = 1e-12  # below it a p-value says more about the arithmetic than about the data
POINTS = 100.0  # of one answer, right instead of wrong
NODES = np.linspace(math.log(1e-16), math.log(80), 200)  # of log(f · of_seeds / 2v)
DRAWS = 40  # of what is averaged over


def group_sums(values: ArrayLike, groups: ArrayLike) -> Floats:
    """Sums of `values` [..., n] within groups, given as indices 0..G-1 [n]; returns [..., G]."""
    matrix, index = np.atleast_2d(np.asarray(values, float)), np.asarray(groups)
    count = int(index.max()) + 1 if index.size else 0
    sums = np.stack([np.bincount(index, weights=row, minlength=count) for row in matrix]).astype(float)
    return sums.reshape(*np.shape(values)[:-1], count)


@dataclass(frozen=True)
class Crossed:
    """A mean in points over `seeds` runs and `groups` groups of examples, and the two variances of that mean.

    `of_seeds` is 0 with a single seed, where nothing is known about other seeds.
    """

    mean: float
    of_seeds: float
    of_examples: float
    seeds: int
    groups: int

    @property
    def testable(self) -> bool:
        return self.seeds >= FEWEST_SEEDS

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.of_examples + self.of_seeds)

    def p_value(self) -> float | None:
        """Two-sided p of "the mean is 0"; None ("not testable") with fewer than three seeds."""
        return self._two_sided(abs(self.mean)) if self.testable else None

    def p_above(self, bound: float) -> float | None:
        """One-sided p of "the mean is at most `bound`" (non-inferiority: bound = −margin); None as above."""
        if not self.testable:
            return None
        tail = self._two_sided(abs(self.mean - bound)) / 2
        return tail if self.mean >= bound else 1 - tail

    def interval(self, level: float = 0.05) -> Interval | None:
        """The means that the two-sided test at `level` does not reject; None as above."""
        if not self.testable:
            return None
        half = float(self._critical(np.array([self.of_seeds]), level)[0])
        return self.mean - half, self.mean + half

    def interval_of_these(self, level: float = 0.05) -> Interval:
        """The means that other examples would give these very runs (Student's t)."""
        half = float(stdtrit(self.groups - 1, 1 - level / 2)) * math.sqrt(self.of_examples)
        return self.mean - half, self.mean + half

    def interval_at_hand(self, level: float, lowest: float = -POINTS) -> Interval:
        """`interval` or, with too few seeds for that, `interval_of_these`; of scores, `lowest` is 0."""
        low, high = self.interval(level) or self.interval_of_these(level)
        return max(low, lowest), min(high, POINTS)

    def power(self, level: float, seeds: int | None = None, known: bool = False) -> Callable[[float], float]:
        """The probability that another study like this one, of other seeds and examples, finds a true gain [points].

        `seeds`: how many that study has, if not as many. Its variance over seeds is averaged over all that these
        ones' allows for (Fisher's density, κ = 0), unless it is `known`, as when it is assumed.
        """
        of_seeds, seeds = np.array([self.of_seeds]), seeds or self.seeds
        shares = (np.arange(DRAWS) + 0.5) / DRAWS
        if not known:
            v, weights = self._weighted(of_seeds, 0.0)
            of_seeds = np.interp(shares, weights[0].cumsum(), v[0])
        of_seeds, other = of_seeds * self.seeds / seeds, replace(self, seeds=seeds)
        observed = of_seeds[:, None] * chi2.ppf(shares, seeds - 1) / (seeds - 1)
        grid = np.geomspace(max(observed.min(), 1e-12), max(observed.max(), 1e-11), DRAWS)
        critical = np.interp(observed, grid, other._critical(grid, level))
        error = np.sqrt(self.of_examples + of_seeds)[:, None]
        return lambda gain: float((ndtr((gain - critical) / error) + ndtr((-gain - critical) / error)).mean())

    def detectable(self, level: float, power: float, seeds: int | None = None, known: bool = False) -> float | None:
        """The smallest true gain [points] that such a study finds with probability `power`; None where not testable."""
        if (seeds or self.seeds) < FEWEST_SEEDS:
            return None
        found, top = self.power(level, seeds, known), self.standard_error
        while found(top) < power:
            top *= 2
        if found(0.0) >= power:  # less is asked for than the test errs
            return 0.0
        return float(root_scalar(lambda gain: found(gain) - power, bracket=(0.0, top), rtol=1e-4).root)

    def seeds_for(self, gain: float, level: float, power: float, known: bool = False) -> int | None:
        """The fewest seeds with which such a study finds a true `gain`; None if a hundred are too few."""
        if self.power(level, MOST_SEEDS, known)(gain) < power:
            return None
        return bisect_left(range(MOST_SEEDS), power, FEWEST_SEEDS, key=lambda n: self.power(level, n, known)(gain))

    # ------------------------------------------------------------------------------------------------ arithmetic

    def _weighted(self, of_seeds: Floats, exponent: float) -> tuple[Floats, Floats]:
        """Variances over seeds that [K] observed ones allow for, and their weights: two of [K, nodes]."""
        degrees = self.seeds - 1
        v = np.maximum(of_seeds, 1e-300)[:, None] * degrees / 2 / np.exp(NODES)
        log_weights = degrees / 2 * NODES - np.exp(NODES) + exponent * np.log1p(self.of_examples / v)
        weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
        return v, weights / weights.sum(axis=1, keepdims=True)

    def _tails(self, distances: Floats, of_seeds: Floats, level: float) -> Floats:
        """Two-sided tails [K] at distances [K] from the null, for variances [K] over seeds."""
        v, weights = self._weighted(of_seeds, _exponent(level, self.seeds - 1))
        ratios = distances[:, None] / np.sqrt(self.of_examples + v)
        return (weights * 2 * stdtr(self.groups - 1, -ratios)).sum(axis=1)

    def _two_sided(self, distance: float) -> float:
        """The level at which the test just rejects."""

        def excess(log_level: float) -> float:
            level = math.exp(log_level)
            tail = self._tails(np.array([distance]), np.array([self.of_seeds]), level)[0]
            return math.log(max(float(tail), 1e-300)) - log_level

        lowest = math.log(SMALLEST_P)
        if excess(lowest) <= 0:
            return SMALLEST_P
        return min(1.0, math.exp(root_scalar(excess, bracket=(lowest, 1e-9), xtol=1e-10).root))

    def _critical(self, of_seeds: Floats, level: float) -> Floats:
        """The smallest means [K] that are told from 0 at `level`, for variances [K] over seeds."""
        scale = np.sqrt(self.of_examples + of_seeds)
        low, high = np.full_like(scale, -5.0), np.full_like(scale, 20.0)  # logarithms of multiples of the scale
        for _ in range(26):
            middle = (low + high) / 2
            above = self._tails(scale * np.exp(middle), of_seeds, level) > level
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return scale * np.exp(high)


def _exponent(level: float, degrees: int) -> float:
    """κ: the more levels are small and seeds few, the nearer to Fisher's 0."""
    return (1 - 2 * degrees**-2) * min(1.0, 20 * level) ** (1 / degrees)


def crossed(values: ArrayLike, groups: ArrayLike | None = None) -> Crossed:
    """The mean of `values` [S, n] in points: scores, or differences of scores paired by seed and example.

    What single answers of single runs vary by is in the seeds' variance, and taken out of the examples'. That one is
    what it would be with one group more that says the opposite (`one_more`), so that few examples that agree by chance
    make no claim. Assumes independent seeds and independent groups [n]; ValueError for fewer than two groups.
    """
    x = np.atleast_2d(np.asarray(values, float))
    seeds, n = x.shape
    index = np.arange(n) if groups is None else np.asarray(groups)
    mean, of_seeds, of_examples = x.mean(), x.mean(axis=1, keepdims=True), x.mean(axis=0)
    deviations = group_sums(of_examples - mean, index)
    count = deviations.size
    if count < 2:
        raise ValueError(f"{n} examples in {count} groups: a variance needs two groups")
    correction = count / (count - 1) / n**2
    variance, guard = correction * float((deviations**2).sum()), one_more(x, index)
    if seeds == 1:
        return Crossed(float(mean), 0.0, variance + guard, seeds, count)
    residuals = group_sums(x - of_seeds - of_examples + mean, index)
    shared = correction * float((residuals**2).sum()) / (seeds * (seeds - 1))
    example_variance = max(variance - shared, 0.0) + guard
    return Crossed(float(mean), float(of_seeds.var(ddof=1)) / seeds, example_variance, seeds, count)


def possible(interval: Interval | None) -> Interval | None:
    """What an interval holds of the differences that two scores can have: 100 points at most."""
    return interval and (max(interval[0], -POINTS), min(interval[1], POINTS))


def one_more(x: Floats, groups: ArrayLike) -> float:
    """What one group more adds to the variance of the mean of [S, n]: as heavy as the heaviest, and a whole answer."""
    heaviest = float(np.abs(group_sums(x.mean(axis=0), groups)).max())
    return (max(POINTS, heaviest) / x.shape[1]) ** 2


def unpaired(a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None) -> Crossed:
    """mean(a) − mean(b) of [S_a, n] and [S_b, n]: the same examples, but unrelated seeds; as `crossed`.

    The seeds' variances add up and are known as well as that of the fewer seeds is; the noise of single answers is not
    taken out of the examples' variance, on the safe side.
    """
    x, y = np.atleast_2d(np.asarray(a, float)), np.atleast_2d(np.asarray(b, float))
    seeds = min(len(x), len(y))
    of_seeds = sum(float(m.mean(axis=1).var(ddof=1)) / len(m) for m in (x, y)) if seeds > 1 else 0.0
    return replace(crossed(x.mean(axis=0) - y.mean(axis=0), groups), of_seeds=of_seeds, seeds=seeds)


@dataclass(frozen=True)
class Variances:
    """What the difference between two methods varies by, apart from how many seeds and examples a study has.

    In points²: of one seed, of one group of examples, and of the answer that
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

"""The statistics behind every claim: plain arrays in, plain numbers out.

Notation: a score matrix is `[S, n]`: S seeds (training runs) by n examples. Both are samples: seeds of all
runs that could have been trained, examples of all that could have been asked. Examples that share a source
(the questions of one passage) form a group, and groups are what is exchangeable; without groups every example
is one.

A claim about a method must hold for other seeds *and* other examples. Neither classical paired test covers
that: under a simulated null with 3 seeds, the paired t-test over seeds errs in 6 to 14 % of cases where the
choice of examples matters, McNemar's test over examples in up to 56 % where the seed does. `crossed_estimate`
takes both as random and errs in 1 to 6 % (tests/report/test_statistics.py simulates it); verdicts rest on it
alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize
from scipy.special import stdtr, stdtrit

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Interval = tuple[float, float]

CHUNK = 4_000_000  # random numbers drawn at once
FEWEST_SEEDS = 3  # with 2, the test over seeds and examples errs in up to 7 % instead of 5
SMALLEST_P = 1e-12  # below it a p-value says more about the arithmetic than about the data


def group_sums(values: ArrayLike, groups: ArrayLike) -> Floats:
    """Sums of `values` [..., n] within groups, given as indices 0..G-1 [n]; returns [..., G]."""
    matrix, index = np.atleast_2d(np.asarray(values, float)), np.asarray(groups)
    count = int(index.max()) + 1 if index.size else 0
    sums = np.stack([np.bincount(index, weights=row, minlength=count) for row in matrix]).astype(float)
    return sums.reshape(*np.shape(values)[:-1], count)


# ---------------------------------------------------------------------------------------------------- seeds


def seed_interval(values: ArrayLike, confidence: float = 0.95) -> Interval | None:
    """Student's t-interval of the mean over seeds (assumes normal seeds); None for fewer than two."""
    x = np.asarray(values, float)
    if x.size < 2:
        return None
    half = float(stdtrit(x.size - 1, (1 + confidence) / 2) * x.std(ddof=1) / math.sqrt(x.size))
    return float(x.mean()) - half, float(x.mean()) + half


@dataclass(frozen=True)
class SeedTest:
    """A paired t-test over seeds: t, two-sided p, Cohen's d_z (mean difference over its sd), pairs."""

    t: float
    p: float
    d_z: float
    n: int


def paired_t_test(differences: ArrayLike) -> SeedTest | None:
    """Student's paired t-test over per-seed differences [S], for these examples.

    Assumes normal differences. None ("not testable") for fewer than two seeds or no variance at all.
    d_z: Cohen 1988, *Statistical Power Analysis*, eq. 2.3.5; with 3 seeds it is mostly noise.
    """
    d = np.asarray(differences, float)
    if d.size < 2 or math.isclose(d.std(ddof=1), 0.0, abs_tol=1e-12):
        return None
    d_z = float(d.mean() / d.std(ddof=1))
    t = d_z * math.sqrt(d.size)
    return SeedTest(t, float(2 * stdtr(d.size - 1, -abs(t))), d_z, d.size)


# ------------------------------------------------------------------------------------------------- examples


def sign_flip_test(differences: ArrayLike, samples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of a paired randomisation test over examples, for these runs (Fisher 1935).

    `differences` [G]: per example (or group) the score of A minus that of B, summed over seeds. Under the
    null the two are exchangeable within a pair, so every sign is as likely as its opposite. Integers
    (accuracy, exact match) are computed exactly; with one run each this is the exact McNemar test (McNemar
    1947). Other values take `samples` random flips, p = (1 + hits) / (1 + samples) (Phipson & Smyth 2010).
    """
    d = np.asarray(differences, float)
    d = d[np.abs(d) > 1e-12]
    if d.size == 0:
        return 1.0
    whole = np.rint(d)
    if np.abs(d - whole).max() < 1e-9:
        return _exact_sign_flip(np.abs(whole).astype(np.int64), abs(int(whole.sum())))
    return _random_sign_flip(d, samples, seed)


def _exact_sign_flip(sizes: Integers, observed: int) -> float:
    """P(|Σ ±size| ≥ observed): the probabilities are the Fourier coefficients of Π cos(size · ω)."""
    total = int(sizes.sum())
    points = 2 * total + 1
    omega = 2 * np.pi * np.arange(points) / points
    characteristic = np.ones(points)
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        characteristic *= np.cos(size * omega) ** count
    probability = np.fft.ifft(characteristic).real  # index k: P(sum = k), negative sums from the end
    return float(np.clip(2 * probability[observed : total + 1].sum(), SMALLEST_P, 1.0))


def _random_sign_flip(d: Floats, samples: int, seed: int) -> float:
    """Every bit of random bytes is a coin: 1 where a difference keeps its sign."""
    random = np.random.default_rng(seed)
    observed, total, width = abs(d.sum()), d.sum(), math.ceil(d.size / 8)
    hits, rows = 0, max(1, CHUNK // d.size)
    for start in range(0, samples, rows):
        count = min(rows, samples - start)
        coins = np.frombuffer(random.bytes(count * width), np.uint8).reshape(count, width)
        plus = np.unpackbits(coins, axis=1, count=d.size) @ d
        hits += int((np.abs(2 * plus - total) >= observed - 1e-9).sum())
    return (1 + hits) / (1 + samples)


# ------------------------------------------------------------------------------ seeds and examples together


@dataclass(frozen=True)
class Crossed:
    """A mean over seeds and examples, both random, with what each contributes to its variance.

    `seed_variance` and `example_variance` are those of the seeds' and of the examples' own means; the noise
    of single answers is in both, and `shared_variance` estimates it, so that it can be counted once. The
    first and the last are 0 with a single seed, where nothing is known about other seeds.
    """

    mean: float
    seed_variance: float
    example_variance: float
    shared_variance: float
    seeds: int
    groups: int

    @property
    def testable(self) -> bool:
        return self.seeds >= FEWEST_SEEDS

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.example_variance + max(self.seed_variance - self.shared_variance, 0.0))

    def quantile(self, tail: float) -> float:
        """The one-sided critical value: the t-quantiles of both sources, weighted by their variances."""
        total = self.seed_variance + self.example_variance
        share = self.seed_variance / total if total else 0.0
        value = (1 - share) * _t_tail(tail, self.groups - 1)
        return value + share * _t_tail(tail, self.seeds - 1) if share else value

    def interval(self, confidence: float = 0.95) -> Interval:
        """The interval that belongs to `p_value`; with one seed it speaks of that one run only."""
        half = self.quantile((1 - confidence) / 2) * self.standard_error
        return self.mean - half, self.mean + half

    def p_value(self) -> float | None:
        """Two-sided p of "the mean is 0"; None ("not testable") with fewer than three seeds."""
        return min(1.0, 2 * self._tail(abs(self.mean))) if self.testable else None

    def p_above(self, bound: float) -> float | None:
        """One-sided p of "the mean is at most `bound`" (non-inferiority: bound = −margin); None as above."""
        if not self.testable:
            return None
        distance = self.mean - bound
        return self._tail(distance) if distance >= 0 else 1 - self._tail(-distance)

    def detectable(self, alpha: float, power: float) -> float | None:
        """The smallest true difference found with probability `power` at two-sided level `alpha`; None as
        above.

        Bloom 1995, *Evaluation Review* 19(5): standard error × (critical value + quantile of the power). It
        takes the variances that were observed, and says what such an experiment could have seen.
        """
        if not self.testable:
            return None
        return self.standard_error * (self.quantile(alpha / 2) + self.quantile(1 - power))

    def _tail(self, distance: float) -> float:
        """The one-sided tail at a distance ≥ 0 from the null."""
        if self.standard_error == 0:
            return SMALLEST_P if distance > 0 else 0.5
        ratio = distance / self.standard_error
        if self.quantile(SMALLEST_P) <= ratio:
            return SMALLEST_P
        tolerance: Any = {"xtol": 1e-14, "rtol": 1e-10}
        found: Any = optimize.brentq(lambda tail: self.quantile(tail) - ratio, SMALLEST_P, 0.5, **tolerance)
        return float(found)


def _t_tail(tail: float, degrees: int) -> float:
    return float(stdtrit(degrees, 1 - tail)) if tail > 1e-8 else float(-stdtrit(degrees, tail))


def crossed_estimate(values: ArrayLike, groups: ArrayLike | None = None) -> Crossed:
    """The mean of `values` [S, n] (scores, or differences of paired scores), seeds and examples both random.

    The variance is that of two crossed random factors (Clark 1973, J. Verbal Learning 12), the examples
    clustered by group (Cameron, Gelbach & Miller 2011, JBES 29). The critical value weights both t-quantiles
    by the variances (Cochran & Cox 1950, *Experimental Designs*, §4.14), the seeds' not reduced by the shared
    noise: with 3 seeds this keeps its level, which Satterthwaite's degrees of freedom do not (8–10 % instead
    of 5 %). Assumes independent seeds and independent groups. ValueError for fewer than two groups.
    """
    x = np.atleast_2d(np.asarray(values, float))
    seeds, n = x.shape
    index = np.arange(n) if groups is None else np.asarray(groups)
    mean, of_seeds, of_examples = x.mean(), x.mean(axis=1, keepdims=True), x.mean(axis=0)
    deviations = group_sums(of_examples - mean, index)
    count = deviations.size
    if count < 2:
        raise ValueError(f"{n} examples in {count} groups: a variance needs two groups")
    correction = count / (count - 1)
    example_variance = correction * float((deviations**2).sum()) / n**2
    if seeds == 1:
        return Crossed(float(mean), 0.0, example_variance, 0.0, seeds, count)
    residuals = group_sums(x - of_seeds - of_examples + mean, index)
    shared = correction * float((residuals**2).sum()) / (seeds * (seeds - 1) * n**2)
    return Crossed(float(mean), float(of_seeds.var(ddof=1)) / seeds, example_variance, shared, seeds, count)


def two_sample_interval(
    a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None, confidence: float = 0.95
) -> Interval | None:
    """Interval of mean(a) − mean(b), [S_a, n] and [S_b, n]: the same examples, but unrelated seeds.

    As `crossed_estimate`, with the seeds' variances of both sides added (Cochran & Cox) and their noise not
    taken out, on the safe side. None where a side has a single run and the other several: nothing is known of
    its seeds. ValueError for fewer than two groups.
    """
    x, y = np.atleast_2d(np.asarray(a, float)), np.atleast_2d(np.asarray(b, float))
    examples = crossed_estimate((x.mean(axis=0) - y.mean(axis=0))[None], groups)
    if len(x) == len(y) == 1:
        return examples.interval(confidence)
    if min(len(x), len(y)) == 1:
        return None
    tail = (1 - confidence) / 2
    parts = [(float(m.mean(axis=1).var(ddof=1)) / len(m), len(m) - 1) for m in (x, y)]
    parts.append((examples.example_variance, examples.groups - 1))
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return examples.mean, examples.mean
    half = sum(variance * _t_tail(tail, degrees) for variance, degrees in parts) / math.sqrt(total)
    return examples.mean - half, examples.mean + half


def holm(p_values: ArrayLike) -> Floats:
    """Family-wise corrected p-values (Holm 1979, Scand. J. Statistics 6), whatever their dependence."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * (p.size - np.arange(p.size)))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(steps, 1.0)
    return corrected


# ------------------------------------------------------------------------------------------------ bootstrap


def bootstrap_means(sums: ArrayLike, sizes: ArrayLike, samples: int = 2000, seed: int = 0) -> Floats:
    """Means of K runs over resampled examples: `sums` [K, G] and `sizes` [G] of groups → [samples, K].

    All runs share a resample, so that differences between columns are paired.
    """
    totals, counts = np.atleast_2d(np.asarray(sums, float)), np.asarray(sizes, float)
    random = np.random.default_rng(seed)
    groups, draws = counts.size, []
    rows = max(1, CHUNK // groups)
    for start in range(0, samples, rows):
        count = min(rows, samples - start)
        chosen = random.integers(0, groups, (count, groups)) + groups * np.arange(count)[:, None]
        times = np.bincount(chosen.ravel(), minlength=count * groups).reshape(count, groups).astype(float)
        draws.append((times @ totals.T) / (times @ counts)[:, None])
    return np.concatenate(draws)


def over_seeds(draws: ArrayLike, seed: int = 0) -> Floats:
    """The hierarchical bootstrap's second level: average [B, S] over seeds drawn with replacement → [B].

    With examples drawn above, this is the pigeonhole bootstrap of two crossed factors (Owen 2007, Annals of
    Applied Statistics 1(2)). Deviations of the drawn seeds are widened by √(S/(S−1)), without which S seeds
    would show only (S−1)/S of their variance. With 3 seeds the interval is still a lower bound of what other
    seeds might do.
    """
    x = np.asarray(draws, float)
    samples, seeds = x.shape
    if seeds == 1:
        return x[:, 0]
    random = np.random.default_rng(seed + 1)
    chosen = random.integers(0, seeds, (samples, seeds))
    drawn, centre = np.take_along_axis(x, chosen, axis=1).mean(axis=1), x.mean(axis=1)
    return centre + math.sqrt(seeds / (seeds - 1)) * (drawn - centre)


def percentile_interval(draws: ArrayLike, confidence: float = 0.95) -> Interval:
    """The central percentile interval of bootstrap draws (Efron & Tibshirani 1993, ch. 13)."""
    low, high = np.quantile(np.asarray(draws, float), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def gap_closed(method: ArrayLike, baseline: ArrayLike, teacher: ArrayLike, confidence: float = 0.95) -> Interval | None:
    """Interval of the share of the teacher–baseline gap that a method closes, from paired draws [B] each.

    None where the gap itself is not clearly positive (its own interval reaches 0): the ratio means nothing.
    """
    gap = np.asarray(teacher, float) - np.asarray(baseline, float)
    if percentile_interval(gap, confidence)[0] <= 0:
        return None
    share = (np.asarray(method, float) - np.asarray(baseline, float))[gap > 0] / gap[gap > 0]
    return percentile_interval(share, confidence)


# ---------------------------------------------------------------------------------------------- calibration


@dataclass(frozen=True)
class Reliability:
    """Per bin: mean confidence, share right and count; `error` is the expected calibration error (0–1)."""

    confidence: Floats
    accuracy: Floats
    count: Integers
    error: float


def reliability(confidence: ArrayLike, right: ArrayLike, bins: int = 10, lowest: float = 0.0) -> Reliability:
    """Reliability diagram and ECE (Guo et al. 2017, arXiv:1706.04599, eq. 3) in equal bins of [lowest, 1].

    `confidence` [n]: probability of the predicted label; `right` [n]: 0 or 1. Empty bins are NaN and count
    nothing.
    """
    c, r = np.asarray(confidence, float), np.asarray(right, float)
    index = np.clip(((c - lowest) / (1 - lowest) * bins).astype(int), 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(index, weights=c, minlength=bins) / count
        accuracy = np.bincount(index, weights=r, minlength=bins) / count
    error = float(np.nansum(np.abs(accuracy - mean_confidence) * count) / c.size)
    return Reliability(mean_confidence, accuracy, count, error)

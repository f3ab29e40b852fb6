"""The classical statistics beside the verdicts: plain arrays in, plain numbers out.

A claim about a method must hold for other seeds *and* other examples. Neither classical paired test covers
that: under a simulated null with 3 seeds, the paired t-test over seeds errs in 6 to 14 % of cases where the
choice of examples matters, McNemar's test over examples in up to 56 % where the seed does. No verdict rests on
them; all rest on `evaluate.crossed`, which takes both as random.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from kdsuite.evaluate.crossed import SMALLEST_P, Floats, Interval

Integers = NDArray[np.int64]

CHUNK = 4_000_000  # random numbers drawn at once


def seed_interval(values: ArrayLike, confidence: float = 0.95) -> Interval | None:
    """Student's t-interval of the mean over seeds (assumes normal seeds); None for fewer than two."""
    x = np.asarray(values, float)
    if x.size < 2:
        return None
    half = float(stdtrit(x.size - 1, (1 + confidence) / 2) * x.std(ddof=1) / math.sqrt(x.size))
    return float(x.mean()) - half, float(x.mean()) + half


class SeedTest(NamedTuple):
    """A paired t-test over seeds: t, two-sided p, Cohen's d_z (mean difference over its sd)."""

    t: float
    p: float
    d_z: float


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
    return SeedTest(t, float(2 * stdtr(d.size - 1, -abs(t))), d_z)


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
    whole = np.rint(d).astype(np.int64)
    if np.abs(d - whole).max() < 1e-9:
        return _exact_sign_flip(whole)
    return _random_sign_flip(d, samples, seed)


def _exact_sign_flip(d: Integers) -> float:
    """P(|Σ ±d| ≥ |Σ d|): the probabilities are the Fourier coefficients of Π cos(|d| · ω)."""
    sizes, observed = np.abs(d), abs(int(d.sum()))
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

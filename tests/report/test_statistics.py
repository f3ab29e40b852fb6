"""The statistics agree with scipy and statsmodels where they can; elsewhere they keep their level."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.random import Generator
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from kdsuite.report import statistics


@pytest.fixture
def random() -> Generator:
    return np.random.default_rng(11)


def test_seed_interval_is_students(random: Generator) -> None:
    x = random.normal(80, 2, 5)
    expected = stats.t.interval(0.9, 4, loc=x.mean(), scale=stats.sem(x))
    assert statistics.seed_interval(x, 0.9) == pytest.approx(expected)
    assert statistics.seed_interval([80.0]) is None


def test_paired_t_agrees_with_scipy(random: Generator) -> None:
    a, b = random.normal(80, 1, 6), random.normal(79, 1, 6)
    test, expected = statistics.paired_t_test(a - b), stats.ttest_rel(a, b)
    assert test is not None
    assert (test.t, test.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert test.d_z == pytest.approx((a - b).mean() / (a - b).std(ddof=1))


def test_one_seed_is_not_testable() -> None:
    assert statistics.paired_t_test([3.0]) is None
    assert statistics.paired_t_test([3.0, 3.0, 3.0]) is None  # no variance: no t


def test_sign_flip_of_single_runs_is_exact_mcnemar(random: Generator) -> None:
    for share in (0.7, 0.8, 0.9):
        a, b = random.random(300) < 0.8, random.random(300) < share
        table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
        expected = mcnemar(table, exact=True).pvalue  # pyright: ignore[reportAttributeAccessIssue]
        assert statistics.sign_flip_test(a.astype(float) - b) == pytest.approx(expected, abs=1e-10)


def test_sign_flip_over_several_seeds_is_exact(random: Generator) -> None:
    d = random.integers(-3, 4, 10)
    sums = [abs(np.dot(signs, d)) for signs in itertools.product((-1, 1), repeat=10)]
    assert statistics.sign_flip_test(d) == pytest.approx(np.mean(np.array(sums) >= abs(d.sum())))


def test_sign_flip_of_fractions_agrees_with_scipy(random: Generator) -> None:
    d = random.normal(0.25, 1, 70)
    expected = stats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=9999, rng=1).pvalue
    assert statistics.sign_flip_test(d) == pytest.approx(expected, abs=0.015)
    assert statistics.sign_flip_test(d, seed=5) == statistics.sign_flip_test(d, seed=5)


def test_no_difference_is_p_one() -> None:
    assert statistics.sign_flip_test(np.zeros(50)) == 1.0


def _null(random: Generator, seeds: int, n: int, ratio: float) -> np.ndarray:
    """Differences [S, n] without an effect; `ratio` of the seeds' standard error to the examples'."""
    example, single = 0.25, 0.3
    error = np.sqrt(example**2 / n + single**2 / n / seeds)
    between = random.normal(0, ratio * error * np.sqrt(seeds), (seeds, 1))
    return between + random.normal(0, example, n) + random.normal(0, single, (seeds, n))


def test_the_classical_tests_alone_do_not_keep_theirs(random: Generator) -> None:
    """Why no verdict rests on one of them: each ignores the other source of chance."""
    over_seeds = [statistics.paired_t_test(_null(random, 3, 100, 0.0).mean(axis=1)) for _ in range(600)]
    over_examples = [statistics.sign_flip_test(_null(random, 3, 100, 2.0).sum(axis=0), 300) for _ in range(300)]
    assert np.mean([test is not None and test.p < 0.05 for test in over_seeds]) > 0.08
    assert np.mean(np.array(over_examples) < 0.05) > 0.15


def test_sign_flip_keeps_its_level_for_given_runs(random: Generator) -> None:
    p = [statistics.sign_flip_test(random.integers(-3, 4, 300)) for _ in range(2000)]
    assert 0.035 <= np.mean(np.array(p) < 0.05) <= 0.065


def test_calibration_error_of_a_worked_example() -> None:
    curve = statistics.reliability([0.55, 0.65, 0.95, 0.95], [1, 0, 1, 0], bins=5, lowest=0.5)
    assert curve.count.tolist() == [1, 1, 0, 0, 2]
    assert curve.error == pytest.approx((0.45 + 0.65 + 2 * 0.45) / 4)


def test_true_probabilities_are_calibrated(random: Generator) -> None:
    confidence = random.uniform(0.5, 1, 20_000)
    right = random.random(20_000) < confidence
    assert statistics.reliability(confidence, right, bins=10, lowest=0.5).error < 0.02

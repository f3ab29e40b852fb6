"""The statistics agree with scipy and statsmodels where they can; elsewhere they keep their level."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.random import Generator
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

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
    estimate = statistics.crossed_estimate([[1.0, 0.0, 1.0, 0.0]])
    assert estimate.p_value() is None
    assert estimate.p_above(-2.0) is None
    assert estimate.detectable(0.05, 0.8) is None


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
    assert statistics.crossed_estimate(np.zeros((3, 50))).p_value() == 1.0


def test_holm_agrees_with_statsmodels(random: Generator) -> None:
    p = random.random(8) ** 3
    assert statistics.holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert statistics.holm([]).size == 0


def test_crossed_estimate_without_seed_effects_is_the_t_test_over_examples(random: Generator) -> None:
    d = np.tile(random.normal(0.1, 1, 400), (3, 1))  # all seeds alike: only examples vary
    assert statistics.crossed_estimate(d).p_value() == pytest.approx(stats.ttest_1samp(d[0], 0)[1])


def test_crossed_estimate_without_example_effects_is_the_t_test_over_seeds(random: Generator) -> None:
    seeds = random.normal(1, 1, 4)
    d = np.tile(seeds[:, None], (1, 100))
    assert statistics.crossed_estimate(d).p_value() == pytest.approx(stats.ttest_1samp(seeds, 0)[1])


def test_repeated_examples_add_no_evidence_when_grouped(random: Generator) -> None:
    d = random.normal(0.2, 1, (3, 80))
    repeated, groups = np.repeat(d, 5, axis=1), np.repeat(np.arange(80), 5)
    plain = statistics.crossed_estimate(d)
    assert statistics.crossed_estimate(repeated, groups).p_value() == pytest.approx(plain.p_value())
    assert (statistics.crossed_estimate(repeated).p_value() or 1) < (plain.p_value() or 0)


def _null(random: Generator, seeds: int, n: int, ratio: float) -> np.ndarray:
    """Differences [S, n] without an effect; `ratio` of the seeds' standard error to the examples'."""
    example, single = 0.25, 0.3
    error = np.sqrt(example**2 / n + single**2 / n / seeds)
    between = random.normal(0, ratio * error * np.sqrt(seeds), (seeds, 1))
    return between + random.normal(0, example, n) + random.normal(0, single, (seeds, n))


@pytest.mark.parametrize("ratio", [0.0, 1.0, 2.0, 4.0])
def test_verdicts_keep_their_level_whatever_varies(random: Generator, ratio: float) -> None:
    p = [statistics.crossed_estimate(_null(random, 3, 100, ratio)).p_value() for _ in range(1500)]
    assert np.mean(np.array(p, float) < 0.05) <= 0.065


def test_five_percent_is_five_percent_where_the_seed_decides(random: Generator) -> None:
    p = [statistics.crossed_estimate(_null(random, 5, 100, 4.0)).p_value() for _ in range(1500)]
    assert 0.035 <= np.mean(np.array(p, float) < 0.05) <= 0.065


def test_the_classical_tests_alone_do_not_keep_theirs(random: Generator) -> None:
    """Why no verdict rests on one of them: each ignores the other source of chance."""
    over_seeds = [statistics.paired_t_test(_null(random, 3, 100, 0.0).mean(axis=1)) for _ in range(600)]
    over_examples = [statistics.sign_flip_test(_null(random, 3, 100, 2.0).sum(axis=0), 300) for _ in range(300)]
    assert np.mean([test is not None and test.p < 0.05 for test in over_seeds]) > 0.08
    assert np.mean(np.array(over_examples) < 0.05) > 0.15


def test_sign_flip_keeps_its_level_for_given_runs(random: Generator) -> None:
    p = [statistics.sign_flip_test(random.integers(-3, 4, 300)) for _ in range(2000)]
    assert 0.035 <= np.mean(np.array(p) < 0.05) <= 0.065


def test_interval_and_p_value_say_the_same(random: Generator) -> None:
    for _ in range(50):
        estimate = statistics.crossed_estimate(random.normal(0.1, 1, (3, 120)))
        low, high = estimate.interval(0.95)
        p = estimate.p_value()
        assert p is not None
        assert (p < 0.05) == (not low <= 0 <= high)


def test_detectable_difference_agrees_with_statsmodels(random: Generator) -> None:
    d = np.tile(random.normal(0, 1, 60), (3, 1))
    expected = TTestPower().solve_power(nobs=60, alpha=0.05, power=0.8) * d[0].std(ddof=1)
    assert statistics.crossed_estimate(d).detectable(0.05, 0.8) == pytest.approx(expected, rel=0.02)


def test_non_inferiority_turns_the_question_round(random: Generator) -> None:
    d = random.normal(-0.2, 1, (4, 900))
    estimate = statistics.crossed_estimate(d)
    assert (estimate.p_above(-1.0) or 1) < 0.001 < 0.9 < (estimate.p_above(0.0) or 0)
    assert estimate.p_above(estimate.mean) == pytest.approx(0.5)


def test_bootstrap_finds_the_standard_error(random: Generator) -> None:
    x = random.normal(0, 1, (2, 400))
    draws = statistics.bootstrap_means(x, np.ones(400), samples=4000, seed=3)
    assert draws.std(axis=0) == pytest.approx(x.std(axis=1) / 20, rel=0.06)
    assert draws == pytest.approx(statistics.bootstrap_means(x, np.ones(400), samples=4000, seed=3))


def test_bootstrap_resamples_groups_as_wholes(random: Generator) -> None:
    means, groups = random.normal(0, 1, 50), np.repeat(np.arange(50), 8)
    sums = statistics.group_sums(np.repeat(means, 8)[None], groups)
    draws = statistics.bootstrap_means(sums, np.bincount(groups), samples=4000)
    assert draws.std() == pytest.approx(means.std() / np.sqrt(50), rel=0.08)


def test_hierarchical_bootstrap_covers_the_truth(random: Generator) -> None:
    covered = []
    for trial in range(250):
        x = _null(random, 3, 80, 0.7)
        draws = statistics.over_seeds(statistics.bootstrap_means(x, np.ones(80), 300, trial), trial)
        low, high = statistics.percentile_interval(draws)
        covered.append(low <= 0 <= high)
    assert np.mean(covered) > 0.9


def test_two_sample_interval_agrees_with_welch_where_only_seeds_vary(random: Generator) -> None:
    a, b = random.normal(1, 1, 40), random.normal(0, 1, 40)
    many_a, many_b = (np.tile(x[:, None], (1, 30)) for x in (a, b))
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert statistics.two_sample_interval(many_a, many_b) == pytest.approx(tuple(expected), rel=0.02)
    assert statistics.two_sample_interval(many_a[:1], many_b) is None


def test_gap_closed_is_undefined_without_a_gap(random: Generator) -> None:
    baseline, teacher = random.normal(80, 1, 1000), random.normal(90, 1, 1000)
    interval = statistics.gap_closed(baseline + 5, baseline, teacher)
    assert interval is not None
    assert interval[0] < 0.5 < interval[1]
    assert statistics.gap_closed(baseline + 5, baseline, baseline + random.normal(0, 1, 1000)) is None


def test_calibration_error_of_a_worked_example() -> None:
    curve = statistics.reliability([0.55, 0.65, 0.95, 0.95], [1, 0, 1, 0], bins=5, lowest=0.5)
    assert curve.count.tolist() == [1, 1, 0, 0, 2]
    assert curve.error == pytest.approx((0.45 + 0.65 + 2 * 0.45) / 4)


def test_true_probabilities_are_calibrated(random: Generator) -> None:
    confidence = random.uniform(0.5, 1, 20_000)
    right = random.random(20_000) < confidence
    assert statistics.reliability(confidence, right, bins=10, lowest=0.5).error < 0.02

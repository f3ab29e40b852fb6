"""One test over seeds and examples: it agrees with textbooks where they have a case, and keeps its level between."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import Generator
from scipy import stats

from kdsuite.evaluate.crossed import Crossed, crossed, group_sums, unpaired


@pytest.fixture
def random() -> Generator:
    return np.random.default_rng(11)


def test_where_only_seeds_vary_it_is_the_paired_t_test() -> None:
    for seeds, t in ((3, 4.5), (4, 3.0), (10, 2.0)):
        estimate = Crossed(t, of_seeds=1.0, of_examples=1e-9, seeds=seeds, groups=100_000)
        assert estimate.p_value() == pytest.approx(2 * stats.t.sf(t, seeds - 1), rel=1e-3)
        low, high = estimate.interval(0.05) or (0, 0)
        assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, seeds - 1), rel=1e-3)


def test_where_only_examples_vary_it_is_the_t_test_over_examples() -> None:
    for groups in (12, 60, 900):
        estimate = Crossed(2.0, of_seeds=0.0, of_examples=1.0, seeds=3, groups=groups)
        assert estimate.p_value() == pytest.approx(2 * stats.t.sf(2.0, groups - 1), rel=1e-3)


def test_the_variances_are_those_of_two_crossed_factors(random: Generator) -> None:
    """Of the mean of 4 × 300 differences: 9/4 from seeds with the answers' noise, 400/300 from examples without it."""
    found = []
    for _ in range(400):
        x = 3 * random.normal(0, 1, (4, 1)) + 20 * random.normal(0, 1, 300) + 30 * random.normal(0, 1, (4, 300))
        found.append(crossed(x))
    assert np.mean([e.of_seeds for e in found]) == pytest.approx(9 / 4 + 900 / 1200, rel=0.1)
    one_more = (100 / 300) ** 2
    assert np.mean([e.of_examples for e in found]) == pytest.approx(400 / 300 + one_more, rel=0.05)


def test_fewer_than_three_seeds_are_not_testable() -> None:
    for seeds in (1, 2):
        estimate = crossed(np.full((seeds, 50), 10.0))
        assert estimate.p_value() is None
        assert estimate.p_above(-2.0) is None
        assert estimate.interval() is None
        assert estimate.detectable(0.05, 0.8) is None


def test_a_single_group_has_no_variance() -> None:
    with pytest.raises(ValueError, match="5 examples in 1 groups: a variance needs two groups"):
        crossed(np.ones((3, 5)), np.zeros(5, int))


def test_no_difference_is_p_one() -> None:
    assert crossed(np.zeros((3, 50))).p_value() == pytest.approx(1.0)


def test_examples_that_agree_by_chance_make_no_claim() -> None:
    """No variance at all is no certainty: three seeds and two examples that all say the same."""
    assert (crossed(np.full((3, 2), 100.0)).p_value() or 0) > 0.2
    assert (crossed(np.full((3, 5), 100.0)).p_value() or 0) > 0.005
    assert (crossed(np.full((3, 300), 100.0)).p_value() or 1) < 1e-6


def test_repeated_examples_add_no_evidence_when_grouped(random: Generator) -> None:
    d = random.normal(3, 40, (3, 80))
    repeated, groups = np.repeat(d, 5, axis=1), np.repeat(np.arange(80), 5)
    plain = crossed(d)
    assert crossed(repeated, groups).p_value() == pytest.approx(plain.p_value(), rel=0.15)  # one group more is another
    assert (crossed(repeated).p_value() or 1) < (plain.p_value() or 0)


def test_three_losses_of_a_famous_effect_size_are_no_claim() -> None:
    """Cohen's d of 9.5 and p = .0036 over three seeds, once published; on 300 examples of which a third differ."""
    per_seed = np.array([0.90, 1.00, 1.11])  # points
    assert per_seed.mean() / per_seed.std(ddof=1) == pytest.approx(9.54, abs=0.02)
    assert stats.ttest_1samp(per_seed, 0)[1] == pytest.approx(0.0036, abs=1e-4)
    examples = np.tile([100.0, -100.0, 0.0, 0.0, 0.0, 0.0], 50)  # a third of the answers differ, as many for as against
    p = crossed(per_seed[:, None] + examples).p_value()
    assert p is not None
    assert p > 0.5


WIDE = st.floats(0.01, 100)


@given(mean=st.floats(-20, 20), of_seeds=WIDE, of_examples=WIDE, seeds=st.integers(3, 20), level=st.floats(0.003, 0.3))
@settings(max_examples=60, deadline=None)
def test_interval_and_p_value_say_the_same(
    mean: float, of_seeds: float, of_examples: float, seeds: int, level: float
) -> None:
    estimate = Crossed(mean, of_seeds, of_examples, seeds, 400)
    low, high = estimate.interval(level) or (0, 0)
    p = estimate.p_value()
    assert p is not None
    if abs(abs(mean) - (high - low) / 2) > 1e-3 * (high - low):
        assert (p < level) == (not low <= 0 <= high)


@given(of_seeds=WIDE, of_examples=WIDE, seeds=st.integers(3, 20), gain=st.floats(1, 30))
@settings(max_examples=40, deadline=None)
def test_more_of_anything_never_sees_less(of_seeds: float, of_examples: float, seeds: int, gain: float) -> None:
    estimate = Crossed(0.0, of_seeds, of_examples, seeds, 400)
    power = estimate.power(0.05)
    assert power(gain) <= power(gain + 1) + 1e-9
    assert power(gain) <= estimate.power(0.05, seeds=2 * seeds)(gain) + 0.01
    assert power(gain) <= replace(estimate, of_examples=of_examples / 4).power(0.05)(gain) + 0.01
    assert power(gain) >= estimate.power(0.05 / 8)(gain) - 1e-9


def test_known_variances_have_the_power_of_the_noncentral_t() -> None:
    """All from seeds: with known variances a noncentral t, whose critical value alone is estimated."""
    for seeds, gain in ((3, 6.0), (5, 3.5), (10, 3.0)):
        estimate = Crossed(0.0, 1.0, 1e-9, seeds, 10_000)
        critical = stats.t.ppf(0.975, seeds - 1)
        expected = stats.nct.sf(critical, seeds - 1, gain) + stats.nct.cdf(-critical, seeds - 1, gain)
        assert estimate.power(0.05, known=True)(gain) == pytest.approx(expected, abs=0.01)
    examples = Crossed(0.0, 1e-12, 1.0, 3, 100_000)
    assert examples.detectable(0.05, 0.8, known=True) == pytest.approx(1.96 + 0.8416, abs=0.01)


def test_a_power_below_the_tests_own_errors_takes_no_gain() -> None:
    estimate = Crossed(0.0, 0.5, 0.4, 3, 872)
    assert estimate.detectable(0.05, 0.01) == 0.0
    assert (estimate.detectable(0.05, 0.1) or 0.0) > 0.0


def test_seeds_needed_are_those_that_have_the_power() -> None:
    estimate = Crossed(0.0, 0.5, 0.4, 3, 872)
    needed = estimate.seeds_for(3.0, 0.05 / 3, 0.8, known=True)
    assert needed is not None
    assert (
        estimate.power(0.05 / 3, needed, known=True)(3.0) >= 0.8 > estimate.power(0.05 / 3, needed - 1, known=True)(3.0)
    )
    assert estimate.seeds_for(0.5, 0.05 / 3, 0.8, known=True) is None  # the examples' error alone is larger
    assert estimate.seeds_for(100.0, 0.05 / 3, 0.8, known=True) == 3


def test_non_inferiority_turns_the_question_round(random: Generator) -> None:
    estimate = crossed(random.normal(-0.2, 10, (4, 900)))
    assert (estimate.p_above(-5.0) or 1) < 0.001 < 0.9 < (estimate.p_above(4.0) or 0)
    assert estimate.p_above(estimate.mean) == pytest.approx(0.5)


def test_unrelated_seeds_agree_with_welch_where_only_seeds_vary(random: Generator) -> None:
    a, b = random.normal(1, 1, 40), random.normal(0, 1, 40)
    many_a, many_b = (np.tile(x[:, None], (1, 30_000)) for x in (a, b))
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert unpaired(many_a, many_b).interval() == pytest.approx(tuple(expected), rel=0.04)
    assert unpaired(many_a[:1], many_b).interval() is None


def test_group_sums_are_those_of_the_groups() -> None:
    assert group_sums([[1, 2, 3, 4], [0, 1, 0, 1]], [0, 1, 1, 0]).tolist() == [[5, 5], [1, 1]]


# ------------------------------------------------------------------------------------------- what simulation says


def _null(random: Generator, seeds: int, n: int, ratio: float) -> np.ndarray:
    """Differences [S, n] in points without an effect; `ratio` of the seeds' standard error to the examples'."""
    example, single = 25.0, 30.0
    between = random.normal(0, ratio * np.sqrt(seeds / n) * np.hypot(example, single / np.sqrt(seeds)), (seeds, 1))
    return between + random.normal(0, example, n) + random.normal(0, single, (seeds, n))


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_level_is_kept_whatever_varies(random: Generator, seeds: int, ratio: float) -> None:
    """At the levels of a single test and of Holm's first step of eight: 5 standard errors above would fail."""
    p = np.array([crossed(_null(random, seeds, 300, ratio)).p_value() for _ in range(3000)], float)
    assert np.mean(p < 0.05) <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 3000)
    assert np.mean(p < 0.05 / 8) <= 1.15 * 0.05 / 8 + 2.5 * np.sqrt(0.05 / 8 / 3000)
    if ratio >= 4:  # where seeds decide it is not conservative either
        assert np.mean(p < 0.05) >= 0.05 - 2.5 * np.sqrt(0.05 * 0.95 / 3000)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "ratio"), [(3, 0.5), (3, 3.0), (5, 1.0), (10, 3.0)])
def test_a_promised_gain_is_found_eight_times_in_ten(random: Generator, seeds: int, ratio: float) -> None:
    """Each study promises a gain from its own variances; another study with that true gain finds it."""
    found = []
    for _ in range(300):
        promised = crossed(_null(random, seeds, 300, ratio)).detectable(0.05 / 3, 0.8)
        low, high = crossed(_null(random, seeds, 300, ratio) + promised).interval(0.05 / 3) or (0, 0)
        found.append(not low <= 0 <= high)
    assert np.mean(found) == pytest.approx(0.8, abs=0.075)  # three standard errors and the conservative middle

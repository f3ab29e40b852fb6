"""A plan says what it can show, and what more would take: as exact theory, simulated studies and the report have it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as property_settings
from hypothesis import strategies as st
from numpy.random import Generator
from scipy import stats

from kdsuite import cli
from kdsuite.config import CONFIGS, Settings, changed, load
from kdsuite.config.report import ReportSettings
from kdsuite.evaluate.crossed import ASSUMED, Variances, crossed, pooled
from kdsuite.forecast.build import forecast
from kdsuite.forecast.evidence import EvidenceRow, evidence, examples_for
from kdsuite.forecast.rows import Forecast, as_json, describe
from kdsuite.forecast.scene import Machine
from kdsuite.plan import expand
from machines import Rates

MACHINE = Machine("cpu", "float32", 10**12, Rates(1e12, 1e12, 1e-12))
ONE = ReportSettings(confidence=0.95)


def thesis(seeds: int = 3, **changes: Any) -> Settings:
    return changed(load(CONFIGS / "experiment.yaml", "full", env_file=None), {"seeds": list(range(seeds))} | changes)


def expected(settings: Settings, **narrow: Any) -> Forecast:
    return forecast(settings, expand(settings, **narrow), MACHINE)


def row(
    settings: Settings, gain: float | None = None, pilot: Variances = ASSUMED, task: str = "sst2", **narrow: Any
) -> EvidenceRow:
    [found] = evidence(expected(settings, tasks=[task], **narrow), settings.report, {task: pilot}, gain)
    return found


def noncentral(gain: float, error: float, seeds: int, level: float) -> float:
    """Power of Student's t over seeds."""
    critical, center = stats.t.ppf(1 - level / 2, seeds - 1), gain / error
    return float(stats.nct.sf(critical, seeds - 1, center) + stats.nct.cdf(-critical, seeds - 1, center))


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_where_seeds_alone_vary_the_power_is_that_of_the_noncentral_t(seeds: int) -> None:
    only_seeds = Variances(2.0, 0.0, 0.0, 1.0, "known")
    found = row(thesis(seeds), pilot=only_seeds)
    assert noncentral(found.detectable or 0, (2 / seeds) ** 0.5, seeds, 0.05 / 3) == pytest.approx(0.8, abs=0.02)


def test_where_examples_alone_vary_the_power_is_that_of_the_normal() -> None:
    found = row(thesis(), pilot=Variances(0.0, 1000.0, 0.0, 1.0, "known"), task="squad")
    error = (1000 / 10_570 + (100 / 10_570) ** 2) ** 0.5
    assert found.detectable == pytest.approx((stats.norm.ppf(1 - 0.05 / 6) + stats.norm.ppf(0.8)) * error, rel=0.01)


@pytest.mark.slow
def test_studies_find_the_gain_that_the_plan_promises_eight_times_in_ten() -> None:
    random, gain = np.random.default_rng(5), row(thesis()).detectable or 0
    found = [crossed(gain + _difference(random, 3, 872)).p_value() or 1 for _ in range(1000)]
    assert np.mean(np.array(found) < 0.05 / 3) == pytest.approx(0.8, abs=0.04)


def _difference(random: Generator, seeds: int, examples: int) -> np.ndarray:
    """As is assumed: 2 points² of a seed, 500 of an example, 500 of an answer."""
    x = 2**0.5 * random.normal(0, 1, (seeds, 1)) + 500**0.5 * random.normal(0, 1, examples)
    return x + 500**0.5 * random.normal(0, 1, (seeds, examples))


def test_variances_are_found_again_in_runs_that_have_them() -> None:
    random = np.random.default_rng(3)
    there = pooled([_difference(random, 5, 400) for _ in range(300)], np.arange(400), "made up")
    assert there.of_seed == pytest.approx(2, abs=0.3)
    assert (there.of_group, there.of_answer) == (pytest.approx(500, rel=0.03), pytest.approx(500, rel=0.03))
    assert (there.group_size, there.basis) == (1.0, "made up")


def test_questions_of_a_passage_count_as_one_group() -> None:
    random = np.random.default_rng(3)
    differences, passages = np.repeat(_difference(random, 4, 100), 5, axis=1), np.repeat(np.arange(100), 5)
    there = pooled([differences], passages, "made up")
    assert there.group_size == 5.0
    assert there.study(4, 500).standard_error == pytest.approx(crossed(differences, passages).standard_error, rel=0.02)


def test_the_level_is_that_of_all_comparisons_of_a_task() -> None:
    second = {"models.students.S2": {"name": "Qwen/Qwen2.5-0.5B-Instruct"}}
    pairs = {"report.comparisons": [["KD1", "KD2"], ["KD1", "KD9"], ["KD3", "B0"]]}
    counts = [row(thesis(**changes)).comparisons for changes in ({}, second, pairs, second | pairs)]
    assert counts == [3, 6, 4, 8]
    assert row(thesis(), methods=["KD2"]).comparisons == 1, "B0 may have run before"
    one, three = row(thesis(), methods=["B0", "KD2"]), row(thesis())
    assert (one.detectable or 0) < (three.detectable or 0)
    assert " in 1 comparison (" in one.lines[0]


def test_where_nothing_is_compared_nothing_is_said() -> None:
    told = expected(thesis(), methods=["B0"])
    assert evidence(told, ONE, {}) == []
    assert not [line for line in describe(told, MACHINE) if "can show" in line]


def test_a_line_per_task_says_what_can_be_seen_and_from_what_that_is_known() -> None:
    settings = thesis()
    told = expected(settings)
    lines = describe(replace(told, evidence=evidence(told, settings.report, {})), MACHINE)
    at = lines.index("What it can show, with 80 % power after correction")
    assumed = "in 3 comparisons (assumed: seeds differ by 1 point, 1 answer in 10 by method)"
    assert lines[at + 1 : at + 4] == [
        f"  sst2: 3 seeds × 872 examples can see gains of 8.9 points and more {assumed}",
        f"  squad: 3 seeds × 10,570 examples can see gains of 8.1 points and more {assumed}",
        "",
    ]


def test_a_gain_takes_so_many_seeds_or_examples_and_the_time_of_a_seed() -> None:
    asked = row(thesis(5), gain=4.0)
    assert asked.lines[1] == f"  to see 4 points: {asked.seeds_needed} seeds × 872 examples; or 5 seeds × " + (
        f"{asked.examples_needed:,} examples"
    )
    at, fewer = row(thesis(asked.seeds_needed or 0)), row(thesis((asked.seeds_needed or 0) - 1))
    assert (at.detectable or 0) <= 4.0 < (fewer.detectable or 0)
    assert asked.lines[2].startswith("  a further seed of all methods takes ")


def test_the_number_of_examples_is_the_fewest_to_a_percent() -> None:
    def found(n: int) -> float:
        return ASSUMED.study(5, n).power(0.05 / 3, known=True)(4.0)

    fewest = examples_for(ASSUMED, 5, 4.0, 0.05 / 3, 0.8) or 0
    assert found(fewest) >= 0.8 > found(round(0.98 * fewest))
    assert examples_for(ASSUMED, 5, 2.0, 0.05 / 3, 0.8) is None, "five seeds alone see no less than 3.4"
    assert 2 < (examples_for(ASSUMED, 5, 99.0, 0.05 / 3, 0.8) or 0) < 10


def test_where_one_of_both_limits_the_floor_is_said() -> None:
    lines = row(thesis(), gain=1.0).lines
    assert lines[1] == (
        "  to see 1 points: with 872 examples no number of seeds up to 100 is enough (2.5 at best); "
        "or with 3 seeds no number of examples is enough (8.0 at best)"
    )


def test_the_time_of_a_further_seed_is_what_the_plan_with_it_takes_longer() -> None:
    three, four = (expected(thesis(n), tasks=["squad"]) for n in (3, 4))
    [found] = evidence(three, ONE, {})
    assert found.seconds_per_seed == pytest.approx(four.seconds - three.seconds)


def test_a_model_without_figures_leaves_the_time_of_a_seed_open() -> None:
    found = row(thesis(**{"models.students.S1.name": "nobody/knows"}), gain=4.0)
    assert found.seconds_per_seed is None
    assert found.lines[2].startswith("  a further seed of all methods takes ?")


@pytest.mark.parametrize(("seeds", "few"), [(1, "1 seed"), (2, "2 seeds")])
def test_fewer_than_three_seeds_are_told_what_three_could_show_and_how_many_it_takes(seeds: int, few: str) -> None:
    found, three = row(thesis(seeds), gain=4.0), row(thesis(), gain=4.0)
    assert (found.detectable, found.with_three, found.examples_needed) == (None, three.detectable, None)
    never = "cannot show anything, fewer than 3 never can; 3 seeds × 872 examples could see gains of 8.9 points"
    assert found.lines[0].startswith(f"sst2: {few} {never} and more in 3 comparisons (assumed: ")
    assert found.lines[1] == f"  to see 4 points: {three.seeds_needed} seeds × 872 examples"


POINTS2 = st.floats(0.1, 20)


@given(POINTS2, POINTS2, POINTS2, st.integers(3, 12), st.integers(50, 5000), st.sampled_from([1, 3, 16]))
@property_settings(max_examples=10, deadline=None)
def test_more_seeds_or_examples_never_need_a_larger_gain(
    seed: float, group: float, answer: float, seeds: int, examples: int, comparisons: int
) -> None:
    known = Variances(seed, 100 * group, 100 * answer, 1.0, "")
    here, more_seeds, more_examples = (
        known.study(s, n).detectable(0.05 / comparisons, 0.8, known=True) or 0
        for s, n in ((seeds, examples), (seeds + 1, examples), (seeds, 2 * examples))
    )
    assert more_seeds <= here * 1.005
    assert more_examples <= here * 1.005


def test_json_has_the_numbers(capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = thesis()
    told = expected(settings)
    told = replace(told, evidence=evidence(told, settings.report, {}, 4.0))
    sst2, squad = json.loads(as_json(told, MACHINE))["evidence"]
    assert (sst2["task"], sst2["seeds"], sst2["examples"], sst2["comparisons"]) == ("sst2", 3, 872, 3)
    assert (sst2["power"], sst2["gain"], sst2["basis"]) == (0.8, 4.0, ASSUMED.basis)
    assert sst2["detectable"] > 4 > sst2["with_most_seeds"] > squad["with_most_seeds"] > 0
    assert sst2["seeds_needed"] > squad["seeds_needed"] > 3 and sst2["examples_needed"] is None
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", "--task", "sst2", "--set", "threads=1", "--detect", "6", "--json"]) == 0
    [offline] = json.loads(capsys.readouterr().out)["evidence"]
    assert offline["gain"] == 6.0 and offline["seeds_needed"] > 3


def test_three_seeds_that_differ_by_eight_points_are_told_how_many_would_settle_it() -> None:
    """Accuracies once measured on SST-2's 872 sentences: every run of KD1 above every one of B0, and no evidence."""
    b0, kd1 = np.array([71.2, 60.3, 68.8]), np.array([78.0, 82.5, 81.8])
    pilot = Variances((kd1 - b0).var(ddof=1) - 500 / 872, 500.0, 500.0, 1.0, "from 6 pilot runs")
    found = row(thesis(), gain=13.0, pilot=pilot)
    assert (kd1 - b0).mean() == pytest.approx(14.0) and (found.detectable or 0) > 40
    assert found.lines[1].startswith("  to see 13 points: 7 seeds × 872 examples; or ")


@pytest.mark.parametrize("points", ["0", "-1.5", "nan", "101", "much"])
def test_what_is_no_gain_is_one_line_and_exit_2(points: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--detect", points]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "--detect" in err and ("a gain is above 0" in err or "valid number" in err)

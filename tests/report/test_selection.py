"""Hyper-parameters are chosen on dev, by other seeds, and a grid with holes says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kdsuite.evaluate.selection import COMPLETED, FAILED, Configuration, Run, select
from kdsuite.report.analysis import Analysis


def _run(temperature: float, seed: int, dev: float, validation: float = 50.0, status: str = COMPLETED) -> Run:
    configuration = Configuration("KD1", "sst2", "S1", (("temperature", temperature),))
    metrics = {"dev": {"accuracy": dev}, "validation": {"accuracy": validation}}
    return Run(f"T{temperature}-{seed}", configuration, seed, status, None, Path(), {"metrics": metrics})


def _chosen(runs: list[Run]) -> list[float]:
    """The temperature that each seed's run stands for, in the order of seeds."""
    return [dict(run.configuration.point)["temperature"] for run in select(runs, "accuracy").runs]


def test_the_best_on_dev_wins_whatever_the_reported_split_says() -> None:
    runs = [_run(2, 1, 70, 99), _run(2, 2, 70, 99), _run(4, 1, 80, 10), _run(4, 2, 82, 10)]
    assert _chosen(runs) == [4, 4]


def test_no_seed_chooses_for_itself() -> None:
    """Seed 2 alone finds T=4 better: that decides seed 1, for which it votes, and neither itself nor seed 3."""
    runs = [
        _run(t, seed, dev) for t, scores in ((2, (70, 70, 70)), (4, (60, 90, 60))) for seed, dev in enumerate(scores, 1)
    ]
    assert _chosen(runs) == [4, 2, 2]


@pytest.mark.parametrize("count", range(3, 12))
def test_no_two_seeds_choose_for_each_other(count: int) -> None:
    """Which seeds decide a seed's choice is found by letting each in turn prefer another point."""
    seeds = range(count)
    decides = {(voter, seed) for voter in seeds for seed, t in enumerate(_with_one_favourite(count, voter)) if t == 4}
    assert all((seed, voter) not in decides for voter, seed in decides)
    assert len(decides) == count * ((count - 1) // 2)  # half of the others, as many for every seed


def _with_one_favourite(count: int, voter: int) -> list[float]:
    dev = {(2, s): 70.0 for s in range(count)} | {(4, s): 90.0 if s == voter else 70 - 1e-6 for s in range(count)}
    return _chosen([_run(t, seed, score) for (t, seed), score in dev.items()])


def test_the_order_of_the_plan_s_seeds_does_not_matter() -> None:
    runs = [_run(t, seed, 70 + (seed * t) % 7) for t in (2, 4, 8) for seed in (42, 123, 456, 7, 9)]
    later_first = sorted(runs, key=lambda run: (run.configuration.point, -(run.seed or 0)))
    assert select(runs, "accuracy").runs == select(later_first, "accuracy").runs


def test_a_single_seed_is_chosen_by_itself_and_two_choose_for_each_other() -> None:
    assert _chosen([_run(2, 1, 70), _run(4, 1, 80)]) == [4]
    assert _chosen([_run(2, 1, 70), _run(2, 2, 90), _run(4, 1, 80), _run(4, 2, 80)]) == [2, 4]


def test_the_reported_points_are_told_with_their_number() -> None:
    runs = [
        _run(t, seed, dev) for t, scores in ((2, (70, 70, 70)), (4, (60, 90, 60))) for seed, dev in enumerate(scores, 1)
    ]
    assert select(runs, "accuracy").hyperparameters == "1 × temperature=4, 2 × temperature=2"


def test_under_the_null_the_reported_runs_are_neither_lucky_nor_correlated() -> None:
    """Dev and reported scores of a run share its luck; all 8 points are equally good. By the best mean, +1.4."""
    random, means, products = np.random.default_rng(5), [], []
    for _ in range(1500):
        luck = random.normal(0, 1, (8, 3))
        runs = [_run(t, seed, luck[t, seed], luck[t, seed]) for t in range(8) for seed in range(3)]
        a, b, c = (run.metric("validation", "accuracy") for run in select(runs, "accuracy").runs)
        means.append((a + b + c) / 3)
        products.append((a * b + b * c + c * a) / 3)
    assert abs(np.mean(means)) < 0.06  # four standard errors
    assert abs(np.mean(products)) < 0.07


def test_a_configuration_without_all_its_seeds_does_not_compete() -> None:
    runs = [_run(2, 1, 70), _run(2, 2, 70), _run(4, 1, 90), _run(4, 2, 90, status=FAILED)]
    assert _chosen(runs) == [2, 2]
    assert select(runs, "accuracy").note == "incomplete grid: 1 of 2 configurations have all their seeds"


def test_where_none_has_all_its_seeds_the_best_of_what_there_is() -> None:
    runs = [_run(2, 1, 70), _run(2, 2, 70, status=FAILED), _run(4, 1, 90), _run(4, 2, 90, status=FAILED)]
    assert _chosen(runs) == [4]


def test_nothing_completed_is_nothing_chosen() -> None:
    assert _chosen([_run(2, 1, 70, status=FAILED)]) == []


def test_equal_means_are_settled_by_the_plan() -> None:
    assert _chosen([_run(8, 1, 70), _run(2, 1, 70), _run(4, 1, 70)]) == [8]


def test_the_known_favourite_is_selected(steady: Analysis) -> None:
    for task in steady.tasks:
        cell = task.cell("KD1", "S1")
        assert cell is not None
        assert cell.hyperparameters == "T=4 α=0.5"


def test_the_choice_is_recorded(gappy: tuple[Path, list[str]]) -> None:
    choices = json.loads((gappy[0] / "summary" / "selection.json").read_text())
    found = {(c["task"], c["method"]): c for c in choices}
    assert found["sst2", "KD1"]["chosen"] == "T=4 α=0.5"
    assert found["sst2", "KD1"]["rule"].startswith("per seed, the highest mean accuracy on dev")
    assert found["sst2", "KD1"]["epochs"] == dict.fromkeys(found["sst2", "KD1"]["runs"], 2)
    assert found["sst2", "KD1"]["note"].startswith("incomplete grid: 3 of 4")
    assert found["squad", "KD1"]["chosen"] != "T=4 α=0.5"
    assert found["squad", "KD2"]["chosen"] is None

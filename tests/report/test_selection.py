"""Hyper-parameters are chosen on dev, over seeds, and a grid with holes says so."""

from __future__ import annotations

import json
from pathlib import Path

from kdsuite.evaluate.selection import COMPLETED, FAILED, Configuration, Run, select
from kdsuite.report.analysis import Analysis
from kdsuite.report.build import ReportSummary


def _run(temperature: float, seed: int, dev: float, validation: float = 50.0, status: str = COMPLETED) -> Run:
    configuration = Configuration("KD1", "sst2", "S1", (("temperature", temperature),))
    metrics = {"dev": {"accuracy": dev}, "validation": {"accuracy": validation}}
    return Run(f"T{temperature}-{seed}", configuration, seed, status, None, Path(), {"metrics": metrics})


def _chosen(runs: list[Run]) -> float | None:
    chosen = select(runs, "accuracy").chosen
    return dict(chosen.configuration.point)["temperature"] if chosen else None


def test_the_best_dev_mean_wins_whatever_the_reported_split_says() -> None:
    runs = [_run(2, 1, 70, 99), _run(2, 2, 70, 99), _run(4, 1, 60, 10), _run(4, 2, 82, 10)]
    assert _chosen(runs) == 4


def test_a_configuration_without_all_its_seeds_does_not_compete() -> None:
    runs = [_run(2, 1, 70), _run(2, 2, 70), _run(4, 1, 90), _run(4, 2, 90, status=FAILED)]
    assert _chosen(runs) == 2
    assert select(runs, "accuracy").note == "incomplete grid: 1 of 2 configurations have all their seeds"


def test_where_none_has_all_its_seeds_the_best_of_what_there_is() -> None:
    runs = [_run(2, 1, 70), _run(2, 2, 70, status=FAILED), _run(4, 1, 90), _run(4, 2, 90, status=FAILED)]
    assert _chosen(runs) == 4


def test_nothing_completed_is_nothing_chosen() -> None:
    assert _chosen([_run(2, 1, 70, status=FAILED)]) is None


def test_equal_means_are_settled_by_the_plan() -> None:
    assert _chosen([_run(8, 1, 70), _run(2, 1, 70), _run(4, 1, 70)]) == 8


def test_the_known_favourite_is_selected(steady: Analysis) -> None:
    for task in steady.tasks:
        cell = task.cell("KD1", "S1")
        assert cell is not None
        assert cell.hyperparameters == "T=4 α=0.5"


def test_the_choice_is_recorded(gappy: tuple[Path, ReportSummary]) -> None:
    choices = json.loads((gappy[0] / "summary" / "selection.json").read_text())
    found = {(c["task"], c["method"]): c for c in choices}
    assert found["sst2", "KD1"]["chosen"] == "T=4 α=0.5"
    assert found["sst2", "KD1"]["rule"] == "highest mean accuracy over seeds on the dev split"
    assert found["sst2", "KD1"]["epochs"] == dict.fromkeys(found["sst2", "KD1"]["runs"], 2)
    assert found["sst2", "KD1"]["note"].startswith("incomplete grid: 3 of 4")
    assert found["squad", "KD1"]["chosen"] != "T=4 α=0.5"
    assert found["squad", "KD2"]["chosen"] is None

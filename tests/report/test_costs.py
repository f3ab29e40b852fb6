"""What training cost: the teacher is paid once, its share falls to the runs it taught, sums stay sums."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from kdsuite.evaluate.selection import Record
from kdsuite.report.analysis import Analysis, analyse
from kdsuite.report.costs import costs_of_runs, mean_costs
from kdsuite.report.load import load
from kdsuite.report.tables import Table

from .conftest import GAPS, SETTINGS
from .synthetic import Study, write_results


def rows(name: str, costs: list[Record]) -> list[dict[str, str]]:
    table = csv.DictReader(io.StringIO(Table(name, costs).csv()))
    return [row for row in table if row["task"] == "sst2"]


def test_the_teacher_stands_apart_and_its_time_is_spread_over_the_runs_it_taught(steady: Analysis) -> None:
    costs = {row["method"]: row for row in rows("training_costs", mean_costs(steady))}
    assert list(costs) == ["teacher fine-tuning", "teacher outputs", "B0", "KD1", "KD2", "KD3"]
    assert [costs[m]["total_seconds"] for m in ("teacher fine-tuning", "teacher outputs")] == ["10.0000", "8.0000"]
    assert {m: row["runs"] for m, row in costs.items() if m[0] != "t"} == {
        "B0": "3",
        "KD1": "12",
        "KD2": "3",
        "KD3": "3",
    }
    share = 18 / 18  # seconds, over 12 + 3 + 3 runs
    assert costs["B0"]["teacher_seconds"] == "0.0000"
    assert float(costs["KD1"]["teacher_seconds"]) == share
    assert float(costs["KD1"]["seconds_per_run"]) == 10 + 2 + share


def test_the_shares_of_all_runs_are_the_time_of_the_teacher(steady: Analysis) -> None:
    runs = rows("training_costs_runs", costs_of_runs(steady))
    assert len([run for run in runs if run["seed"]]) == 21
    assert sum(float(run["teacher_seconds"]) for run in runs) == pytest.approx(18.0)


def test_a_rate_prices_seconds_and_without_one_there_is_no_price(steady: Analysis) -> None:
    priced = replace(steady, settings=SETTINGS.model_copy(update={"cost_per_hour": 7.2}))
    b0 = next(row for row in rows("training_costs", mean_costs(priced)) if row["method"] == "B0")
    assert float(b0["cost_per_run"]) == pytest.approx(12 / 3600 * 7.2, abs=1e-4)
    assert {row["cost_per_run"] for row in rows("training_costs", mean_costs(steady))} == {""}


def test_runs_that_failed_cost_nothing_here_and_unknown_times_are_no_zeros(tmp_path: Path) -> None:
    root = write_results(tmp_path, Study(tasks=("sst2",), n=40, lost=GAPS))
    for path in (root / "raw_runs").glob("KD*/run.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"teacher": {"name": "t"}}))
    costs = {row["method"]: row for row in rows("training_costs", mean_costs(analyse(load(root), SETTINGS)))}
    assert "KD2" not in costs
    assert costs["teacher outputs"]["total_seconds"] == costs["KD1"]["teacher_seconds"] == "n/a"
    assert costs["B0"]["seconds_per_run"] == "12.0000"

"""`kdsuite status`: planned runs by state, reasons of failures, and the time left."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdsuite.errors import DataError, KdsuiteError
from kdsuite.status import describe
from kdsuite.store.files import atomic_write_json
from kdsuite.store.records import Registry


def plan_runs(results: Path, *methods: str) -> list[dict]:
    runs = [
        {"run_id": f"{m}_sst2_S1_seed1", "fingerprint": m * 8, "spec": {"task": "sst2", "method": m}} for m in methods
    ]
    atomic_write_json(results / "raw_runs" / "plan.json", {"runs": runs})
    return runs


def finish(results: Path, run: dict, seconds: float) -> None:
    registry = Registry(results)
    registry.start(run["run_id"], run["fingerprint"], run["spec"])
    registry.complete(run["run_id"], timing={"train_seconds": seconds, "evaluate_seconds": 10.0})


def test_an_untouched_folder_says_how_to_begin(tmp_path: Path):
    with pytest.raises(KdsuiteError, match="nothing was run here yet; start with `kdsuite run`"):
        describe(tmp_path)


def test_a_broken_plan_is_named(tmp_path: Path):
    (tmp_path / "raw_runs").mkdir()
    (tmp_path / "raw_runs" / "plan.json").write_text("{")
    with pytest.raises(DataError, match=r"plan\.json: not a plan"):
        describe(tmp_path)


def test_states_reasons_and_time_left(tmp_path: Path):
    b0, kd1, kd2, _ = plan_runs(tmp_path, "B0", "KD1", "KD2", "KD3")
    finish(tmp_path, b0, 50.0)
    finish(tmp_path, kd1, 110.0)
    registry = Registry(tmp_path)
    registry.start(kd2["run_id"], kd2["fingerprint"], kd2["spec"])
    registry.fail(kd2["run_id"], "loss is nan")
    assert describe(tmp_path) == [
        f"{tmp_path}: 2 of 4 runs completed, 1 failed, 1 pending; about 3:00 left",
        "failed: KD2_sst2_S1_seed1: loss is nan",
    ]


def test_a_fraction_of_the_training_examples_goes_at_its_own_pace(tmp_path: Path):
    runs = plan_runs(tmp_path, "B0", "B0", "B0", "B0")
    for name, run, part in zip("abcd", runs, (1, 1, 0.25, 0.25), strict=True):
        run |= {"run_id": name, "spec": run["spec"] | ({"fraction": part} if part < 1 else {})}
    atomic_write_json(tmp_path / "raw_runs" / "plan.json", {"runs": runs})
    finish(tmp_path, runs[0], 110.0)
    finish(tmp_path, runs[2], 20.0)
    assert describe(tmp_path) == [f"{tmp_path}: 2 of 4 runs completed, 2 pending; about 2:30 left"]


def test_a_finished_folder_has_nothing_left(tmp_path: Path):
    (b0,) = plan_runs(tmp_path, "B0")
    finish(tmp_path, b0, 50.0)
    assert describe(tmp_path) == [f"{tmp_path}: 1 of 1 runs completed"]


def test_records_of_other_settings_do_not_count(tmp_path: Path):
    (b0,) = plan_runs(tmp_path, "B0")
    finish(tmp_path, b0 | {"fingerprint": "other"}, 50.0)
    assert describe(tmp_path) == [f"{tmp_path}: 0 of 1 runs completed, 1 pending; about -:-- left"]

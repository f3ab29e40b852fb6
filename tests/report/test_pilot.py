"""Runs that are there tell the variances of a study like theirs; runs of something else do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdsuite import cli
from kdsuite.config import CONFIGS, Settings, changed, load
from kdsuite.errors import DataError
from kdsuite.evaluate.crossed import ASSUMED
from kdsuite.report.analysis import analyse
from kdsuite.report.load import load as results_in
from kdsuite.report.pilot import pilots

from .synthetic import Study, write_results

SETTINGS = changed(load(CONFIGS / "experiment.yaml", "full", env_file=None), {"report.permutations": 100})


def study(root: Path, settings: Settings = SETTINGS, **about) -> Path:
    """A results folder whose plan says that it is of these settings."""
    write_results(root, Study(**about))
    path = root / "raw_runs" / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": settings.model_dump(mode="json")}))
    return root


@pytest.fixture(scope="module")
def pilot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("pilot"), seed_effect=0.03)


def test_a_plan_of_the_pilots_size_has_the_variances_that_its_report_has(pilot: Path) -> None:
    found, analysis = pilots(pilot, SETTINGS), analyse(results_in(pilot), SETTINGS.report)
    assert list(found) == ["sst2", "squad"]
    for task in analysis.tasks:
        estimates = [c.estimate for c in task.comparisons if c.estimate]
        planned = found[task.name].study(3, 300)
        assert planned.groups == estimates[0].groups == (300 if task.name == "sst2" else 75)
        assert planned.of_examples == pytest.approx(sum(e.of_examples for e in estimates) / 3)
        of_seeds = sum(e.of_seeds for e in estimates) / 3
        if found[task.name].of_seed > 0:
            assert planned.of_seeds == pytest.approx(of_seeds)
        else:
            assert planned.of_seeds > of_seeds, "the noise of answers alone would make it larger"


def test_runs_are_counted_once_and_the_folder_is_named(pilot: Path) -> None:
    """B0, KD1, KD2 and KD3, of three seeds: those that the report takes."""
    assert {found.basis for found in pilots(pilot, SETTINGS).values()} == {f"from 12 pilot runs in {pilot}"}


def test_what_is_lost_is_no_pilot(tmp_path: Path) -> None:
    lost = {f"KD{k}_sst2_S1{point}_seed42": "missing" for k, point in ((2, ""), (3, "_l1"))}
    lost |= {f"B0_squad_S1_seed{seed}": "failed" for seed in (42, 123, 456)}
    found = pilots(study(tmp_path, lost=lost, n=60), SETTINGS)
    assert list(found) == ["sst2"], "without B0 nothing is compared"
    assert found["sst2"].basis.startswith("from 10 pilot runs in ")


@pytest.mark.parametrize(
    ("changes", "about"),
    [
        ({"tasks.sst2.source": "generated"}, {}),
        ({"models.students.S1.name": "another/model"}, {}),
        ({}, {"seeds": (42,)}),
        ({}, {"one_group": True}),
        ({}, {"n": 49}),
    ],
    ids=["other data", "another student", "a single seed", "a single group", "a handful of examples"],
)
def test_runs_that_say_nothing_of_this_study_are_no_pilot(changes: dict, about: dict, tmp_path: Path) -> None:
    assert pilots(study(tmp_path, **{"tasks": ("sst2",), "n": 60} | about), changed(SETTINGS, changes)) == {}


def test_a_folder_without_runs_is_no_pilot_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    assert pilots(tmp_path / "nowhere", SETTINGS) == {}
    (tmp_path / "processed_data").mkdir()
    assert pilots(tmp_path, SETTINGS) == {}
    study(tmp_path, tasks=("sst2",), n=40)
    (tmp_path / "processed_data/sst2/validation.jsonl").write_text("{")
    with pytest.raises(DataError, match="validation.jsonl is damaged"):
        pilots(tmp_path, SETTINGS)


@pytest.mark.slow
@pytest.mark.usefixtures("timed_once")
def test_the_plan_takes_the_pilot_of_its_results_folder(pilot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrow = ["--config", str(CONFIGS / "experiment.yaml"), "--mode", "full", "--task", "sst2", "--json"]
    told = []
    for results in (pilot, pilot / "nowhere"):
        assert cli.main(["plan", *narrow, "--results", str(results)]) == 0
        [row] = json.loads(capsys.readouterr().out)["evidence"]
        told.append((row["basis"], row["detectable"]))
    assert [basis for basis, _ in told] == [f"from 12 pilot runs in {pilot}", ASSUMED.basis]
    assert told[0][1] > told[1][1], "its seeds differ by 3 points"

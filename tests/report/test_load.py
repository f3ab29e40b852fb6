"""What is missing, failed or odd is never taken for a result, and never passed over in silence."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from kdsuite.config.report import ReportSettings
from kdsuite.errors import DataError
from kdsuite.evaluate.selection import COMPLETED, FAILED, NOT_RUN, finite
from kdsuite.report.analysis import analyse
from kdsuite.report.load import load, read_history, read_manifest, read_predictions, teacher_quality
from kdsuite.store.files import SEAL, read_json

from .synthetic import Study, write_results

QUICK = ReportSettings(permutations=100)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path, Study(tasks=("sst2",), n=40))


def _change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no results here"):
        load(tmp_path)


def test_states_of_runs(tmp_path: Path) -> None:
    ids = [f"B0_sst2_S1_seed{seed}" for seed in (42, 123, 456)]
    lost = dict(zip(ids, ("failed", "missing", "unfinished"), strict=True)) | {"KD2_sst2_S1_seed42": "nan"}
    runs = {run.run_id: run for run in load(write_results(tmp_path, Study(tasks=("sst2",), n=20, lost=lost))).runs}
    assert [runs[i].status for i in ids] == [FAILED, NOT_RUN, NOT_RUN]
    assert [runs[i].reason for i in ids] == ["loss is not finite at step 7", "never started", "interrupted"]
    assert runs["KD2_sst2_S1_seed42"].status == FAILED
    assert "without finite accuracy" in (runs["KD2_sst2_S1_seed42"].reason or "")
    assert runs["KD2_sst2_S1_seed123"].status == COMPLETED


def test_a_record_of_other_settings_is_not_a_result(results: Path) -> None:
    _change(results / "raw_runs" / "B0_sst2_S1_seed42" / "run.json", fingerprint="another")
    loaded = load(results)
    assert next(r for r in loaded.runs if r.run_id == "B0_sst2_S1_seed42").status == NOT_RUN
    assert any("of other settings" in note for note in loaded.notes)


def test_unplanned_and_superseded_runs_are_left_out(results: Path) -> None:
    plan = json.loads((results / "raw_runs" / "plan.json").read_text())
    plan["runs"] = [run for run in plan["runs"] if run["spec"]["method"] != "KD3"]
    _change(results / "raw_runs" / "plan.json", runs=plan["runs"])
    old = results / "raw_runs" / "KD3_sst2_S1_l1_seed42"
    old.rename(old.with_name("KD3_sst2_S1_l1_seed42--0123abcd"))
    loaded = load(results)
    assert not any(run.configuration.method == "KD3" for run in loaded.runs)
    assert any(note.startswith("2 runs on disk are not in the plan") for note in loaded.notes)


def test_without_a_plan_the_recorded_runs_are_shown_and_it_is_said(results: Path) -> None:
    (results / "raw_runs" / "plan.json").unlink()
    loaded = load(results)
    assert len(loaded.runs) == 23
    assert any("what was asked for is unknown" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", r"not valid JSON \(.*\)"), ('{"runs": [], "_seal": "0"}', "altered since it was written"), ("[]", ".*")],
)
def test_a_plan_that_cannot_be_read_is_told_with_what_is_wrong(results: Path, content: str, said: str) -> None:
    (results / "raw_runs" / "plan.json").write_text(content.replace("_seal", SEAL))
    loaded = load(results)
    assert len(loaded.runs) == 23 and loaded.plan == {}
    [note] = loaded.notes
    assert re.fullmatch(rf"raw_runs/plan.json cannot be read \({said}\): only recorded runs are shown", note)


def test_broken_files_are_noted(results: Path) -> None:
    (results / "raw_runs" / "B0_sst2_S1_seed42" / "run.json").write_text("{")
    (results / "raw_runs" / "benchmarks" / "all.json").write_text("[]")
    loaded = load(results)
    assert next(r for r in loaded.runs if r.run_id == "B0_sst2_S1_seed42").status == NOT_RUN
    assert not loaded.benchmarks
    assert len(loaded.notes) == 2


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda lines: lines[:-3], "3 of 40 ids are missing"),
        (lambda lines: [*lines, lines[0]], "1 repeated"),
        (lambda lines: ["{", *lines[1:]], "not as documented"),
        (lambda lines: [lines[0].replace("sst2-validation-0", "x"), *lines[1:]], "1 unknown"),
        (lambda lines: [line.replace('"accuracy": 0.0', '"accuracy": NaN') for line in lines], "not finite"),
        (lambda lines: [line.replace('"accuracy": 0.0', '"accuracy": 1.0') for line in lines], "run.json says"),
        (lambda lines: [], "no predictions"),
    ],
)
def test_unusable_predictions_make_a_run_failed(results: Path, damage, reason: str) -> None:
    path = results / "raw_runs" / "B0_sst2_S1_seed42" / "predictions.jsonl"
    path.write_text("".join(line + "\n" for line in damage(path.read_text().splitlines())))
    analysis = analyse(load(results), QUICK)
    run = next(run for run in analysis.runs if run.run_id == "B0_sst2_S1_seed42")
    assert run.status == FAILED
    assert reason in (run.reason or "")
    cell = analysis.tasks[0].cell("B0", "S1")
    assert cell is not None
    assert (cell.status, len(cell.runs)) == ("incomplete", 2)


def test_predictions_that_are_gone_are_missing_and_not_altered(results: Path) -> None:
    path = results / "raw_runs" / "B0_sst2_S1_seed42" / "predictions.jsonl"
    _change(path.with_name("run.json"), made={f"raw_runs/{path.parent.name}/{path.name}": "a hash"})
    for said in ("predictions.jsonl was altered since it was written", "predictions.jsonl is missing"):
        run = next(run for run in load(results).runs if run.run_id == path.parent.name)
        with pytest.raises(DataError, match=said):
            read_predictions(run)
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("content", [b"", b"epoch,dev_metric\n1\n1,2,3,4\n", b"epoch\n\xff\n"])
def test_a_history_that_cannot_be_read_has_no_curve(results: Path, content: bytes) -> None:
    run = next(run for run in load(results).runs if run.run_id == "B0_sst2_S1_seed42")
    assert len(read_history(run))
    (run.folder / "history.csv").write_bytes(content)
    assert read_history(run).empty


def test_damaged_examples_name_the_file_and_the_remedy(results: Path) -> None:
    path = results / "processed_data" / "sst2" / "validation.jsonl"
    path.write_text("{}\n")
    with pytest.raises(DataError, match=r"validation.jsonl is damaged .*`kdsuite prepare`"):
        analyse(load(results), QUICK)


def test_damaged_side_files_are_shown_as_such(results: Path) -> None:
    (results / "processed_data" / "sst2" / "manifest.json").write_text("{")
    (results / "teacher_cache" / "sst2" / "0f1e2d3c" / "quality.json").write_text("{")
    assert read_manifest(results, "sst2") == {"problem": "manifest.json cannot be read"}
    assert teacher_quality(results, "sst2") == [{"cache": "0f1e2d3c", "problem": "quality.json cannot be read"}]


def test_predictions_are_matched_by_id(results: Path) -> None:
    run = next(run for run in load(results).runs if run.run_id == "B0_sst2_S1_seed42")
    there = read_predictions(run)
    back = read_predictions(run, there.ids[::-1])
    assert back.ids == there.ids[::-1]
    assert back.texts == there.texts[::-1] != there.texts
    assert np.array_equal(back.scores["accuracy"], there.scores["accuracy"][::-1])


def test_probabilities_of_labels(results: Path) -> None:
    run = next(run for run in load(results).runs if run.run_id == "teacher_sst2")
    row = json.loads((run.folder / "predictions.jsonl").read_text().splitlines()[0])
    odds = [math.exp(value) for value in row["label_logprobs"].values()]
    confidence = read_predictions(run).confidence
    assert confidence is not None
    assert confidence[0] == pytest.approx(max(odds) / sum(odds))


def test_only_numbers_are_numbers() -> None:
    assert finite(3) == 3.0
    assert all(math.isnan(finite(value)) for value in (None, "3", True, math.inf, math.nan))


def test_what_other_processes_write_and_remove_meanwhile_is_not_read(results: Path, monkeypatch) -> None:
    measured = results / "raw_runs" / "benchmarks"
    [whole] = measured.glob("*.json")
    before = load(results)
    (measured / f".tmp-12-0a1b2c3d-{whole.name}").write_bytes(whole.read_bytes())
    (measured / "gone.json").symlink_to("nothing")
    assert load(results) == before
    gone = results / "raw_runs" / "B0_sst2_S1_seed42"

    def away(path: Path) -> object:
        """Its run begins anew with other settings: its folder is renamed."""
        if path.parent == gone and gone.exists():
            gone.rename(f"{gone}--0123abcd")
        return read_json(path)

    monkeypatch.setattr("kdsuite.report.load.read_json", away)
    loaded = load(results)
    assert next(run for run in loaded.runs if run.run_id == gone.name).status == NOT_RUN

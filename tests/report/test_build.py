"""The report is a pure function of the raw runs, and its summary says what a terminal should show."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kdsuite.report.analysis import analyse
from kdsuite.report.build import build_report
from kdsuite.report.compare import compare
from kdsuite.report.load import load

from .conftest import SETTINGS
from .synthetic import Study, write_results


def test_deleted_output_is_restored_byte_for_byte(whole: tuple[Path, list[str]], tmp_path: Path) -> None:
    root = tmp_path / "again"
    shutil.copytree(whole[0], root, ignore=shutil.ignore_patterns("summary", "figures", "report.html"))
    build_report(root, SETTINGS)
    written = sorted(p.relative_to(whole[0]) for p in whole[0].rglob("*") if p.is_file())
    assert written == sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    differing = [p.as_posix() for p in written if (whole[0] / p).read_bytes() != (root / p).read_bytes()]
    assert differing == []


def test_the_summary_names_what_failed_and_what_was_not_run(gappy: tuple[Path, list[str]]) -> None:
    root, lines = gappy
    assert "failed: KD2_sst2_S1_seed456 (loss is not finite at step 7)" in lines
    assert lines[-2:] == ["not run: 6 planned runs, e.g. KD3_sst2_S1_l1_seed42", f"report: {root / 'report.html'}"]
    page = (root / "report.html").read_text(encoding="utf-8")
    assert "<code>KD2_squad_S1_seed42</code> not run: never started" in page
    assert "<code>KD3_sst2_S1_l1_seed42</code> not run: interrupted" in page


def test_a_plan_of_nothing_but_the_teacher_has_a_report(tmp_path: Path) -> None:
    skills = {"teacher": 0.9}
    root = write_results(tmp_path, Study(tasks=("sst2",), n=30, skills=skills, students=(), benchmark=False))
    assert build_report(root, SETTINGS) == ["SST-2: no student was planned.", f"report: {root / 'report.html'}"]
    assert (root / "report.html").exists()


def test_a_plan_that_has_not_begun_has_a_report(tmp_path: Path) -> None:
    root = write_results(tmp_path, Study(tasks=("squad",), n=30, benchmark=False))
    for folder in (root / "raw_runs").iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    said: list[str] = []
    assert "not run: 23 planned runs, e.g. teacher_squad" in build_report(root, SETTINGS, said.append)
    assert any(line == "squad: teacher: teacher_squad not run (never started)" for line in said)
    assert "not run" in (root / "summary" / "table_4_1_main_results.csv").read_text()


def test_runs_without_a_plan_have_a_report(tmp_path: Path) -> None:
    root = write_results(tmp_path, Study(tasks=("sst2",), n=30, grid=((2.0, 0.5),), benchmark=False))
    (root / "raw_runs" / "plan.json").unlink()
    headline, *_ = build_report(root, SETTINGS)
    assert headline.startswith("sst2: ") and "S1" not in headline
    assert 'id="answers"' in (root / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("seeds", [(42,), (42, 123, 456)], ids=["one seed", "three seeds"])
@pytest.mark.parametrize(
    ("task", "n", "words"),
    [
        ("squad", 12, "all 12 examples of the reported split belong together"),
        ("squad", 4, "all 4 examples of the reported split belong together"),
        ("squad", 1, "the reported split is a single example"),
        ("sst2", 1, "the reported split is a single example"),
    ],
)
def test_a_reported_split_of_one_group_tells_scores_and_claims_nothing(
    tmp_path: Path, task: str, n: int, words: str, seeds: tuple[int, ...]
) -> None:
    """Neither an interval without width nor that no run were completed."""
    study = Study(tasks=(task,), n=n, one_group=True, seeds=seeds, grid=((2.0, 0.5),))
    root = write_results(tmp_path / "a", study)
    headline, *_ = build_report(root, SETTINGS)
    assert f"whether distillation helps cannot be tested, for {words}" in headline
    assert "no completed" not in (root / "summary" / "narrative.md").read_text()
    analysis = analyse(load(root), SETTINGS)
    assert [cell.interval for cell in analysis.tasks[0].cells] == [None] * 6
    assert "()" not in "".join(re.findall(r'data-tip="(.*?)"', (root / "report.html").read_text(encoding="utf-8")))
    assert all(len(cell.runs) for cell in analysis.tasks[0].cells)
    lines = compare(root, write_results(tmp_path / "b", replace(study, seed=1)), SETTINGS).lines
    [line] = [line for line in lines if " KD1 " in line]
    assert line.endswith("too few examples")


def test_no_model_library_is_loaded() -> None:
    code = "import sys, kdsuite.report.build; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_two_folders_side_by_side(tmp_path: Path) -> None:
    skills = {"teacher": 0.9, "zero-shot": 0.5, "B0": 0.7, "KD1": 0.8, "KD2": 0.8}
    a = write_results(tmp_path / "a", Study(tasks=("sst2",), skills=skills, noise=0.03, seed_effect=0.002))
    b = write_results(tmp_path / "b", Study(tasks=("sst2",), seeds=(1, 2, 3), skills=skills | {"B0": 0.8}, noise=0.03))
    found = compare(a, b, SETTINGS)
    pairs = {pair.label: pair for pair in found.pairs}
    low, high = pairs["S1 B0"].interval or (0, 0)
    assert 0 < low < (pairs["S1 B0"].difference or 0) < high
    assert found.settings == (("seeds", "[42, 123, 456]", "[1, 2, 3]"),)
    assert any(line.startswith("SST-2") and "S1 B0" in line for line in found.lines)


@pytest.mark.parametrize("seeds", [(42,), (42, 123)])
def test_side_by_side_single_runs_and_pairs_have_no_interval(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    """With no difference at all, one over examples alone leaves out 0 in up to half of the cases."""
    study = Study(tasks=("sst2",), n=40, grid=((2.0, 0.5),))
    three = write_results(tmp_path / "three", study)
    found = compare(three, write_results(tmp_path / "few", replace(study, seeds=seeds)), SETTINGS)
    assert {(pair.interval, pair.remark) for pair in found.pairs} == {(None, "too few seeds")}
    said = "no interval below 3 runs on each side: how far others would lie off is not known"
    assert said in found.lines
    assert all(pair.interval for pair in compare(three, three, SETTINGS).pairs if pair.a and pair.a.trained)


def test_side_by_side_with_gaps_and_other_examples(tmp_path: Path) -> None:
    a = write_results(tmp_path / "a", Study(tasks=("sst2",), n=40, lost={"zero-shot_sst2_S1": "failed"}))
    b = write_results(tmp_path / "b", Study(tasks=("sst2", "squad"), n=50))
    pairs = {(pair.task, pair.label): pair for pair in compare(a, b, SETTINGS).pairs}
    assert pairs["sst2", "S1 zero-shot"].difference is None
    assert pairs["squad", "teacher"].a is None
    assert pairs["sst2", "S1 B0"].interval is None
    assert pairs["sst2", "S1 B0"].remark == "other examples"
    assert any("not planned" in line for line in compare(a, b, SETTINGS).lines)


@pytest.mark.parametrize("key", ["inputs", "references"])
def test_side_by_side_ids_of_other_data_are_other_examples(tmp_path: Path, key: str) -> None:
    """Rows without an id are known by their number, which rows of another file have, too."""
    study = Study(tasks=("squad",), n=40, grid=((2.0, 0.5),))
    a, b = (write_results(tmp_path / name, study) for name in "ab")
    assert all(pair.remark != "other examples" for pair in compare(a, b, SETTINGS).pairs)
    path = b / "processed_data" / "squad" / "validation.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("Where is Ada" if key == "inputs" else "in New York", "?"))
    assert {(pair.remark, pair.interval) for pair in compare(a, b, SETTINGS).pairs} == {("other examples", None)}
    ids = [{k: json.loads(line)[k] for k in ("id", "group")} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in ids))  # as a study keeps them: no more is known
    assert all(pair.remark != "other examples" for pair in compare(a, b, SETTINGS).pairs)


def test_side_by_side_scores_of_two_metrics_have_no_difference(tmp_path: Path) -> None:
    study = Study(tasks=("squad",), n=40, grid=((2.0, 0.5),))
    a, b = (write_results(tmp_path / name, study) for name in "ab")
    plan = b / "raw_runs" / "plan.json"
    plan.write_text(plan.read_text().replace('"metric": "f1"', '"metric": "exact_match"'))
    pairs = compare(a, b, SETTINGS).pairs
    assert {(pair.difference, pair.interval, pair.remark) for pair in pairs} == {(None, None, "F1 and exact match")}
    assert all(pair.a and pair.b and pair.a.mean >= pair.b.mean > 0 for pair in pairs)

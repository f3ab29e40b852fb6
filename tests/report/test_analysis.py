"""Known effects get the right verdicts; what is missing gets none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdsuite.config.report import ReportSettings
from kdsuite.errors import DataError
from kdsuite.report.analysis import Analysis, TaskAnalysis, analyse
from kdsuite.report.comparisons import Comparison, paired_differences
from kdsuite.report.load import load

from .conftest import GAPS, SETTINGS, STEADY
from .synthetic import Study, write_results


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analyse(load(write_results(tmp_path_factory.mktemp("gaps"), Study(**STEADY, lost=GAPS))), SETTINGS)


def _task(analysis: Analysis, name: str) -> TaskAnalysis:
    task = analysis.task(name)
    assert task is not None
    return task


def _against_b0(analysis: Analysis, name: str, method: str) -> Comparison:
    comparison = _task(analysis, name).comparison("S1", method)
    assert comparison is not None
    return comparison


@pytest.mark.parametrize("task", ["sst2", "squad"])
def test_a_real_gain_a_null_and_a_loss(steady: Analysis, task: str) -> None:
    found = {method: _against_b0(steady, task, method) for method in ("KD1", "KD2", "KD3")}
    assert [c.verdict for c in found.values()] == ["better", "no evidence", "worse"]
    low, high = found["KD1"].interval or (0, 0)
    assert low < (3 if task == "sst2" else 2.4) < high  # a partly right answer scores too in SQuAD
    assert found["KD1"].seeds == 3
    assert found["KD1"].examples == 800


def test_only_the_corrected_test_counts(steady: Analysis) -> None:
    for task in steady.tasks:
        for c in task.comparisons:
            assert c.p_holm is not None
            assert c.p_both is not None
            assert c.p_holm >= c.p_both
            assert (c.verdict in ("better", "worse")) == (c.p_holm < 0.05)


def test_missing_cells_have_a_reason_instead_of_a_number(gaps: Analysis) -> None:
    cells = {(task.name, c.method): c for task in gaps.tasks for c in task.cells}
    assert cells["sst2", "KD1"].status == "incomplete"
    assert cells["sst2", "KD2"].status == "failed"
    assert cells["sst2", "KD3"].status == "incomplete"
    assert cells["squad", "KD2"].status == "not run"
    assert np.isnan(cells["squad", "KD2"].mean)
    assert cells["squad", "KD2"].interval is None
    assert "loss is not finite" in cells["sst2", "KD2"].note
    assert cells["sst2", "B0"].status == "completed"


def test_comparisons_with_gaps(gaps: Analysis) -> None:
    words = {(t, m): _against_b0(gaps, t, m).verdict for t in ("sst2", "squad") for m in ("KD1", "KD2", "KD3")}
    assert words["sst2", "KD2"] == "failed"
    assert words["sst2", "KD3"] == "too few seeds"
    assert words["squad", "KD2"] == "not run"
    assert words["squad", "KD3"] == "too few seeds"


def test_one_seed_is_never_significant(gaps: Analysis) -> None:
    comparison = _against_b0(gaps, "squad", "KD3")  # six points down, and certain for this one run
    assert comparison.seeds == 1
    assert comparison.p_paired is not None
    assert comparison.p_paired < 0.001
    assert comparison.seed_test is None
    assert comparison.p_both is None
    assert comparison.p_holm is None
    assert comparison.detectable is None


def test_seeds_are_paired(steady: Analysis) -> None:
    task = _task(steady, "sst2")
    a, b = task.cell("KD1", "S1"), task.cell("B0", "S1")
    assert a is not None
    assert b is not None
    assert a.scores is not None
    assert b.scores is not None
    swapped = type(b)(**{**vars(b), "runs": b.runs[::-1], "scores": b.scores[::-1]})
    assert np.array_equal(paired_differences(a, b), paired_differences(a, swapped))


def test_further_pairs_join_the_family(tmp_path: Path) -> None:
    root = write_results(tmp_path, Study(tasks=("sst2",), n=60))
    plain = analyse(load(root), SETTINGS)
    more = analyse(load(root), SETTINGS.model_copy(update={"comparisons": (("KD1", "KD2"), ("KD9", "B0"))}))
    names = [c.name for c in more.tasks[0].comparisons]
    assert names == ["KD1 vs B0", "KD2 vs B0", "KD3 vs B0", "KD1 vs KD2", "KD9 vs B0"]
    assert more.tasks[0].comparisons[-1].verdict == "not run"
    first, again = plain.tasks[0].comparisons[0], more.tasks[0].comparisons[0]
    assert (again.p_holm or 0) >= (first.p_holm or 1)


def test_the_questions_of_a_passage_are_one_group(steady: Analysis) -> None:
    assert _task(steady, "squad").groups.max() == 199  # 800 questions, four to a passage
    assert _task(steady, "sst2").groups.max() == 799


def test_agreement_with_the_teacher(steady: Analysis) -> None:
    task = _task(steady, "sst2")
    teacher, student = task.cell("teacher"), task.cell("B0", "S1")
    assert teacher is not None
    assert student is not None
    assert teacher.agreement == (100.0,)
    same = [a == b for a, b in zip(teacher.predictions[0].texts, student.predictions[1].texts, strict=True)]
    assert student.agreement[1] == pytest.approx(100 * np.mean(same))


def test_non_inferiority_and_the_share_of_the_gap(tmp_path: Path) -> None:
    skills = {"teacher": 0.90, "zero-shot": 0.5, "B0": 0.80, "KD1": 0.90, "KD2": 0.85}
    study = Study(tasks=("sst2",), n=900, skills=skills, seed_effect=0.001, noise=0.02)
    gaps = {g.a: g for g in analyse(load(write_results(tmp_path, study)), SETTINGS).tasks[0].gaps}
    assert gaps["KD1"].verdict == "not inferior"
    assert gaps["KD2"].verdict == "no evidence"
    assert gaps["B0"].share is None
    assert gaps["KD2"].share == pytest.approx(0.5, abs=0.15)
    low, high = gaps["KD2"].share_interval or (0, 0)
    assert low < 0.5 < high


def test_without_a_gap_no_share_of_it(tmp_path: Path) -> None:
    skills = {"teacher": 0.80, "zero-shot": 0.5, "B0": 0.80, "KD1": 0.84}
    study = Study(tasks=("sst2",), n=300, skills=skills, grid=((2.0, 0.5),))
    assert all(gap.share is None for gap in analyse(load(write_results(tmp_path, study)), SETTINGS).tasks[0].gaps)


def test_two_students_share_a_family_and_keep_apart(tmp_path: Path) -> None:
    root = write_results(tmp_path, Study(tasks=("sst2",), students=("S1", "S2"), n=80, grid=((2.0, 0.5),)))
    task = analyse(load(root), SETTINGS).tasks[0]
    assert task.students == ("S1", "S2")
    assert len(task.comparisons) == 6
    assert [c.label for c in task.cells[:3]] == ["teacher", "S1 zero-shot", "S1 B0"]


def test_without_prepared_data_the_runs_own_ids_are_used(tmp_path: Path) -> None:
    root = write_results(tmp_path, Study(tasks=("sst2",), n=50))
    (root / "processed_data" / "sst2" / "validation.jsonl").unlink()
    analysis = analyse(load(root), SETTINGS)
    assert len(analysis.tasks[0].ids) == 50
    assert any("processed_data is missing" in note for note in analysis.notes)


def test_one_example_is_too_few(tmp_path: Path) -> None:
    analysis = analyse(load(write_results(tmp_path, Study(tasks=("sst2",), n=1))), SETTINGS)
    assert {c.verdict for c in analysis.tasks[0].comparisons} == {"too few examples"}


@pytest.mark.parametrize("seeds", [(1, 2), (1, 2, 3)])
def test_no_interval_of_a_difference_leaves_what_scores_can_be(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    """Of two examples, whose t has one degree of freedom."""
    task = analyse(load(write_results(tmp_path, Study(tasks=("sst2",), n=2, seeds=seeds))), SETTINGS).tasks[0]
    intervals = [i for c in (*task.comparisons, *task.gaps) for i in (c.plain, c.interval) if i]
    intervals += [doubt["interval"] for doubt in task.doubts if doubt.get("interval")]
    assert intervals
    assert all(-100 <= low <= high <= 100 for low, high in intervals)


def test_an_unknown_task_is_an_error(tmp_path: Path) -> None:
    root = write_results(tmp_path, Study(tasks=("sst2",), n=10))
    plan = root / "raw_runs" / "plan.json"
    plan.write_text(plan.read_text().replace('"task": "sst2"', '"task": "sst3"'))
    with pytest.raises(DataError, match="sst3"):
        analyse(load(root), ReportSettings())


@pytest.mark.parametrize("task", ["sst2", "squad"])
def test_without_a_plan_a_task_is_scored_as_its_runs_were_selected(tmp_path: Path, task: str) -> None:
    root = write_results(tmp_path, Study(tasks=(task,), n=40))
    asked = analyse(load(root), SETTINGS).tasks[0]
    (root / "raw_runs" / "plan.json").unlink()
    found = analyse(load(root), SETTINGS).tasks[0]
    assert (found.title, found.metric, found.secondary) == (task, asked.metric, asked.secondary)
    assert {c.label: c.mean for c in found.cells} == {c.label: c.mean for c in asked.cells}

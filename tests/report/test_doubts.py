"""Where a comparison is doubtful itself it is said, and nowhere else."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdsuite.report import words
from kdsuite.report.analysis import TaskAnalysis, analyse
from kdsuite.report.build import build_report, looks_at
from kdsuite.report.load import load
from kdsuite.store.files import atomic_write_json
from kdsuite.store.layout import Layout

from .conftest import SETTINGS
from .synthetic import Study, write_results

SOUND = {"teacher": 0.92, "zero-shot": 0.52, "B0": 0.78, "KD1": 0.86}
STUDY = Study(tasks=("sst2",), n=400, skills=SOUND, grid=((2.0, 0.5),), seed_effect=0.002, noise=0.03, benchmark=False)


def _task(root: Path, skills: dict[str, float] | None = None, **changed: Any) -> TaskAnalysis:
    study = replace(STUDY, skills=SOUND | (skills or {}), **changed)
    return analyse(load(write_results(root, study)), SETTINGS).tasks[0]


def _doubts(root: Path, **changed: Any) -> dict[str, str]:
    task = _task(root, **changed)
    return dict(zip([d["kind"] for d in task.doubts], words.doubts([task]), strict=True))


@pytest.mark.parametrize("seeds", [(42, 123, 456), (42,)])
def test_a_sound_study_raises_no_doubt(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    """Nor one with a single seed, of which the headline says what it cannot show."""
    assert _doubts(tmp_path, seeds=seeds) == {}


def test_fine_tuning_that_does_not_work_is_named_with_both_scores(tmp_path: Path) -> None:
    text = _doubts(tmp_path, skills={"zero-shot": 0.84})["untrained"]
    assert text.startswith("SST-2: B0 7") and " against 8" in text
    assert "untrained: fine-tuning itself gained nothing here, so a method that beats it may only be steadier." in text


@pytest.mark.parametrize("seeds", [(42, 123, 456), (42,)])
def test_fine_tuning_that_may_not_work_is_named_with_its_interval(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    """Three unstable seeds, or one whose examples do not tell it from the untrained student."""
    doubts = _doubts(tmp_path, skills={"zero-shot": 0.76, "B0": 0.79}, n=150, noise=0.3, seeds=seeds)
    assert "that fine-tuning itself works here is not shown (+" in doubts["untrained"]
    assert "points, −" in doubts["untrained"]


def test_a_teacher_that_is_no_better_is_a_doubt_and_no_remark(tmp_path: Path) -> None:
    task = _task(tmp_path, skills={"teacher": 0.70})
    assert [d["kind"] for d in task.doubts] == ["teacher"]
    assert words.doubts([task])[0].startswith("SST-2: The teacher scores no better than B0 (−")
    assert words.said("teacher_remark", task) == ""


def test_a_teacher_that_may_be_no_better_is_a_doubt(tmp_path: Path) -> None:
    text = _doubts(tmp_path, skills={"teacher": 0.80}, n=150, noise=0.2)["teacher"]
    assert text.startswith("SST-2: That the teacher is better than B0 is not shown (+")


def test_a_teacher_that_only_writes_in_another_form_is_told_by_its_cleaned_answers(tmp_path: Path) -> None:
    """A prompted teacher that answers in sentences scores nothing as it came, and well once they are cleaned."""
    root = write_results(tmp_path, replace(STUDY, tasks=("squad",)))
    folder = root / "raw_runs" / "teacher_squad"
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["scores"] |= {"exact_match": 0.0, "f1": 0.0}
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    record["metrics"]["validation"] |= {"exact_match": 0.0, "f1": 0.0}
    (folder / "run.json").write_text(json.dumps(record | {"made": {}}), encoding="utf-8")
    [text] = [
        text for text in words.doubts(analyse(load(root), SETTINGS).tasks) if "The teacher scores no better" in text
    ]
    assert re.search(r"had answers been cleaned before they were scored: [89]\d\.\d against [78]\d\.\d %\)\.$", text)


def test_a_teacher_that_is_better_is_a_remark(tmp_path: Path) -> None:
    assert words.said("teacher_remark", _task(tmp_path / "a")).startswith("The teacher is 1")
    said = words.said("teacher_remark", _task(tmp_path / "b", seeds=(42,)))
    assert said.endswith("points above B0 (1 seed, too few to judge).")


def test_seeds_that_differ_more_than_methods_are_listed(tmp_path: Path) -> None:
    skills = {"B0": 0.8, "KD1": 0.8}
    task = _task(tmp_path, skills=skills, seed_effect=0.05, seed=2)
    [found] = [d for d in task.doubts if d["kind"] == "spread"]
    cell = task.cell(found["method"], "S1")
    assert cell is not None and cell.std == max(c.std for c in task.cells if c.trained) > found["gain"]
    scores = ", ".join(f"{score:.1f}" for score in cell.seed_means)
    assert any(f"of {cell.std:.1f} points ({scores})" in text for text in words.doubts([task]))


def test_a_seed_that_fell_is_named(tmp_path: Path) -> None:
    text = _doubts(tmp_path, seed_effect=0.05, seed=1)["fallen"]
    found = re.search(r"Training is unsteady: (?:.*, )?(\w+) with seed (\d+) reaches (\d+\.\d), (\d+\.\d) below", text)
    assert found and float(found[4]) > 5
    cell = _task(tmp_path / "again", seed_effect=0.05, seed=1).cell(found[1], "S1")
    assert cell is not None
    assert f"{cell.seed_means[cell.seeds.index(int(found[2]))]:.1f}" == found[3]


def test_unequal_tuning_is_counted(tmp_path: Path) -> None:
    four = {"grid": Study().grid}
    text = _doubts(tmp_path / "a", **four)["tuning"]
    assert "KD1: 4 points of hyper-parameters; B0: 1 point of hyper-parameters. No seed chose for itself" in text
    assert "A single seed chose for itself" in _doubts(tmp_path / "b", **four, seeds=(42,))["tuning"]


@pytest.mark.parametrize("shift", [9.0, -9.0])
def test_a_dev_split_that_is_apart_is_said_with_both_numbers(tmp_path: Path, shift: float) -> None:
    task = _task(tmp_path, dev_shift=shift)
    [found] = task.doubts
    assert found["kind"] == "apart"
    assert found["dev"] - found["reported"] == pytest.approx(shift + 2.5)  # the favourite's five points, one of two
    assert 3 < found["chance"] < 8  # of 400 examples each: 1.96 × √2 × 2 points
    text = words.doubts([task])[0]
    assert f"score {found['dev']:.1f} % on dev (400 examples) and {found['reported']:.1f} % on the reported" in text


@pytest.mark.parametrize("written", [{}, {"accuracy": 99.0}], ids=["no dev", "no number of examples"])
def test_dev_scores_of_unknown_size_raise_no_doubt(tmp_path: Path, written: dict[str, float]) -> None:
    write_results(tmp_path, STUDY)
    for path in tmp_path.glob("raw_runs/*/run.json"):
        record = json.loads(path.read_text())
        record["metrics"]["dev"] = written
        path.write_text(json.dumps(record))
    assert analyse(load(tmp_path), SETTINGS).tasks[0].doubts == ()


def test_a_doubt_of_several_tasks_is_said_once_and_each_says_whose_it_is(tmp_path: Path) -> None:
    study = replace(STUDY, tasks=("sst2", "squad"), students=("S1", "b.x"), grid=Study().grid, n=60)
    said = words.doubts(analyse(load(write_results(tmp_path, study)), SETTINGS).tasks)
    [text] = [text for text in said if "Tuning" in text]
    assert text.startswith("SST-2 (S1), SST-2 (b.x), SQuAD (S1), SQuAD (b.x): Tuning was unequal")


def test_gaps_and_a_single_group_raise_what_can_be_told(tmp_path: Path) -> None:
    lost = {"zero-shot_sst2_S1": "failed", "teacher_sst2": "missing"}
    assert _doubts(tmp_path / "a", lost=lost, skills={"zero-shot": 0.9, "teacher": 0.2}) == {}
    kinds = _doubts(tmp_path / "b", n=4, one_group=True, tasks=("squad",), dev_shift=50.0).keys()
    assert kinds <= {"spread"}


def test_doubts_come_before_the_results_in_page_and_paragraph(whole: tuple[Path, list[str]]) -> None:
    root, _ = whole
    page, paragraph = ((root / name).read_text(encoding="utf-8") for name in ("report.html", "summary/narrative.md"))
    said = words.doubts(analyse(load(root), SETTINGS).tasks)
    assert len(said) >= 2
    for text in said:
        assert page.index('class="headline') < page.index(html.escape(text)) < page.index('id="results"')
        assert text.partition(": ")[2] in paragraph


# ---------------------------------------------------------------------------------------------------- looks


SMALL = replace(STUDY, n=60)
SEEDS = (1, 2, 3, 4, 5, 6)


def _look(root: Path, count: int, **changed: Any) -> list[str]:
    """Look at a study with so many seeds, as a report does; what it says of looks."""
    analysis = analyse(load(write_results(root, replace(SMALL, seeds=SEEDS[:count], **changed))), SETTINGS)
    atomic_write_json(Layout(root).looks, looks_at(analysis))
    return [d["seeds"] for d in analysis.tasks[0].doubts if d["kind"] == "looks"]


def test_verdicts_that_were_read_before_seeds_were_added_are_counted(tmp_path: Path) -> None:
    assert _look(tmp_path, 2) == []  # no verdict, no look
    assert _look(tmp_path, 3) == []
    assert _look(tmp_path, 3) == []  # the same again is the same look
    assert _look(tmp_path, 5) == _look(tmp_path, 5) == [[3, 5]]
    assert _look(tmp_path, 6, grid=Study().grid) == [[3, 5, 6]]  # a method tuned anew is the same study
    looks = json.loads((tmp_path / "summary" / "looks.json").read_text())["sst2"]["S1"]
    assert [(look["seeds"], len(look["runs"])) for look in looks] == [(3, 3), (5, 5), (6, 6)]


def test_reports_say_how_often_they_were_read(tmp_path: Path) -> None:
    pages = []
    for count in (3, 4):
        write_results(tmp_path, replace(SMALL, seeds=SEEDS[:count]))
        build_report(tmp_path, SETTINGS)
        pages.append((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert 'id="doubts"' not in pages[0]
    said = (
        "Verdicts were given at 3, then at 4 seeds: each look is a further chance to err, together at most 2 × 5 %; "
        "decide on the number of seeds beforehand (`kdsuite plan --detect`)."
    )
    assert f"SST-2: {said}" in pages[1]
    assert said in (tmp_path / "summary" / "narrative.md").read_text(encoding="utf-8")


def test_looks_at_other_runs_are_kept_and_do_not_count(tmp_path: Path) -> None:
    _look(tmp_path, 3)
    plan = tmp_path / "raw_runs" / "plan.json"
    shutil.rmtree(tmp_path / "raw_runs")
    write_results(tmp_path, replace(SMALL, seeds=SEEDS[:4]))
    for path in (plan, *tmp_path.glob("raw_runs/*/run.json")):
        path.write_text(path.read_text().replace("print of", "other print of"))
    assert [d["kind"] for d in analyse(load(tmp_path), SETTINGS).tasks[0].doubts] == []
    atomic_write_json(Layout(tmp_path).looks, looks_at(analyse(load(tmp_path), SETTINGS)))
    looks = json.loads((tmp_path / "summary" / "looks.json").read_text())["sst2"]["S1"]
    assert [look["seeds"] for look in looks] == [3, 4]


@pytest.mark.parametrize("damage", ["{", "[]", '{"sst2": {"S1": [{"seeds": 3}]}}', '{"sst2": 3}'])
def test_damaged_looks_are_told_and_begun_anew(tmp_path: Path, damage: str) -> None:
    _look(tmp_path, 3)
    (tmp_path / "summary" / "looks.json").write_text(damage)
    assert "summary/looks.json cannot be read: earlier looks at these results are not counted" in load(tmp_path).notes
    assert _look(tmp_path, 5) == []
    assert not [note for note in load(tmp_path).notes if "looks" in note]

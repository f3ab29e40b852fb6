"""Sentences claim what the corrected test supports, and say what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdsuite.report import words
from kdsuite.report.analysis import Analysis, analyse
from kdsuite.report.load import load

from .conftest import SETTINGS
from .synthetic import SKILLS, Study, write_results


def _headline(root: Path, study: Study) -> str:
    return words.headline(analyse(load(write_results(root, study)), SETTINGS).tasks[0])


def test_a_supported_gain_is_claimed_with_its_numbers(steady: Analysis) -> None:
    for task in steady.tasks:
        text = words.headline(task)
        assert "KD1 (T=4 α=0.5) beats plain fine-tuning (B0)" in text
        assert "3 seeds × 800 examples, corrected p" in text
        assert "worse than B0: KD3" in text


def test_a_null_is_no_gain_and_says_what_could_have_been_seen(tmp_path: Path) -> None:
    skills = {"teacher": 0.9, "zero-shot": 0.5, "B0": 0.8, "KD1": 0.8, "KD2": 0.8}
    text = _headline(tmp_path, Study(tasks=("sst2",), skills=skills, grid=((2.0, 0.5),)))
    assert "no distillation method is shown to beat plain fine-tuning" in text
    assert "a study like this one would see gains of" in text
    assert "seeds that spread as these do would be needed" in text
    assert "beats" not in text


def test_where_the_best_is_shown_to_be_worse_no_further_seeds_are_asked_for(tmp_path: Path) -> None:
    skills = {"teacher": 0.9, "zero-shot": 0.5, "B0": 0.9, "KD1": 0.6, "KD2": 0.5}
    text = _headline(tmp_path, Study(tasks=("sst2",), skills=skills, grid=((2.0, 0.5),)))
    assert "the best of them, KD1, is worse: −" in text
    assert text.endswith("; also worse than B0: KD2.")
    assert "would see" not in text and "differs by" not in text


def test_a_huge_gain_of_one_seed_is_no_claim(tmp_path: Path) -> None:
    text = _headline(tmp_path, Study(tasks=("sst2",), seeds=(42,), skills=SKILLS | {"KD1": 0.99}))
    assert "1 seed cannot show whether distillation helps" in text
    assert "beats" not in text


def test_a_method_with_too_few_seeds_does_not_speak_for_the_others(tmp_path: Path) -> None:
    skills = {"teacher": 0.9, "zero-shot": 0.5, "B0": 0.8, "KD1": 0.8, "KD2": 0.95}
    lost = {"KD2_sst2_S1_seed42": "failed"}
    text = _headline(tmp_path, Study(tasks=("sst2",), skills=skills, grid=((2.0, 0.5),), lost=lost))
    assert "the best of those with three seeds and more, KD1" in text


def test_runs_without_a_common_seed_are_no_missing_runs(tmp_path: Path) -> None:
    lost = {f"B0_sst2_S1_seed{seed}": "missing" for seed in (1, 2, 3)}
    for method in ("KD2", "KD3"):
        lost |= {f"{method}_sst2_S1{'_l1' * (method == 'KD3')}_seed{seed}": "missing" for seed in (4, 5, 6)}
    skills = {method: SKILLS[method] for method in ("teacher", "zero-shot", "B0", "KD2", "KD3")}
    root = write_results(tmp_path, Study(tasks=("sst2",), seeds=(1, 2, 3, 4, 5, 6), n=40, skills=skills, lost=lost))
    task = analyse(load(root), SETTINGS).tasks[0]
    assert words.headline(task).endswith("cannot be tested, for no method shares a seed with it.")
    readings = [words.said("reading", task, c) for c in task.comparisons]
    assert "KD2 against B0: no comparison (no seed in common)." in readings


@pytest.mark.parametrize("skill", [2.0, -1.0])
def test_where_nothing_differs_no_seeds_settle_it(tmp_path: Path, skill: float) -> None:
    study = Study(tasks=("sst2",), n=100, skills=dict.fromkeys(SKILLS, skill), seed_effect=0.0)
    text = _headline(tmp_path, study)
    assert "differs by 0.0 points" in text
    assert text.endswith(" points and more.")


@pytest.mark.parametrize(("fate", "said"), [("failed", "B0 failed"), ("missing", "B0 was not run")])
def test_without_a_baseline_nothing_is_said(tmp_path: Path, fate: str, said: str) -> None:
    lost = {f"B0_sst2_S1_seed{seed}": fate for seed in (42, 123, 456)}
    text = _headline(tmp_path, Study(tasks=("sst2",), n=40, lost=lost))
    assert text == f"SST-2: nothing can be said, for the fine-tuned baseline {said}."


def test_a_missing_teacher_is_named(tmp_path: Path) -> None:
    root = write_results(tmp_path, Study(tasks=("sst2",), n=40, lost={"teacher_sst2": "failed"}))
    task = analyse(load(root), SETTINGS).tasks[0]
    assert words.said("teacher_remark", task) == "The teacher's own score is missing: it failed."


def test_readings_follow_the_verdicts(steady: Analysis) -> None:
    better, null, worse = (words.said("reading", steady.tasks[0], c) for c in steady.tasks[0].comparisons)
    assert better.startswith("KD1 is better than B0: +")
    assert "no evidence of a difference" in null
    assert worse.startswith("KD3 is worse than B0: −")


def test_the_paragraph_names_design_test_and_limits(gappy: tuple[Path, list[str]]) -> None:
    text = (gappy[0] / "summary" / "narrative.md").read_text(encoding="utf-8")
    for said in (
        "dev split",
        "Holm-corrected",
        "no reported run chose itself",
        "are 95 %, over",
        "120 examples",
        "KD1: 4 points of hyper-parameters",
    ):
        assert said in text
    assert "KD1_sst2_S1_T2_a0.3_seed42, KD2_sst2_S1_seed456, KD1_squad_S1_T4_a0.5_seed42 failed (loss" in text
    assert "KD3_sst2_S1_l1_seed42 not run (interrupted)" in text
    assert "and 2 more not run (never started)" in text
    assert "KD2 against B0: no comparison (not run)" in text


def test_where_there_are_several_students_every_sentence_says_whose_it_is(tmp_path: Path) -> None:
    task = analyse(load(write_results(tmp_path, Study(students=("S1", "b.x")))), SETTINGS).tasks[0]
    said = [words.said("reading", task, c) for c in task.comparisons]
    said += [words.said("gap_reading", task, c, 2.0) for c in task.gaps]
    assert len(said) == len(set(said)) > 4
    assert {text.partition(": ")[0] for text in said} == {"S1", "b.x"}

"""The page says which labels are taken for which, and how long free answers are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdsuite.report import answers, words
from kdsuite.report.analysis import Analysis, Cell
from kdsuite.report.load import Predictions


def _cell(cell: Cell, gold: list[str], *runs: list[str]) -> Cell:
    """The cell with these answers, a list per seed."""
    made = [
        Predictions(tuple(map(str, range(len(gold)))), tuple(said), tuple(said), tuple((g,) for g in gold), {}, None, 0)
        for said in runs
    ]
    return replace(cell, predictions=tuple(made))


def test_confusion_pools_seeds_with_gold_in_rows(steady: Analysis) -> None:
    cell = _cell(steady.tasks[0].cells[0], ["a", "a", "b"], ["a", "b", "b"], ["a", "b", "a"])
    counts = answers.confusion(cell, ["a", "b", "never"])
    assert counts.tolist() == [[2, 2, 0], [1, 1, 0], [0, 0, 0]]
    a, b, never = answers.per_label(counts, ["a", "b", "never"], runs=2)
    assert (a["precision"], a["recall"], a["support"]) == (pytest.approx(200 / 3), 50, 2)
    assert a["f1"] == pytest.approx(2 * a["precision"] * a["recall"] / (a["precision"] + a["recall"]))
    assert b["support"] == 1
    assert np.isnan([never["precision"], never["recall"], never["f1"]]).all()
    assert [
        (p["gold"], p["said"], p["count"], p["share"]) for p in answers.confusions(counts, ["a", "b", "never"])
    ] == [("a", "b", 2, 0.5), ("b", "a", 1, 0.5)]


def test_of_several_references_the_one_that_was_answered_is_no_confusion(steady: Analysis) -> None:
    cell = _cell(steady.tasks[0].cells[0], ["a"] * 3, ["a", "b", "c"])
    (run,) = cell.predictions
    counts = answers.confusion(replace(cell, predictions=(replace(run, references=(("a", "b"),) * 3),)), list("abc"))
    assert counts.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_nothing_wrong_is_no_confusion() -> None:
    assert answers.confusions(np.eye(14, dtype=np.int64), list("abcdefghijklmn")) == []


def test_texts_are_measured_against_references(steady: Analysis) -> None:
    cell = _cell(steady.tasks[0].cells[0], ["one two three"] * 4, ["", " ", "x y", "x y z"])
    assert answers.texts(cell) == {"words": 1.0, "reference_words": 3.0, "empty": 50.0, "same": 50.0}


def test_teacher_b0_and_the_highest_method_are_shown(steady: Analysis) -> None:
    assert [cell.method for cell in answers.shown(steady.tasks[0])] == ["teacher", "B0", "KD1"]


def test_the_page_has_the_section_for_every_task(whole: tuple[Path, list[str]]) -> None:
    page = (whole[0] / "report.html").read_text(encoding="utf-8")
    section = page.split('<section id="answers">')[1].split("</section>")[0]
    assert section.count("<h3>") == 2


def test_metrics_read_well() -> None:
    names = ("macro_f1", "rouge_l", "chrf", "exact_match", "f1", "token_f1", "my_own")
    shown = ("macro-F1", "ROUGE-L", "chrF", "exact match", "F1", "token F1", "my own")
    assert tuple(map(words.metric_name, names)) == shown

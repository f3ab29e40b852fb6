"""Curves over fractions of the training examples: what they say of noise, and that headlines do not hear of them."""

from __future__ import annotations

import csv
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from kdsuite.config.report import ReportSettings
from kdsuite.evaluate.selection import Candidate, Configuration, Run, Selection
from kdsuite.report import fractions, words
from kdsuite.report.analysis import Cell, TaskAnalysis, analyse, scored
from kdsuite.report.build import build_report
from kdsuite.report.figures import FIGURES
from kdsuite.report.fractions import Curve, Part, compare_parts
from kdsuite.report.latex import columns_of
from kdsuite.report.load import load
from kdsuite.report.tables import data_fractions

from .conftest import SETTINGS, STEADY
from .synthetic import Study, write_results

FRACTIONS = (0.05, 0.1, 0.25, 1.0)
EXAMPLES = 200


def cell(method: str, scores: np.ndarray) -> Cell:
    """Scores [S, n] in points, of seeds 0, 1, …"""
    about = Configuration(method, "task", "S1")
    runs = tuple(Run(f"{method}{seed}", about, seed, "completed", None) for seed in range(len(scores)))
    return Cell(Selection((Candidate(about, runs, "accuracy"),), runs), "completed", "", runs, scores=scores)


def study(gains: Mapping[str, Sequence[float]], seeds: int, random: np.random.Generator, spread: float = 0.01):
    """The curves of a made-up study, of true `gains` over B0 (shares right) per fraction; runs of one seed, whatever
    they learned, have nothing in common, examples their difficulty."""
    difficulty, base = random.random(EXAMPLES), (0.55, 0.6, 0.65, 0.7)

    def scores(skill: float) -> np.ndarray:
        skills = skill + random.normal(0, spread, (seeds, 1))
        return 100.0 * (difficulty + random.normal(0, 0.05, (seeds, EXAMPLES)) < skills)

    about, groups = {"metric": "accuracy", "title": "Task"}, np.arange(EXAMPLES)
    ids, parts = tuple(map(str, groups)), []
    for at, fraction in enumerate(FRACTIONS):
        cells = [cell("B0", scores(base[at])), *(cell(m, scores(base[at] + gain[at])) for m, gain in gains.items())]
        task = TaskAnalysis("task", ReportSettings(), about, ids, groups, {}, tuple(cells))
        parts.append(Part(fraction, round(400 * fraction), task))
    return compare_parts(parts)


def pictures(gains: Sequence[float], seeds: int, times: int, seed: int = 0, spread: float = 0.01) -> Counter[str]:
    random = np.random.default_rng(seed)
    return Counter(study({"KD1": gains}, seeds, random, spread)[1][0].picture for _ in range(times))


@pytest.mark.slow
def test_where_nothing_is_gained_or_the_same_everywhere_no_gain_is_said_to_end() -> None:
    """Though it is often shown here and not there, which is no difference."""
    nothing, everywhere = (pictures((gain,) * 4, seeds=5, times=30) for gain in (0.0, 0.05))
    assert nothing[fractions.NOWHERE] >= 27 and nothing[fractions.ENDS] == 0
    assert everywhere[fractions.AS_LARGE] + everywhere[fractions.NOT_LESS] > 2 and everywhere[fractions.ENDS] == 0


@pytest.mark.slow
def test_a_gain_that_ends_is_found_with_enough_seeds_and_not_said_with_few() -> None:
    gains = (0.14, 0.1, 0.0, 0.0)
    assert pictures(gains, seeds=5, times=10)[fractions.ENDS] >= 8
    assert pictures(gains, seeds=2, times=3) == {fractions.UNTESTED: 3}


def curve(gains: Sequence[float], seeds: int = 5) -> tuple[TaskAnalysis, Curve]:
    parts, (found,) = study({"KD1": gains}, seeds, np.random.default_rng(1))
    return parts[-1].task, found


@pytest.mark.parametrize(
    ("gains", "seeds", "picture", "pattern"),
    [
        (
            (0.14, 0.1, 0, 0),
            5,
            "ends",
            r"beats B0 up to 10 % \(40 examples\), \+.* points \(.*\); no gain is shown any more from 25 % \(100 "
            r"examples\), .*, and on all examples it gains \d+\.\d points less than on the fewest .*: there it stops",
        ),
        (
            (0.2, 0.2, 0.2, 0.2),
            5,
            "everywhere",
            r"beats B0 on every fraction, from 5 % .*: that it stops .* not seen\.",
        ),
        ((0, 0, 0, 0), 5, "nowhere", r"is shown to beat B0 on no fraction of the .*: 5 % \(20 examples\), .* points"),
        (
            (0, 0, 0.2, 0.2),
            5,
            "unsteady",
            r"on 25 % .*, all \(400 examples\), but is not shown to on 5 % .* not said\.",
        ),
        ((0.1, 0.1, 0.1, 0.01), 4, "not less", r"no gain is shown on all .*But that it gains less on all .*not said\."),
        (
            (0.12, 0.1, 0.05, 0.04),
            4,
            "as large",
            r"But one as large is not ruled out where none is shown, so .*not said\.",
        ),
        ((0.2, 0.2, 0.2, -0.2), 5, "ends", r"it is worse than B0 on all \(400 examples\)\.$"),
        (
            (0.2, 0.2, 0.2, 0.2),
            2,
            "untested",
            r"cannot be compared with B0 on 5 % .*, all \(400 examples\) .*not said\.",
        ),
    ],
)
def test_the_sentence_says_what_is_seen(gains: Sequence[float], seeds: int, picture: str, pattern: str) -> None:
    task, found = curve(gains, seeds)
    said = words.said("paying", task, found)
    assert found.picture == picture, said
    assert said.startswith("KD1 ") and re.search(pattern, said), said


def test_all_fractions_and_methods_are_one_family() -> None:
    parts, curves = study({"KD1": (0.1, 0.1, 0, 0), "KD2": (0, 0, 0, 0)}, 4, np.random.default_rng(3))
    family = [c for part in parts for c in part.task.comparisons] + [curve.less for curve in curves]
    assert len(family) == 2 * (4 + 1)
    smallest = min(family, key=lambda c: c.p_both or 1.0)
    assert smallest.p_both is not None and smallest.p_holm == pytest.approx(10 * smallest.p_both)
    assert [part for part, _ in curves[1].gains] == list(parts)
    for part, gain in curves[1].gains:
        assert part.task.comparison("S1", "KD2") is gain


PARTS = {0.05: {"B0": 0.6, "KD1": 0.7, "KD2": 0.66}, 0.25: {"B0": 0.74, "KD1": 0.78, "KD2": 0.74}}
STUDY = STEADY | {"tasks": ("sst2",), "n": 200, "grid": ((2.0, 0.5), (4.0, 0.5))}


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same study without and with fractions, of which one run failed."""
    folders = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("parts")
    lost = {"KD2_sst2_S1_seed123_f0.25": "failed"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdsuite.report.build.FIGURES", FIGURES[:2])
        for folder, more in zip(folders, ({}, {"fractions": PARTS, "lost": lost}), strict=True):
            write_results(folder, Study(**STUDY, **more))
            build_report(folder, SETTINGS)
    return folders


def test_the_headline_does_not_hear_of_fractions(reported: tuple[Path, Path]) -> None:
    plain, parts = reported
    paths = [path.relative_to(plain) for room in ("summary", "figures") for path in (plain / room).rglob("*.*")]
    same = [path for path in paths if path.name not in ("narrative.md", "selection.json")]
    assert len(same) > 15
    assert [path.as_posix() for path in same if (plain / path).read_bytes() != (parts / path).read_bytes()] == []
    new = {path.name for path in parts.rglob("*data_fractions*")}
    drawn = {f"fig_data_fractions.{suffix}" for suffix in ("csv", "pdf", "png")}
    assert new == {"data_fractions.csv", "data_fractions.tex"} | drawn
    assert not list(plain.rglob("*data_fractions*"))
    assert "fraction" not in (plain / "summary" / "narrative.md").read_text()
    sections = [re.findall(r'<section id="(\w+)"', (f / "report.html").read_text()) for f in reported]
    assert [section for section in sections[1] if section != "data"] == sections[0]


def test_a_plan_without_fractions_leaves_nothing_of_an_earlier_one_with_them(
    reported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, parts = reported
    root = tmp_path / "again"
    shutil.copytree(parts, root)
    shutil.copy(plain / "raw_runs" / "plan.json", root / "raw_runs")
    monkeypatch.setattr("kdsuite.report.build.FIGURES", FIGURES[:2])
    build_report(root, SETTINGS)
    assert not list(root.rglob("*data_fractions*")), "nor would a document or a study take the figure for its own"
    assert (root / "figures" / "fig_4_5_kd_gain.png").exists() and (root / "summary" / "benchmarks.csv").exists()


def test_the_figure_has_a_point_per_method_and_fraction_and_lines_for_those_that_do_not_learn(
    reported: tuple[Path, Path],
) -> None:
    with (reported[1] / "figures" / "fig_data_fractions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    drawn = Counter((row["method"], row["examples"]) for row in rows)
    assert drawn == {("teacher", ""): 1, ("zero-shot", ""): 1} | {
        (method, n): 1 for method in ("B0", "KD1", "KD2", "KD3") for n in ("20", "100", "400")
    }
    bare = {(row["method"], row["fraction"]) for row in rows if row["examples"] and not row["ci_low"]}
    assert bare == {("KD2", "0.2500")}, "two seeds have no interval"


def test_table_and_page_have_the_same_columns_and_each_fraction_its_own_choice(reported: tuple[Path, Path]) -> None:
    root = reported[1]
    analysis = analyse(load(root), SETTINGS)
    table = data_fractions(analysis)
    rows = {(row["fraction"], row["method"]): row for row in table.rows}
    assert list(rows)[:2] == [("0.05", "B0"), ("0.05", "KD1")] and len(rows) == 3 * 4
    assert {row["n_points"] for (_, method), row in rows.items() if method == "KD1"} == {2}
    assert rows["0.25", "KD2"]["n_seeds"] == 2 and rows["0.25", "KD2"]["verdict"] == "too few seeds"
    assert rows["1", "KD1"]["mean"] == analysis.tasks[0].cells[3].mean
    page = (root / "report.html").read_text(encoding="utf-8")
    [section] = re.findall(r'<section id="data">.*?</section>', page, re.DOTALL)
    headings = [column.heading.replace("$p_H$", "Corrected p") for column in columns_of(table, analysis)]
    assert re.findall(r"<th>(.*?)</th>", section) == headings
    assert section.count("<tr>") == 1 + len(rows) and 'id="fig_data_fractions"' in section
    assert "KD2_sst2_S1_seed123_f0.25" in page.partition('id="lost"')[2]
    assert "Every single run on all training examples is in <code>summary/training_costs_runs.csv</code>" in page
    assert "_f0." not in (root / "summary" / "training_costs_runs.csv").read_text()
    assert "Holm-corrected over all fractions" in (root / "summary" / "latex" / "data_fractions.tex").read_text()


def test_without_a_plan_runs_of_fractions_are_not_taken_for_those_of_the_whole(
    reported: tuple[Path, Path], tmp_path: Path
) -> None:
    root = tmp_path / "unplanned"
    shutil.copytree(reported[1], root, ignore=shutil.ignore_patterns("figures", "report.html"))
    (root / "raw_runs" / "plan.json").unlink()
    cells = scored(load(root), SETTINGS, "sst2").cells
    assert sorted(len(cell.runs) for cell in cells) == [1, 1, 3, 3, 3, 3]

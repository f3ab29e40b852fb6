"""A figure draws what exists, marks what does not, and invents nothing."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from PIL import Image

from kdsuite.config.plugins import METHODS, plugins
from kdsuite.report import drawing
from kdsuite.report.figures_cost import Point, beats

CONTRACT = (
    "fig_4_1_performance_vs_size fig_4_2_latency fig_4_3_kd_comparison fig_4_4_pareto fig_4_5_kd_gain fig_4_6_memory"
).split()
MORE = "fig_temperature_alpha fig_learning_curves fig_teacher_agreement fig_calibration".split()


def _data(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "figures" / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("name", [*CONTRACT, *MORE])
def test_every_figure_is_written_with_its_data(whole: tuple[Path, list[str]], name: str) -> None:
    folder = whole[0] / "figures"
    with Image.open(folder / f"{name}.png") as image:
        assert image.info["dpi"][0] == pytest.approx(300, abs=0.5)
        assert image.width == 1050  # one column: 3.5 inches
    assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert {row["task"] for row in _data(whole[0], name)} == ({"sst2"} if "calibration" in name else {"sst2", "squad"})


def test_a_missing_cell_is_a_marked_gap_and_no_mark(gappy: tuple[Path, list[str]]) -> None:
    drawn = {(row["task"], row["method"]) for row in _data(gappy[0], "fig_4_3_kd_comparison")}
    assert ("squad", "KD2") not in drawn
    assert ("sst2", "KD2") not in drawn
    page = (gappy[0] / "report.html").read_text()
    figure = re.search(r'<figure id="fig_4_3_kd_comparison">.*?</figure>', page, re.DOTALL)
    assert figure is not None
    assert "not run" in figure[0]
    assert "failed" in figure[0]


def test_every_method_of_this_package_has_a_colour_and_a_marker_of_its_own() -> None:
    names = [name for name, one in plugins(METHODS).items() if type(one).__module__.startswith("kdsuite.")]
    looks = [drawing.look(name) for name in (*names, "teacher", "zero-shot", "of another package")]
    for part in zip(*looks, strict=True):
        assert len(set(map(str, part))) >= (len(looks) if part[0] != "-" else 7)
    assert len(names) >= 7


def test_single_seeds_are_their_own_values(gappy: tuple[Path, list[str]]) -> None:
    rows = [r for r in _data(gappy[0], "fig_4_3_kd_comparison") if (r["task"], r["method"]) == ("squad", "KD3")]
    assert [(r["kind"], r["seed"]) for r in rows] == [("mean", ""), ("seed", "42")]


def test_without_a_benchmark_a_figure_says_so(gappy: tuple[Path, list[str]]) -> None:
    for name in ("fig_4_1_performance_vs_size", "fig_4_2_latency", "fig_4_4_pareto", "fig_4_6_memory"):
        assert _data(gappy[0], name) == []
    assert (gappy[0] / "report.html").read_text().count("nothing was benchmarked") == 4


def test_the_plainest_conditions_are_shown(whole: tuple[Path, list[str]]) -> None:
    rows = _data(whole[0], "fig_4_2_latency")
    assert {row["batch_size"] for row in rows} == {"1"}
    assert [row["variant"] for row in rows[:2]] == ["teacher", "S1 zero-shot"]


def test_quality_in_the_scatter_is_that_of_the_main_table(whole: tuple[Path, list[str]]) -> None:
    with (whole[0] / "summary" / "table_4_1_main_results.csv").open(newline="", encoding="utf-8") as stream:
        means = {(r["task"], r["method"]): r["mean"] for r in csv.DictReader(stream)}
    for row in _data(whole[0], "fig_4_4_pareto"):
        if "int8" not in row["variant"] and row["method"] != "other":
            assert row["quality"] == means[row["task"], row["method"]]


@pytest.mark.parametrize("name", ["fig_4_1_performance_vs_size", "fig_4_4_pareto"])
def test_quantized_and_other_models_are_points_with_their_names(whole: tuple[Path, list[str]], name: str) -> None:
    quality = {(r["task"], r["variant"]): r["quality"] for r in _data(whole[0], name)}
    assert (quality["sst2", "S1 KD1 int8"], quality["sst2", "my-model"]) == ("84.0000", "60.0000")
    page = (whole[0] / "report.html").read_text()
    figure = re.search(rf'<figure id="{name}">.*?</figure>', page, re.DOTALL)
    assert figure is not None
    assert figure[0].count(">S1 int8<") == figure[0].count(">my-model<") == 2


def test_the_front_joins_what_nothing_else_beats_beyond_the_noise() -> None:
    def point(x: float, quality: float) -> Point:
        return Point("v", "B0", x, quality, None, False, None, noise=5.0)

    best, as_fast, slower, worse = point(1.0, 80), point(0.97, 70), point(1.2, 90), point(1.3, 85)
    everything = [best, as_fast, slower, worse]
    assert [p for p in everything if not any(beats(q, p) for q in everything)] == [best, slower]
    assert beats(best, point(1.06, 80)) and not beats(best, point(1.04, 80))


def test_methods_differ_in_colour_and_in_marker() -> None:
    looks = [drawing.look(method) for method in drawing.LOOKS]
    assert len({look.color for look in looks}) == len({look.marker for look in looks}) == len(looks)
    assert drawing.look("a new method").marker


def test_learning_curves_hold_every_seed(whole: tuple[Path, list[str]]) -> None:
    rows = [r for r in _data(whole[0], "fig_learning_curves") if (r["task"], r["method"]) == ("sst2", "B0")]
    assert {(r["seed"], r["epoch"]) for r in rows} == {(s, f"{e}.0000") for s in ("42", "123", "456") for e in (1, 2)}

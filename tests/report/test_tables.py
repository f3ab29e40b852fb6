"""The tables keep the contract's columns, say why a number is missing, and never differ for equal inputs."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

import pytest

from kdsuite.report.analysis import Analysis
from kdsuite.report.build import build_report
from kdsuite.report.tables import all_tables, csv_text, main_results

from .conftest import SETTINGS
from .synthetic import Study, write_results

CONTRACT = {
    "table_4_1_main_results": (
        "task student method hyperparameters n_seeds metric mean std ci_low ci_high secondary_metric "
        "secondary_mean delta_vs_B0 status"
    ),
    "table_4_2_kd1_ablation": "task student temperature alpha n_seeds metric dev_mean dev_std selected",
    "table_4_3_significance": (
        "task student comparison metric n_seeds n_examples difference ci_low ci_high t_statistic "
        "p_t_test cohens_d p_paired p_holm verdict"
    ),
    "benchmarks": (
        "model variant device dtype batch_size prompt_tokens new_tokens first_token_ms decode_ms_per_token "
        "p95_ms_per_token tokens_per_second peak_memory_mb disk_mb parameters"
    ),
}


def _read(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "summary" / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("name", CONTRACT)
def test_columns_of_the_contract(whole: tuple[Path, list[str]], name: str) -> None:
    rows = _read(whole[0], name)
    assert set(CONTRACT[name].split()) <= set(rows[0])


def test_every_planned_cell_has_a_row(gappy: tuple[Path, list[str]]) -> None:
    rows = _read(gappy[0], "table_4_1_main_results")
    methods = ["teacher", "zero-shot", "B0", "KD1", "KD2", "KD3"]
    assert [(r["task"], r["method"]) for r in rows] == [(t, m) for t in ("sst2", "squad") for m in methods]
    assert {r["status"] for r in rows} == {"completed", "incomplete", "failed", "not run"}


def test_a_missing_cell_prints_its_state_and_no_number(gappy: tuple[Path, list[str]]) -> None:
    rows = {(r["task"], r["method"]): r for r in _read(gappy[0], "table_4_1_main_results")}
    for key, word in ((("squad", "KD2"), "not run"), (("sst2", "KD2"), "failed")):
        assert rows[key]["status"] == word
        assert {rows[key][c] for c in ("mean", "std", "ci_low", "ci_high", "secondary_mean", "delta_vs_B0")} == {word}
    assert rows["squad", "KD3"]["n_seeds"] == "1"
    assert rows["squad", "KD3"]["std"] == "n/a"


def test_completed_rows_have_numbers(whole: tuple[Path, list[str]]) -> None:
    for row in _read(whole[0], "table_4_1_main_results"):
        assert row["status"] == "completed"
        assert all(math.isfinite(float(row[c])) for c in ("mean", "ci_low", "ci_high", "secondary_mean"))


def test_one_seed_is_not_testable(gappy: tuple[Path, list[str]]) -> None:
    rows = {(r["task"], r["comparison"]): r for r in _read(gappy[0], "table_4_3_significance")}
    single = rows["squad", "KD3 vs B0"]
    assert single["n_seeds"] == "1"
    assert {single[c] for c in ("t_statistic", "p_t_test", "cohens_d", "p_holm")} == {"not testable"}
    assert single["verdict"] == "too few seeds"


def test_deltas_and_differences_agree(whole: tuple[Path, list[str]]) -> None:
    differences = {
        (r["task"], r["comparison"].split()[0]): r["difference"] for r in _read(whole[0], "table_4_3_significance")
    }
    for row in _read(whole[0], "table_4_1_main_results"):
        if (row["task"], row["method"]) in differences:
            assert row["delta_vs_B0"] == differences[row["task"], row["method"]]


def test_the_grid_is_shown_whole_with_one_choice(gappy: tuple[Path, list[str]]) -> None:
    rows = [r for r in _read(gappy[0], "table_4_2_kd1_ablation") if r["task"] == "sst2"]
    assert len(rows) == 4
    assert [r["selected"] for r in rows].count("yes") == 1
    assert [r["status"] for r in rows].count("incomplete") == 1


def test_without_a_benchmark_the_table_is_empty(gappy: tuple[Path, list[str]]) -> None:
    assert _read(gappy[0], "benchmarks") == []


def test_bold_is_only_what_the_test_supports(steady: Analysis) -> None:
    assert [[cell.method for cell in task.best] for task in steady.tasks] == [["KD1"], ["KD1"]]
    table = main_results(steady)
    assert [table.rows[i]["method"] for i in sorted(table.strong)] == ["KD1", "KD1"]


def test_no_number_is_written_as_nan(whole: tuple[Path, list[str]], gappy: tuple[Path, list[str]]) -> None:
    for folder, _ in (whole, gappy):
        for path in (folder / "summary").glob("*.csv"):
            cells = {cell.lower() for row in csv.reader(io.StringIO(path.read_text())) for cell in row}
            assert not cells & {"nan", "inf", "-inf", "none", "-0.0000"}


def test_csv_of_awkward_text() -> None:
    row = {"a": 'say "no", never', "b": "two\nlines"}
    assert next(csv.DictReader(io.StringIO(csv_text(["a", "b"], [row])))) == row


def test_tables_are_reproducible(steady: Analysis) -> None:
    assert [t.csv() for t in all_tables(steady)] == [t.csv() for t in all_tables(steady)]


def test_a_method_from_outside_has_its_grid_everywhere(tmp_path: Path) -> None:
    """Its points have names of their own; nothing here knows them."""
    skills = {"teacher": 0.9, "zero-shot": 0.5, "B0": 0.7, "OWN": 0.8, "KD1": 0.8}
    study = Study(("sst2",), n=60, skills=skills, gammas={"OWN": (0.5, 0.7)}, grid=((2.0, 0.5),), benchmark=False)
    build_report(write_results(tmp_path, study), SETTINGS)
    chosen = {row["method"]: row["hyperparameters"] for row in _read(tmp_path, "table_4_1_main_results")}
    assert chosen["KD1"] == "T=2 α=0.5"
    assert set(re.findall(r"gamma=[\d.]+", chosen["OWN"])) <= {"gamma=0.5", "gamma=0.7"}
    assert "gamma=" in chosen["OWN"]
    grid = _read(tmp_path, "table_4_2_kd1_ablation")
    assert [(row["method"], row["temperature"], row["gamma"]) for row in grid] == [
        ("OWN", "", "0.5"),
        ("OWN", "", "0.7"),
        ("KD1", "2", ""),
    ]
    assert r"gamma & Seeds" in (tmp_path / "summary" / "latex" / "table_4_2_kd1_ablation.tex").read_text()
    with (tmp_path / "figures" / "fig_temperature_alpha.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["gamma"] for row in csv.DictReader(stream)] == ["0.5000", "0.7000"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f'OWN <span class="quiet">{chosen["OWN"]}</span>' in page
    assert "gamma = 0.5" in page and "OWN vs B0" in page

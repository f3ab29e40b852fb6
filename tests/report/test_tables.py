"""The tables keep the contract's columns, say why a number is missing, and never differ for equal inputs."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest

from kdsuite.report.analysis import Analysis
from kdsuite.report.build import ReportSummary
from kdsuite.report.tables import all_tables, main_results

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
def test_columns_of_the_contract(whole: tuple[Path, ReportSummary], name: str) -> None:
    rows = _read(whole[0], name)
    assert set(CONTRACT[name].split()) <= set(rows[0])


def test_every_planned_cell_has_a_row(gappy: tuple[Path, ReportSummary]) -> None:
    rows = _read(gappy[0], "table_4_1_main_results")
    methods = ["teacher", "zero-shot", "B0", "KD1", "KD2", "KD3"]
    assert [(r["task"], r["method"]) for r in rows] == [(t, m) for t in ("sst2", "squad") for m in methods]
    assert {r["status"] for r in rows} == {"completed", "incomplete", "failed", "not run"}


def test_a_missing_cell_prints_its_state_and_no_number(gappy: tuple[Path, ReportSummary]) -> None:
    rows = {(r["task"], r["method"]): r for r in _read(gappy[0], "table_4_1_main_results")}
    for key, word in ((("squad", "KD2"), "not run"), (("sst2", "KD2"), "failed")):
        assert rows[key]["status"] == word
        assert {
            rows[key][c] for c in ("mean", "std", "ci_low", "ci_high", "secondary_mean", "delta_vs_B0")
        } == {word}
    assert rows["squad", "KD3"]["n_seeds"] == "1"
    assert rows["squad", "KD3"]["std"] == "n/a"


def test_completed_rows_have_numbers(whole: tuple[Path, ReportSummary]) -> None:
    for row in _read(whole[0], "table_4_1_main_results"):
        assert row["status"] == "completed"
        assert all(math.isfinite(float(row[c])) for c in ("mean", "ci_low", "ci_high", "secondary_mean"))


def test_one_seed_is_not_testable(gappy: tuple[Path, ReportSummary]) -> None:
    rows = {(r["task"], r["comparison"]): r for r in _read(gappy[0], "table_4_3_significance")}
    single = rows["squad", "KD3 vs B0"]
    assert single["n_seeds"] == "1"
    assert {single[c] for c in ("t_statistic", "p_t_test", "cohens_d", "p_holm")} == {"not testable"}
    assert single["verdict"] == "too few seeds"


def test_deltas_and_differences_agree(whole: tuple[Path, ReportSummary]) -> None:
    differences = {
        (r["task"], r["comparison"].split()[0]): r["difference"]
        for r in _read(whole[0], "table_4_3_significance")
    }
    for row in _read(whole[0], "table_4_1_main_results"):
        if (row["task"], row["method"]) in differences:
            assert row["delta_vs_B0"] == differences[row["task"], row["method"]]


def test_the_grid_is_shown_whole_with_one_choice(gappy: tuple[Path, ReportSummary]) -> None:
    rows = [r for r in _read(gappy[0], "table_4_2_kd1_ablation") if r["task"] == "sst2"]
    assert len(rows) == 4
    assert [r["selected"] for r in rows].count("yes") == 1
    assert [r["status"] for r in rows].count("incomplete") == 1


def test_without_a_benchmark_the_table_is_empty(gappy: tuple[Path, ReportSummary]) -> None:
    assert _read(gappy[0], "benchmarks") == []


def test_bold_is_only_what_the_test_supports(steady: Analysis) -> None:
    assert [[cell.method for cell in task.best] for task in steady.tasks] == [["KD1"], ["KD1"]]
    table = main_results(steady)
    assert [table.rows[i]["method"] for i in sorted(table.strong)] == ["KD1", "KD1"]


def test_no_number_is_written_as_nan(
    whole: tuple[Path, ReportSummary], gappy: tuple[Path, ReportSummary]
) -> None:
    for folder, _ in (whole, gappy):
        for path in (folder / "summary").glob("*.csv"):
            cells = {cell.lower() for row in csv.reader(io.StringIO(path.read_text())) for cell in row}
            assert not cells & {"nan", "inf", "-inf", "none", "-0.0000"}


def test_csv_of_awkward_text() -> None:
    table = XX
    assert next(csv.DictReader(io.StringIO(table.csv()))) == table.rows[0]


def test_tables_are_reproducible(steady: Analysis) -> None:
    assert [t.csv() for t in all_tables(steady)] == [t.csv() for t in all_tables(steady)]

"""One module knows where everything lies, and the names are those of the contract."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kdsuite
from kdsuite.errors import SettingsError
from kdsuite.store.layout import Layout, file_name

LAYOUT = Layout(Path("results"))


def test_the_names_are_those_that_other_programs_read():
    found = {
        LAYOUT.processed("sst2"): "processed_data/sst2",
        LAYOUT.cache("squad", "0f"): "teacher_cache/squad/0f",
        LAYOUT.model("B0_sst2_S1_seed42"): "models/B0_sst2_S1_seed42",
        LAYOUT.run("B0_sst2_S1_seed42"): "raw_runs/B0_sst2_S1_seed42",
        LAYOUT.plan: "raw_runs/plan.json",
        LAYOUT.looks: "summary/looks.json",
        LAYOUT.benchmark("sst2"): "raw_runs/benchmarks/sst2.json",
        LAYOUT.benchmark("sst2", "Qwen/Qwen2.5-0.5B"): "raw_runs/benchmarks/sst2--Qwen-Qwen2.5-0.5B.json",
        LAYOUT.evaluation("sst2", "S1 B0 int8"): "raw_runs/benchmarks/sst2/S1-B0-int8.json",
        LAYOUT.trial("S1"): "models/trials/S1.json",
        LAYOUT.manifest: "summary/manifest.json",
        LAYOUT.latex: "summary/latex",
        LAYOUT.figures: "figures",
        LAYOUT.page: "report.html",
    }
    assert [path.as_posix() for path in found] == [f"results/{name}" for name in found.values()]


@pytest.mark.parametrize("run_id", ["", ".", "..", "../x", "a/b", "/etc", "a\\b", ".hidden"])
def test_neither_a_run_nor_its_model_can_lie_elsewhere(run_id: str):
    for where in (LAYOUT.run, LAYOUT.model):
        with pytest.raises(SettingsError, match="is not a run id"):
            where(run_id)


def test_a_models_name_becomes_one_file_name():
    assert file_name("a/b\\c: d") == "a-b-c-d"
    assert file_name("Qwen2.5-0.5B+int8") == "Qwen2.5-0.5B+int8"


FOLDERS = {"raw_runs", "processed_data", "teacher_cache", "plan.json", "report.html", "benchmarks.json"}
ELSEWHERE = {"report"}  # still to be converted


def test_nobody_else_spells_them():
    package = Path(kdsuite.__file__).parent
    spelling = {
        path.relative_to(package).parts[0]
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in FOLDERS and path.stem != "layout"
    }
    assert spelling <= ELSEWHERE

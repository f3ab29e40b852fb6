"""The notebooks: thin, stored without outputs, run in order, and their rendered pages are of today's cells."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from kdsuite.config import load
from kdsuite.errors import SettingsError
from kdsuite.extras.notebook import Suite
from kdsuite.store.records import Registry

ROOT = Path(__file__).parents[2]
NAMES = [
    "01_environment_setup",
    "02_data_prep_sst2",
    "03_data_prep_squad",
    "04_teacher_cache_outputs",
    "05_train_baseline_and_kd1",
    "06_train_kd2_and_kd3",
    "07_benchmark_and_plots",
]
TINY = (Path(__file__).parents[1] / "tiny.yaml").read_text()

spec = importlib.util.spec_from_file_location("render", ROOT / "notebooks" / "render.py")
assert spec is not None and spec.loader is not None
render = importlib.util.module_from_spec(spec)
spec.loader.exec_module(render)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, seen from its notebooks."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def test_the_seven_notebooks_are_there_by_their_names():
    assert [path.stem for path in render.sources()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_without_outputs_and_holds_no_logic(name: str):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    allowed = (ast.Expr, ast.Assign, ast.ImportFrom)
    assert all(isinstance(node, allowed) for cell in cells for node in ast.parse(cell.source).body)
    assert render.parameters(notebook).source.startswith('CONFIGURATION = "offline"')


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_run_in_order_resume_what_is_there_and_show_tables_and_figures(tmp_path: Path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    shown = {}
    for path, notebook in render.execute(tmp_path, "tiny.yaml"):
        outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
        assert [o for o in outputs if o.get("name") == "stderr"] == [], f"{path.stem}: library chatter"
        shown[path.stem] = render.page(path, notebook)
    assert list(shown) == NAMES
    assert (tmp_path / "results-tiny" / "report.html").exists()
    assert "Results" in shown["07_benchmark_and_plots"]
    assert all("<svg" in shown[name] for name in NAMES if not name.startswith(("01", "04")))
    assert all('class="dataframe"' in page for page in shown.values())
    assert "2 done before" in shown["05_train_baseline_and_kd1"]
    assert not [name for name, page in shown.items() if str(tmp_path) in page]


@pytest.mark.parametrize("name", NAMES)
def test_the_rendered_page_is_of_todays_cells_stands_alone_and_names_no_folder_of_a_machine(name: str):
    page = (ROOT / "docs" / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
    assert f'content="{render.digest(ROOT / "notebooks" / f"{name}.ipynb")}"' in page, "run `make pages`"
    assert len(page) < 1_000_000
    assert re.findall(r'(?:src|href)="(?!#)[^"]*"', page) == []
    assert re.findall(r"/(?:home|root|tmp|Users|work|private|var)/[\w./-]+", page) == []


def test_a_name_chooses_configuration_and_results_and_the_working_folder_is_the_projects(project: Path):
    offline = Suite()
    assert (Path.cwd(), offline.results) == (project, Path("results"))
    assert offline.settings == load()
    full = Suite("full")
    assert (full.results, full.settings.seeds) == (Path("results-full"), (42, 123, 456))
    assert Suite("fast").settings.seeds == (42,)
    (project / "mine.yaml").write_text(TINY)
    assert Suite("mine.yaml").results == Path("results-mine")


def test_a_configuration_that_is_not_there_is_told_with_what_there_is(project: Path):
    with pytest.raises(SettingsError, match="offline, fast, full"):
        Suite("ofline")


def test_a_command_that_cannot_be_understood_stops_the_notebook(project: Path):
    with pytest.raises(SettingsError, match="kdsuite cahce"):
        Suite().command("cahce")


def test_the_plan_counts_runs_by_method_and_task(project: Path):
    plan = Suite("fast").plan()
    assert isinstance(plan, pd.DataFrame)
    assert plan.loc["KD1"].tolist() == [4, 4, 8]


def test_runs_of_a_task_that_the_configuration_has_no_more_are_left_out(project: Path):
    (project / "mine.yaml").write_text(TINY)
    suite = Suite("mine.yaml")
    for task in ("sst2", "gone"):
        Registry(suite.results).start(f"B0_{task}", "f", {"method": "B0", "task": task})
        Registry(suite.results).complete(f"B0_{task}", metrics={"dev": {"accuracy": 50.0}})
    assert suite.runs("B0").index.tolist() == [("sst2", "B0_sst2")]

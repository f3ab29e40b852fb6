"""LaTeX tables print what the CSV says, whatever characters occur in it."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from kdsuite.report import latex
from kdsuite.report.analysis import Analysis
from kdsuite.report.costs import mean_costs
from kdsuite.report.tables import Table, all_tables
from kdsuite.report.words import CONTENTS

from .conftest import SETTINGS

NAMES = (
    "table_4_1_main_results table_4_2_kd1_ablation table_4_3_significance benchmarks against_teacher training_costs"
).split()
DOCUMENT = r"\documentclass{article}\usepackage[utf8]{inputenc}\usepackage{booktabs}\begin{document}%s\end{document}"


def test_special_characters_are_escaped() -> None:
    assert latex.escape(r"50% of a_b & {c} $1 #2 ~x^y \z") == (
        r"50\% of a\_b \& \{c\} \$1 \#2 \textasciitilde{}x\textasciicircum{}y \textbackslash{}z"
    )
    assert latex.escape("T=4 α=0.5 −1") == r"T=4 $\alpha$=0.5 $-$1"
    assert latex.escape("γ=0.5 ε=1 λ=2") == r"$\gamma$=0.5 $\epsilon$=1 $\lambda$=2"  # as methods may call their values


@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_as_many_cells_as_the_heading(whole: tuple[Path, list[str]], name: str) -> None:
    text = (whole[0] / "summary" / "latex" / f"{name}.tex").read_text()
    assert r"\caption{" in text
    assert rf"\label{{tab:{name.replace('_', '-')}}}" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len(rows) > 4
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    assert text.count("{") == text.count("}")


def test_bold_only_where_supported(steady: Analysis) -> None:
    tables = [table for table in all_tables(steady) if "shown" in CONTENTS["tables"][table.name]]
    main, *others = [latex.render(table, steady) for table in tables]
    bold = [line for line in main.splitlines() if "textbf" in line]
    assert len(bold) == 2
    assert all(line.startswith("KD1") for line in bold)
    assert not any("textbf" in text for text in others)


def test_a_price_is_a_column_only_where_there_is_a_rate(steady: Analysis) -> None:
    priced = replace(steady, settings=SETTINGS.model_copy(update={"cost_per_hour": 3.5}))
    without, with_price = (latex.render(Table("training_costs", mean_costs(a)), a) for a in (steady, priced))
    assert "Cost &" not in without and "per hour" not in without
    assert r"& Cost \\" in with_price and "3.5 per hour" in with_price


def test_missing_cells_say_so(gappy: tuple[Path, list[str]]) -> None:
    text = (gappy[0] / "summary" / "latex" / "table_4_1_main_results.tex").read_text()
    assert r"\textit{not run}" in text
    assert r"\textit{failed}" in text


@pytest.mark.parametrize("name", ["table_4_1_main_results", "benchmarks"])
def test_what_a_person_calls_a_task_is_escaped_wherever_it_stands(steady: Analysis, name: str) -> None:
    """In the line above a task's rows, and in a caption that says how each is answered."""
    about = steady.tasks[0].about | {"title": "R&D_tickets at 50 %"}
    named = replace(steady, tasks=(replace(steady.tasks[0], about=about), *steady.tasks[1:]))
    [table] = [table for table in all_tables(named) if table.name == name]
    text = latex.render(table, named)
    assert text.count(r"R\&D\_tickets at 50 \%") == text.count("tickets") == (2 if name == "benchmarks" else 1)


def test_it_compiles(gappy: tuple[Path, list[str]], whole: tuple[Path, list[str]], tmp_path: Path) -> None:
    engine = shutil.which("pdflatex")
    if engine is None:
        pytest.skip("no pdflatex here; the tables were not compiled")
    for folder, _ in (gappy, whole):
        body = "".join((folder / "summary" / "latex" / f"{name}.tex").read_text() for name in NAMES)
        (tmp_path / "a.tex").write_text(DOCUMENT % body, encoding="utf-8")
        command = [engine, "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout[-2000:]

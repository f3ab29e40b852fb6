"""report.html: one self-contained page (no network, no fonts, no libraries), light and dark, wide and narrow.

The template lays out; this module collects what it shows. Texts of examples and predictions travel as JSON
and are put on the page by the browser as text, never as markup.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from kdsuite.evaluate.selection import COMPLETED, Record, Run
from kdsuite.report import narrative
from kdsuite.report.analysis import Analysis, TaskAnalysis
from kdsuite.report.cells import Cell
from kdsuite.report.comparisons import Comparison
from kdsuite.report.drawing import Drawn
from kdsuite.report.explorer import explorer_data
from kdsuite.report.load import BASELINE, flatten, read_manifest, teacher_quality
from kdsuite.report.tables import Row, Table, best_cells
from kdsuite.report.wording import counted, metric_name, minus, number, p_text, signed, span, task_name

TEMPLATES = Path(__file__).parent / "templates"


def render(analysis: Analysis, tables: Sequence[Table], figures: Sequence[Drawn]) -> str:
    """The whole page as text."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        include_raw=lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))
    )
    return environment.get_template("report.html.j2").render(
        settings=analysis.settings,
        level=f"{100 * analysis.settings.confidence:g} %",
        tasks=[_task(analysis, task) for task in analysis.tasks],
        figures=[
            {"name": f.name, "title": f.title, "caption": f.caption, "svg": Markup(f.svg)} for f in figures
        ],
        benchmark=_named(tables, "benchmarks"),
        costs=[_cost(row) for row in _named(tables, "training_costs").rows],
        rate=analysis.settings.cost_per_hour,
        several=any(len(task.students) > 1 for task in analysis.tasks),
        notes=analysis.notes,
        lost=[run for run in analysis.runs if run.status != COMPLETED],
        runs=[_run(run) for run in analysis.runs],
        provenance=_provenance(analysis),
        version=_version(analysis),
        year=str(analysis.results.plan.get("created", ""))[:4],
        explorer=[
            (task.name, _embedded(explorer_data(task, analysis.settings.explorer_examples)))
            for task in analysis.tasks
        ],
    )


def _named(tables: Sequence[Table], name: str) -> Table:
    return next(table for table in tables if table.name == name)


def _embedded(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


# ---------------------------------------------------------------------------------------------------- tasks


def _task(analysis: Analysis, task: TaskAnalysis) -> Record:
    best = best_cells(task)
    return {
        "id": task.name,
        "name": task_name(task.name),
        "metric": metric_name(task.metric),
        "secondary": metric_name(task.secondary),
        "examples": counted(len(task.ids), "example"),
        "headline": narrative.headline(task),
        "supported": bool(best),
        "remark": narrative.teacher_remark(task),
        "rows": [_main_row(task, cell, cell in best) for cell in task.cells],
        "comparisons": [_comparison(c) for c in task.comparisons],
        "readings": [narrative.reading(c) for c in task.comparisons],
        "gaps": [
            narrative.gap_reading(gap, analysis.settings.margin)
            for gap in task.gaps
            if gap.comparison.a != BASELINE
        ],
    }


def _main_row(task: TaskAnalysis, cell: Cell, best: bool) -> Record:
    comparison = task.comparison(cell.student, cell.method)
    tested = comparison is not None and comparison.estimate is not None
    return {
        "student": cell.student or "",
        "method": cell.method,
        "hyperparameters": cell.hyperparameters,
        "seeds": len(cell.runs),
        "score": number(cell.mean, 1, missing=cell.status),
        "has_score": bool(cell.runs),
        "interval": span(cell.interval),
        "std": number(cell.std, 1, missing=""),
        "delta": signed(comparison.difference) if comparison and tested else "",
        "verdict": comparison.verdict if comparison and tested else "",
        "secondary": number(cell.secondary_mean, 1, missing=""),
        "status": cell.status,
        "note": cell.note,
        "best": best,
    }


def _comparison(c: Comparison) -> Record:
    test, missing = c.seed_test, "not testable" if c.estimate else ""
    return {
        "student": c.student or "",
        "name": c.name,
        "verdict": c.verdict,
        "size": f"{c.seeds} × {c.examples:,}" if c.estimate else "",
        "difference": signed(c.difference) if c.estimate else "",
        "interval": span(c.interval),
        "t": minus(number(test.t, 2)) if test else missing,
        "p_t": _p(test.p if test else None),
        "d": minus(number(test.d_z, 2)) if test else "",
        "p_paired": _p(c.p_paired),
        "p_holm": _p(c.p_holm) or missing,
        "detectable": number(c.detectable, 1, missing=""),
    }


def _p(value: float | None) -> str:
    return "" if value is None else p_text(value).removeprefix("p ").removeprefix("= ")


def _cost(row: Row) -> Record:
    """A row of the cost table, rounded for reading."""
    digits = {"train_seconds": 1, "evaluate_seconds": 1, "teacher_seconds": 1, "seconds_per_run": 1}
    digits |= {
        "examples_per_second": 0,
        "supervised_tokens_per_second": 0,
        "peak_memory_mb": 0,
        "cost_per_run": 4,
    }
    rounded = {name: _rounded(row[name], places) for name, places in digits.items()}
    return {"task": task_name(row["task"]), **{n: row[n] for n in ("student", "method", "runs")}, **rounded}


def _rounded(text: str, digits: int) -> str:
    try:
        return number(float(text), digits)
    except ValueError:
        return ""


# ----------------------------------------------------------------------------------------------- provenance


def _run(run: Run) -> Record:
    timing = run.record.get("timing") or {}
    return {
        "id": run.run_id,
        "status": run.status,
        "reason": run.reason or "",
        "fingerprint": str(run.record.get("fingerprint") or "")[:12],
        "seconds": number(timing.get("train_seconds"), 0, missing=""),
        "memory": number(timing.get("peak_memory_mb"), 0, missing=""),
        "code": run.record.get("code_version") or "",
    }


def _provenance(analysis: Analysis) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titled lists of facts: the plan, data, models, teacher and machine, under dotted names."""
    results = analysis.results
    plan = {key: results.plan.get(key) for key in ("created", "code_version") if results.plan.get(key)}
    data = {task: read_manifest(results.root, task) for task in results.tasks}
    teacher = {task: teacher_quality(results.root, task) for task in results.tasks}
    used = [cell.runs[0] for task in analysis.tasks for cell in task.cells if cell.runs]
    models = {run.run_id: run.record["model"] for run in used if run.record.get("model")}
    blocks = [
        ("Plan", plan),
        ("Data", data),
        ("Models", models),
        ("Teacher outputs", teacher),
        ("Machine and libraries", results.plan.get("environment") or _environments(results.runs)),
        ("Settings", results.plan.get("settings") or {}),
    ]
    return [(title, list(flatten(value))) for title, value in blocks if value]


def _environments(runs: Iterable[Run]) -> Record:
    """Without a plan: the distinct environments that the runs recorded."""
    seen = {
        json.dumps(run.record.get("environment"), sort_keys=True)
        for run in runs
        if run.record.get("environment")
    }
    return {str(index): json.loads(text) for index, text in enumerate(sorted(seen), start=1)}


def _version(analysis: Analysis) -> str:
    return str(analysis.results.plan.get("code_version") or "unknown")

"""report.html: one self-contained page (no network, no fonts, no libraries), light and dark, wide and narrow.

The template lays out and rounds what the analysis holds. Texts of examples and predictions travel as JSON and are
put on the page by the browser as text, never as markup.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from kdsuite.evaluate.selection import COMPLETED
from kdsuite.report import words
from kdsuite.report.analysis import Analysis
from kdsuite.report.drawing import Canvas
from kdsuite.report.explorer import explorer_data
from kdsuite.report.load import flatten, read_manifest, teacher_quality
from kdsuite.report.tables import Table, written
from kdsuite.report.words import ENVIRONMENT, TEMPLATES


def render(analysis: Analysis, tables: Sequence[Table], figures: Sequence[Canvas]) -> str:
    """The whole page as text."""
    named, limit = {table.name: table for table in tables}, analysis.settings.explorer_examples
    plan = analysis.results.plan
    return ENVIRONMENT.get_template("report.html.j2").render(
        analysis=analysis,
        settings=analysis.settings,
        level=analysis.level,
        tasks=analysis.tasks,
        several=analysis.several,
        words=words,
        written=written,
        include_raw=lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8")),
        figures=figures,
        benchmark=named["benchmarks"],
        costs=named["training_costs"].rows,
        runs=analysis.runs,
        lost=[run for run in analysis.runs if run.status != COMPLETED],
        provenance=_provenance(analysis),
        plan=plan,
        titles={name: about["title"] for name, about in (plan.get("methods") or {}).items() if about.get("title")},
        explorer={task.name: _embedded(explorer_data(task, limit)) for task in analysis.tasks},
    )


def _embedded(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _provenance(analysis: Analysis) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titled lists of facts: the plan, data, models, teacher and machine, under dotted names.

    Without a plan, the machine is the distinct environments that the runs recorded.
    """
    results, plan = analysis.results, analysis.results.plan
    used = [cell.runs[0] for task in analysis.tasks for cell in task.cells if cell.runs]
    recorded = (run.record.get("environment") for run in results.runs)
    machines = sorted({json.dumps(machine, sort_keys=True) for machine in recorded if machine})
    environments = {str(index): json.loads(text) for index, text in enumerate(machines, start=1)}
    blocks = {
        "Plan": {key: plan[key] for key in ("created", "code_version") if plan.get(key)},
        "Data": {task: read_manifest(results.root, task) for task in results.tasks},
        "Models": {run.run_id: run.record["model"] for run in used if run.record.get("model")},
        "Teacher outputs": {task: teacher_quality(results.root, task) for task in results.tasks},
        "Machine and libraries": plan.get("environment") or environments,
        "Settings": plan.get("settings"),
    }
    return [(title, list(flatten(value))) for title, value in blocks.items() if value]

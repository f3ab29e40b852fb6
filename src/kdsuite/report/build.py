"""The one entry point: a results folder in, tables, figures, narrative and report.html out.

Only what exists is drawn: a missing cell keeps its place and says `not run` or `failed`, a figure without any data
says what is missing. Every figure carries the numbers it draws.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from kdsuite.config.report import ReportSettings
from kdsuite.evaluate.selection import FAILED, NOT_RUN, Record
from kdsuite.report import drawing, latex, page, words
from kdsuite.report.analysis import Analysis, analyse, losses
from kdsuite.report.doubts import look
from kdsuite.report.figures import FIGURES, data_curves
from kdsuite.report.load import load
from kdsuite.report.tables import Table, all_tables
from kdsuite.report.words import CONTENTS
from kdsuite.store.files import atomic_write_json, atomic_write_text
from kdsuite.store.layout import NARRATIVE, Layout


def build_report(
    results: Path, settings: ReportSettings, notify: Callable[[str], None] = lambda line: None
) -> list[str]:
    """Write summary/, figures/ and report.html from `raw_runs/`; DataError if there is nothing to report.

    Returns lines for the terminal: findings, then what is missing, then where the page is. `notify` is told of every
    remark on missing or odd data, one line each.
    """
    analysis = analyse(load(results), settings)
    for note in analysis.notes:
        notify(note)
    at, tables = Layout(results), all_tables(analysis)
    for name, text in summarised(analysis, tables).items():
        atomic_write_text(at.summary / name, text)
    parts = [part.task for task in analysis.tasks for part in task.parts[:-1]]
    selections = [cell.selection.as_dict() for task in (*analysis.tasks, *parts) for cell in task.cells]
    atomic_write_json(at.summary / "selection.json", selections)
    atomic_write_json(at.looks, looks_at(analysis))
    with drawing.styled():
        figures = [make(analysis) for make in FIGURES]
        curves = [data_curves(analysis)] if analysis.fractions else []
    for figure in (*figures, *curves):
        drawing.save(figure, at.figures)
    made = {one.name for one in (*tables, *figures, *curves)}
    for room, names in ((at.summary, CONTENTS["tables"]), (at.figures, CONTENTS["figures"])):
        for path in (path for name in names.keys() - made for path in room.rglob(f"{name}.*")):
            path.unlink()  # of a plan that had fractions
    atomic_write_text(at.page, page.render(analysis, tables, figures, curves))
    lines = [words.headline(task) for task in analysis.tasks]
    lines += [f"{t.title}: {words.said('paying', t, curve)}" for t in analysis.tasks for curve in t.curves]
    lines += [f"failed: {run.run_id} ({run.reason})" for run in analysis.runs if run.status == FAILED]
    if not_run := [run.run_id for run in analysis.runs if run.status == NOT_RUN]:
        lines.append(f"not run: {len(not_run)} planned runs, e.g. {not_run[0]}")
    return [*lines, f"report: {at.page}"]


def summarised(analysis: Analysis, tables: Sequence[Table]) -> dict[str, str]:
    """The tables as CSV and LaTeX, and the paragraph on them, by their file names below summary/."""
    texts = {f"{table.name}.csv": table.csv() for table in tables}
    shown = [table for table in tables if "shown" in CONTENTS["tables"][table.name]]
    texts |= {f"latex/{table.name}.tex": latex.render(table, analysis) for table in shown}
    return texts | {NARRATIVE: words.said("narrative", analysis, losses(analysis.runs)) + "\n"}


def looks_at(analysis: Analysis) -> dict[str, dict[str, list[Record]]]:
    """All looks at this folder, by task and student, the present ones at the end if they are new."""
    looks = {task: dict(students) for task, students in analysis.results.looks.items()}
    for task in analysis.tasks:
        mine = looks.setdefault(task.name, {})
        for student in task.students:
            now, earlier = look(task, student), mine.get(student, [])
            mine[student] = [*earlier, now] if now and now not in earlier else earlier
    return looks

"""The one entry point: a results folder in, tables, figures, narrative and report.html out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdsuite.config.report import ReportSettings
from kdsuite.evaluate.selection import FAILED, NOT_RUN
from kdsuite.report import figures, latex, narrative, page
from kdsuite.report.analysis import Analysis, analyse
from kdsuite.report.compare import compare
from kdsuite.report.drawing import Drawn
from kdsuite.report.load import load
from kdsuite.report.tables import Table, all_tables, best_cells
from kdsuite.runtime.process import garbage_kept
from kdsuite.store.files import atomic_write_bytes, atomic_write_json, atomic_write_text

__all__ = ["ReportSummary", "build_report", "compare"]


@dataclass(frozen=True)
class ReportSummary:
    """What a closing summary shows. `best`: a method per (task, student), None where no gain is supported."""

    page: Path
    headlines: dict[str, str]
    best: dict[tuple[str, str], str | None]
    failed: tuple[tuple[str, str], ...]
    not_run: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """For the terminal: findings, then what is missing, then where the page is."""
        lines = list(self.headlines.values())
        lines += [f"failed: {run_id} ({reason})" for run_id, reason in self.failed]
        if self.not_run:
            lines.append(f"not run: {len(self.not_run)} planned runs, e.g. {self.not_run[0][0]}")
        return [*lines, f"report: {self.page}"]


def build_report(
    results: Path, settings: ReportSettings, notify: Callable[[str], None] = lambda line: None
) -> ReportSummary:
    """Write summary/, figures/ and report.html from `raw_runs/`; DataError if there is nothing to report.

    `notify` is told of every remark on missing or odd data, one line each.
    """
    with garbage_kept():
        results = Path(results)
        analysis = analyse(load(results), settings)
        for note in analysis.notes:
            notify(note)
        tables = all_tables(analysis)
        _write_summary(results / "summary", analysis, tables)
        drawn = figures.draw_all(analysis)
        for figure in drawn:
            _write_figure(results / "figures", figure)
        path = results / "report.html"
        atomic_write_text(path, page.render(analysis, tables, drawn))
        return _summary(path, analysis)


def _write_summary(folder: Path, analysis: Analysis, tables: tuple[Table, ...]) -> None:
    for table in tables:
        atomic_write_text(folder / f"{table.name}.csv", table.csv())
        if table.name in latex.COLUMNS:
            atomic_write_text(folder / "latex" / f"{table.name}.tex", latex.render(table, analysis))
    selections = [cell.selection.as_dict() for task in analysis.tasks for cell in task.cells]
    atomic_write_json(folder / "selection.json", selections)
    atomic_write_text(folder / "narrative.md", narrative.paragraph(analysis))


def _write_figure(folder: Path, figure: Drawn) -> None:
    atomic_write_bytes(folder / f"{figure.name}.png", figure.png)
    atomic_write_bytes(folder / f"{figure.name}.pdf", figure.pdf)
    atomic_write_text(folder / f"{figure.name}.csv", figures.data_csv(figure))


def _summary(path: Path, analysis: Analysis) -> ReportSummary:
    best: dict[tuple[str, str], str | None] = {}
    for task in analysis.tasks:
        winners = {cell.student: cell.method for cell in best_cells(task)}
        best |= {(task.name, student): winners.get(student) for student in task.students}
    lost = {
        state: [(r.run_id, r.reason or "") for r in analysis.runs if r.status == state]
        for state in (FAILED, NOT_RUN)
    }
    headlines = {task.name: narrative.headline(task) for task in analysis.tasks}
    return ReportSummary(path, headlines, best, tuple(lost[FAILED]), tuple(lost[NOT_RUN]), analysis.notes)

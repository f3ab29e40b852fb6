"""Two results folders side by side: the same cells, their difference, and which settings differ.

Runs of one folder are not paired with the other's by anything but the examples, so that the difference takes
each folder's seeds as independent samples; it needs the same examples on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdsuite.config.report import ReportSettings
from kdsuite.report.analysis import Analysis, TaskAnalysis, analyse
from kdsuite.report.cells import Cell
from kdsuite.report.comparisons import TOO_FEW_EXAMPLES
from kdsuite.report.load import flatten, load
from kdsuite.report.statistics import Interval, two_sample_interval
from kdsuite.report.wording import number, signed, span, task_name


@dataclass(frozen=True)
class Pair:
    """One cell in both folders; None where a folder has not planned it."""

    task: str
    label: str
    a: Cell | None
    b: Cell | None
    difference: float | None = None  # B − A in points
    interval: Interval | None = None
    remark: str = ""


@dataclass(frozen=True)
class FolderComparison:
    """What `compare` found; `settings` are (key, value in A, value in B) where they differ."""

    a: Path
    b: Path
    pairs: tuple[Pair, ...]
    settings: tuple[tuple[str, str, str], ...]

    @property
    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [f"A: {self.a}", f"B: {self.b}", ""]
        rows = [("task", "method", "A", "B", "B − A", "interval", ""), *(_line(pair) for pair in self.pairs)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines += ["", "settings that differ:" if self.settings else "the settings are the same"]
        return lines + [f"  {key}: {a} | {b}" for key, a, b in self.settings]


def compare(a: Path, b: Path, settings: ReportSettings | None = None) -> FolderComparison:
    """Set the results in `a` and `b` side by side; DataError if one of them holds none."""
    settings = settings or ReportSettings()
    one, two = (analyse(load(Path(path)), settings) for path in (a, b))
    return FolderComparison(
        Path(a), Path(b), tuple(_pairs(one, two, settings.confidence)), tuple(_differences(one, two))
    )


def _pairs(one: Analysis, two: Analysis, confidence: float) -> Iterator[Pair]:
    for name in dict.fromkeys(task.name for task in (*one.tasks, *two.tasks)):
        tasks = one.task(name), two.task(name)
        keys = dict.fromkeys((cell.method, cell.student) for task in tasks if task for cell in task.cells)
        for method, student in keys:
            cells = [task.cell(method, student) if task else None for task in tasks]
            label = " ".join(filter(None, (student, method)))
            yield _pair(Pair(name, label, cells[0], cells[1]), tasks, confidence)


def _pair(pair: Pair, tasks: tuple[TaskAnalysis | None, TaskAnalysis | None], confidence: float) -> Pair:
    a, b = pair.a, pair.b
    if a is None or b is None or a.scores is None or b.scores is None:
        return pair
    difference = b.mean - a.mean
    first, second = tasks
    if first is None or second is None or set(first.ids) != set(second.ids):
        return Pair(pair.task, pair.label, a, b, difference, None, "other examples")
    if first.groups.max() == 0:
        return Pair(pair.task, pair.label, a, b, difference, None, TOO_FEW_EXAMPLES)
    place = {name: index for index, name in enumerate(second.ids)}
    order = np.array([place[name] for name in first.ids])
    interval = two_sample_interval(b.scores[:, order], a.scores, first.groups, confidence)
    return Pair(pair.task, pair.label, a, b, difference, interval)


def _line(pair: Pair) -> tuple[str, ...]:
    a, b = (_score(cell) for cell in (pair.a, pair.b))
    difference = "" if pair.difference is None else signed(pair.difference)
    return task_name(pair.task), pair.label, a, b, difference, span(pair.interval), pair.remark


def _score(cell: Cell | None) -> str:
    if cell is None:
        return "not planned"
    return number(cell.mean, 1, missing=cell.status) + (
        f" ({cell.hyperparameters})" if cell.hyperparameters else ""
    )


def _differences(one: Analysis, two: Analysis) -> Iterator[tuple[str, str, str]]:
    a, b = (dict(flatten(x.results.plan.get("settings") or {})) for x in (one, two))
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            yield key, a.get(key, "—"), b.get(key, "—")

"""From loaded runs to the numbers that every table, figure and sentence shares; computed once, in percent."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdsuite.config.plugins import TASKS, plugins
from kdsuite.config.report import ReportSettings
from kdsuite.errors import DataError
from kdsuite.evaluate.selection import COMPLETED, Record, Run
from kdsuite.report.cells import Cell, cells_of
from kdsuite.report.comparisons import Comparison, Context, Gap, compare_with_baseline, compare_with_teacher
from kdsuite.report.load import BASELINE, Results, read_examples, read_predictions


@dataclass(frozen=True)
class TaskAnalysis:
    """All there is to say about one task; `examples` may be empty if the prepared data are gone."""

    name: str
    metric: str
    secondary: str
    ids: tuple[str, ...]
    groups: NDArray[np.int64]
    examples: dict[str, Record]
    cells: tuple[Cell, ...]
    comparisons: tuple[Comparison, ...]
    gaps: tuple[Gap, ...]

    @property
    def students(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.student for cell in self.cells if cell.student))

    def cell(self, method: str, student: str | None = None) -> Cell | None:
        found = (c for c in self.cells if c.method == method and c.student == student)
        return next(found, None)

    def comparison(self, student: str | None, method: str) -> Comparison | None:
        """The method's comparison with B0."""
        found = (c for c in self.comparisons if (c.student, c.a, c.b) == (student, method, BASELINE))
        return next(found, None)


@dataclass(frozen=True)
class Analysis:
    results: Results
    settings: ReportSettings
    tasks: tuple[TaskAnalysis, ...]
    notes: tuple[str, ...]

    def task(self, name: str) -> TaskAnalysis | None:
        return next((task for task in self.tasks if task.name == name), None)

    @property
    def runs(self) -> tuple[Run, ...]:
        """All planned runs, those whose predictions turned out to be unusable as failed."""
        broken = {
            run.run_id: run
            for t in self.tasks
            for c in t.cells
            for k in c.selection.candidates
            for run in k.runs
        }
        return tuple(broken.get(run.run_id, run) for run in self.results.runs)


def analyse(results: Results, settings: ReportSettings) -> Analysis:
    """Select, score and compare; DataError if the plan names a task that the suite does not know."""
    tasks = tuple(_task(results, settings, name) for name in results.tasks)
    notes = [f"{task.name}: {cell.label}: {cell.note}" for task in tasks for cell in task.cells if cell.note]
    unprepared = [
        f"{t.name}: processed_data is missing; examples are taken from the runs"
        for t in tasks
        if not t.examples
    ]
    return Analysis(results, settings, tasks, (*results.notes, *unprepared, *notes))


def _task(results: Results, settings: ReportSettings, name: str) -> TaskAnalysis:
    if name not in plugins(TASKS):
        raise DataError(
            f"task {name!r} of the results is not known here (known: {', '.join(plugins(TASKS))})"
        )
    metric, secondary = plugins(TASKS)[name].metric, plugins(TASKS)[name].secondary_metric
    examples = read_examples(results.root, name)
    ids = tuple(examples) or _recorded_ids(results, name)
    groups = _groups(ids, examples)
    runs = [run for run in results.runs if run.configuration.task == name]
    cells = cells_of(runs, ids, groups, (metric, secondary), settings)
    context = Context(name, metric, groups, settings)
    comparisons, gaps = compare_with_baseline(cells, context), compare_with_teacher(cells, context)
    return TaskAnalysis(
        name, metric, secondary, ids, groups, examples, tuple(cells), tuple(comparisons), tuple(gaps)
    )


def _recorded_ids(results: Results, task: str) -> tuple[str, ...]:
    """Without prepared data: the ids of the first run whose predictions can be read."""
    for run in results.runs:
        if run.configuration.task == task and run.status == COMPLETED:
            with suppress(DataError):
                return read_predictions(run).ids
    return ()


def _groups(ids: tuple[str, ...], examples: dict[str, Record]) -> NDArray[np.int64]:
    """An index per example: equal for examples of one source (a passage), else its own."""
    names = [examples[i].get("group") or i for i in ids] if examples else list(ids)
    order = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return np.array([order[name] for name in names], np.int64)

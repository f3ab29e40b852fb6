"""From loaded runs to the numbers that every table, figure and sentence shares; computed once, in percent."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kdsuite.config.report import ReportSettings
from kdsuite.errors import DataError
from kdsuite.evaluate.selection import COMPLETED, Record, Run
from kdsuite.report.cells import Cell, cells_of
from kdsuite.report.comparisons import BETTER, Comparison, compare_with_baseline, compare_with_teacher
from kdsuite.report.doubts import doubts
from kdsuite.report.load import BASELINE, Results, read_examples, read_predictions


@dataclass(frozen=True)
class TaskAnalysis:
    """All there is to say about one task; `about` is what the plan says of it (title, metric, labels, …).

    `ids` and `groups` [n] are the reported split's; `examples` may be empty if the prepared data are gone; `doubts` are
    what to know before anything else is read.
    """

    name: str
    settings: ReportSettings
    about: Record
    ids: tuple[str, ...]
    groups: NDArray[np.int64]
    examples: dict[str, Record]
    cells: tuple[Cell, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    gaps: tuple[Comparison, ...] = ()
    doubts: tuple[Record, ...] = ()

    @property
    def title(self) -> str:
        return self.about.get("title") or self.name

    @property
    def metric(self) -> str:
        return self.about["metric"]

    @property
    def secondary(self) -> str:
        return self.about["secondary_metric"]

    @property
    def students(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.student for cell in self.cells if cell.student))

    @property
    def best(self) -> list[Cell]:
        """Per student, the highest mean among the methods that the corrected test finds better than B0."""
        better = {(c.student, c.a) for c in self.comparisons if c.b == BASELINE and c.verdict == BETTER}
        cells = [cell for cell in self.cells if (cell.student, cell.method) in better]
        found = ([c for c in cells if c.student == student] for student in self.students)
        return [max(mine, key=lambda cell: cell.mean) for mine in found if mine]

    def called(self, cell: Cell) -> str:
        """The cell's method, with its student where there are several."""
        return cell.label if len(self.students) > 1 else cell.method

    def cell(self, method: str, student: str | None = None) -> Cell | None:
        return next((c for c in self.cells if (c.method, c.student) == (method, student)), None)

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
    def several(self) -> bool:
        """Whether students must be named."""
        return any(len(task.students) > 1 for task in self.tasks)

    @property
    def level(self) -> str:
        """That of all intervals, for reading."""
        return f"{100 * self.settings.confidence:g} %"

    @property
    def runs(self) -> tuple[Run, ...]:
        """All planned runs, those whose predictions turned out to be unusable as failed."""
        cells = (cell for task in self.tasks for cell in task.cells)
        known = {run.run_id: run for cell in cells for c in cell.selection.candidates for run in c.runs}
        return tuple(known.get(run.run_id, run) for run in self.results.runs)


def analyse(results: Results, settings: ReportSettings) -> Analysis:
    """Select, score and compare; DataError if the plan does not say what a task is scored by."""
    tasks = tuple(_task(results, settings, name) for name in results.tasks)
    notes = [f"{task.name}: {cell.label}: {cell.note}" for task in tasks for cell in task.cells if cell.note]
    unprepared = [
        f"{t.name}: processed_data is missing; examples are taken from the runs" for t in tasks if not t.examples
    ]
    return Analysis(results, settings, tasks, (*results.notes, *unprepared, *notes))


def _task(results: Results, settings: ReportSettings, name: str) -> TaskAnalysis:
    task = scored(results, settings, name)
    task = replace(task, comparisons=tuple(compare_with_baseline(task)), gaps=tuple(compare_with_teacher(task)))
    return replace(task, doubts=tuple(doubts(task, results.looks.get(name, {}))))


def scored(results: Results, settings: ReportSettings, name: str) -> TaskAnalysis:
    """A task with its cells, before anything is compared."""
    runs = [run for run in results.runs if run.configuration.task == name]
    about, examples = _about(results, name, runs), read_examples(results.root, name)
    ids = tuple(examples) or _recorded_ids(runs)
    source = [examples[i].get("group") or i for i in ids] if examples else ids  # the passage, or the example
    order = {group: index for index, group in enumerate(dict.fromkeys(source))}
    groups = np.array([order[group] for group in source], np.int64)
    task = TaskAnalysis(name, settings, about, ids, groups, examples)
    return replace(task, cells=tuple(cells_of(task, runs)))


def _about(results: Results, name: str, runs: list[Run]) -> Record:
    """What the plan says of a task; without a plan, the metrics that its runs were selected and scored by."""
    if "tasks" in results.plan:
        if name not in results.plan["tasks"]:
            known = ", ".join(results.plan["tasks"])
            raise DataError(f"task {name!r} of the results is not one of the plan's (known: {known})")
        return results.plan["tasks"][name]
    for run in runs:
        if run.record.get("selection"):
            metric, scored = run.record["selection"]["metric"], run.record["metrics"].get("validation", ())
            others = sorted(name for name in set(scored) - {metric, "n"} if not name.startswith("cleaned_"))
            return {"metric": metric, "secondary_metric": others[0] if others else metric}
    raise DataError(f"what task {name!r} is scored by is not recorded; run `kdsuite run` again")


def _recorded_ids(runs: list[Run]) -> tuple[str, ...]:
    """Without prepared data: the ids of the first run whose predictions can be read."""
    for run in runs:
        if run.status == COMPLETED:
            with suppress(DataError):
                return read_predictions(run).ids
    return ()

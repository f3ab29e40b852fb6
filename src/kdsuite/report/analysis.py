"""From loaded runs to the numbers that every table, figure and sentence shares; computed once, in percent.

A run counts only if its predictions cover the reported split, each example once, and average to the recorded
metric; otherwise it has failed, and the selection is made again without it.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kdsuite.config import TEACHER, ZERO_SHOT
from kdsuite.config.report import ReportSettings
from kdsuite.errors import DataError
from kdsuite.evaluate.crossed import Floats, Interval, crossed
from kdsuite.evaluate.selection import COMPLETED, FAILED, INCOMPLETE, NOT_RUN, Record, Run, Selection, select
from kdsuite.report import statistics
from kdsuite.report.comparisons import BETTER, Comparison, compare_with_baseline, compare_with_teacher
from kdsuite.report.doubts import doubts
from kdsuite.report.fractions import Curve, Part, compare_parts
from kdsuite.report.load import BASELINE, Predictions, Results, read_examples, read_predictions
from kdsuite.tasks.metrics import normalize_answer


@dataclass(frozen=True, eq=False)
class Cell:
    """A cell of the main table: a method on one task and student.

    `scores` [S, n] are percent; NaN and None stand for no runs.
    """

    selection: Selection
    status: str
    note: str
    runs: tuple[Run, ...] = ()
    predictions: tuple[Predictions, ...] = ()
    scores: Floats | None = None
    interval: Interval | None = None  # over seeds and examples, or over examples alone with fewer than three runs
    seed_interval: Interval | None = None
    secondary_mean: float = math.nan
    cleaned_mean: float = math.nan  # of the primary metric, had answers been cleaned before they were scored
    agreement: tuple[float, ...] = ()

    @property
    def student(self) -> str | None:
        return self.selection.candidates[0].configuration.student

    @property
    def method(self) -> str:
        return self.selection.candidates[0].configuration.method

    @property
    def trained(self) -> bool:
        return self.method not in (TEACHER, ZERO_SHOT)

    @property
    def points(self) -> int:
        """How many points of hyper-parameters there were to choose from."""
        return len(self.selection.candidates)

    @property
    def hyperparameters(self) -> str:
        return self.selection.hyperparameters

    @property
    def label(self) -> str:
        return " ".join(filter(None, (self.student, self.method)))

    @property
    def seeds(self) -> tuple[int | None, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def seed_means(self) -> Floats:
        return np.array([]) if self.scores is None else self.scores.mean(axis=1)

    @property
    def mean(self) -> float:
        return math.nan if self.scores is None else float(self.scores.mean())

    @property
    def std(self) -> float:
        return float(self.seed_means.std(ddof=1)) if len(self.runs) > 1 else math.nan


@dataclass(frozen=True)
class TaskAnalysis:
    """All there is to say about one task; `about` is what the plan says of it (title, metric, labels, …).

    `ids` and `groups` [n] are the reported split's; `examples` may be empty if the prepared data are gone; `doubts` are
    what to know before anything else is read. `parts` are the task at fractions of its training examples, the whole as
    the last of them, with the methods' `curves` over them; none where it has no fractions, and nothing else reads them.
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
    parts: tuple[Part, ...] = ()
    curves: tuple[Curve, ...] = ()

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
    def fractions(self) -> bool:
        """Whether any task was learned from fractions of its training examples, too."""
        return any(task.parts for task in self.tasks)

    @property
    def level(self) -> str:
        """That of all intervals, for reading."""
        return f"{100 * self.settings.confidence:g} %"

    @property
    def runs(self) -> tuple[Run, ...]:
        """All planned runs, those whose predictions turned out to be unusable as failed."""
        parts = [part.task for task in self.tasks for part in task.parts]
        cells = (cell for task in (*parts, *self.tasks) for cell in task.cells)
        known = {run.run_id: run for cell in cells for c in cell.selection.candidates for run in c.runs}
        return tuple(known.get(run.run_id, run) for run in self.results.runs)


def analyse(results: Results, settings: ReportSettings) -> Analysis:
    """Select, score and compare; DataError if the plan does not say what a task is scored by."""
    tasks = tuple(_task(results, settings, name) for name in results.tasks)
    notes = [f"{task.name}: {cell.label}: {cell.note}" for task in tasks for cell in task.cells if cell.note]
    for part in (part for task in tasks for part in task.parts[:-1]):
        notes += [f"{part.task.name}, {part.name}: {cell.label}: {cell.note}" for cell in part.task.cells if cell.note]
    unprepared = [
        f"{t.name}: processed_data is missing; examples are taken from the runs" for t in tasks if not t.examples
    ]
    return Analysis(results, settings, tasks, (*results.notes, *unprepared, *notes))


def _task(results: Results, settings: ReportSettings, name: str) -> TaskAnalysis:
    task = scored(results, settings, name)
    task = replace(task, comparisons=tuple(compare_with_baseline(task)), gaps=tuple(compare_with_teacher(task)))
    parts, curves = compare_parts(_parts(results, task))
    return replace(task, doubts=tuple(doubts(task, results.looks.get(name, {}))), parts=parts, curves=curves)


def _parts(results: Results, task: TaskAnalysis) -> list[Part]:
    """A task at each of its plan's fractions, ascending."""
    parts = []
    for planned in task.about.get("fractions", ()):
        fraction, about = planned["fraction"], task
        if fraction < 1:
            about = replace(task, cells=tuple(cells_of(task, results.runs_of(task.name, fraction))))
        parts.append(Part(fraction, planned["examples"], about))
    return parts


def scored(results: Results, settings: ReportSettings, name: str) -> TaskAnalysis:
    """A task with its cells, which are of all its training examples, before anything is compared."""
    runs = results.runs_of(name)
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


def cells_of(task: TaskAnalysis, runs: Sequence[Run]) -> list[Cell]:
    """The cells of a task: the teacher's, then each student's, zero-shot first and methods as planned."""
    cells: dict[tuple[str | None, str], list[Run]] = {}
    for run in runs:
        cells.setdefault((run.configuration.student, run.configuration.method), []).append(run)
    order = sorted(cells, key=lambda key: (key[1] != TEACHER, key[0] or "", key[1] != ZERO_SHOT))
    return _with_agreement([_cell(task, cells[key]) for key in order])


def _estimated(runs: Sequence[Run]) -> str | None:
    """What is told of runs that learned from a served teacher's distributions at T ≠ 1: a part of them is estimated."""
    for run in runs:
        teacher, values = run.record.get("teacher") or {}, dict(run.configuration.point)
        if teacher.get("top_k") and values.get("temperature", 1.0) != 1.0:
            return (
                f"teacher behind a URL ({teacher['served']}): {teacher['top_k']} log-probabilities per position, the "
                f"rest estimated at T = {values['temperature']:g}"
            )
    return None


def _cell(task: TaskAnalysis, runs: list[Run]) -> Cell:
    """Choose the runs and read their predictions; a run whose predictions are unusable has failed."""
    metric = task.metric
    while True:
        selection, predictions, broken = select(runs, metric), [], {}
        used = selection.runs
        for run in used:
            try:
                predictions.append(_read(run, task.ids, metric))
            except DataError as error:
                broken[run.run_id] = replace(run, status=FAILED, reason=str(error))
        if not broken:
            break
        runs = [broken.get(run.run_id, run) for run in runs]
    every = [run for candidate in selection.candidates for run in candidate.runs]
    status = COMPLETED if selection.complete else INCOMPLETE
    if not used:
        status = FAILED if any(run.status == FAILED for run in every) else NOT_RUN
    note = "; ".join(filter(None, [selection.note, *losses(every), _estimated(used)]))
    cell = Cell(selection, status, note, used, tuple(predictions))
    if not used:
        return cell
    scores, interval = 100 * np.stack([p.scores[metric] for p in predictions]), None
    confidence = task.settings.confidence
    if task.groups.any():  # examples of a single group say nothing about other groups
        interval = crossed(scores, task.groups).interval_at_hand(1 - confidence, lowest=0.0)
    return replace(
        cell,
        scores=scores,
        interval=interval,
        seed_interval=statistics.seed_interval(scores.mean(axis=1), confidence),
        secondary_mean=float(np.mean([run.metric("validation", task.secondary) for run in used])),
        cleaned_mean=float(np.mean([run.metric("validation", f"cleaned_{metric}") for run in used])),
    )


def _read(run: Run, ids: tuple[str, ...], metric: str) -> Predictions:
    """The run's predictions for these examples; DataError unless they are what its record says."""
    predictions = read_predictions(run, ids)
    if metric not in predictions.scores:
        raise DataError(f"predictions.jsonl has no scores named {metric}")
    if not np.isfinite(predictions.scores[metric]).all():
        raise DataError("predictions.jsonl has scores that are not finite")
    recorded, scored = run.metric("validation", metric), 100 * float(predictions.scores[metric].mean())
    if abs(recorded - scored) > 0.01:
        raise DataError(f"run.json says {metric} {recorded:.2f}, its predictions {scored:.2f}")
    return predictions


def losses(runs: Iterable[Run]) -> list[str]:
    """Which runs have no result and why, a phrase per reason that names three runs at most."""
    reasons: dict[str, list[str]] = {}
    for run in runs:
        if run.status != COMPLETED:
            reasons.setdefault(f"{run.status} ({run.reason})", []).append(run.run_id)
    more = {reason: f" and {len(ids) - 3} more" if len(ids) > 3 else "" for reason, ids in reasons.items()}
    return [f"{', '.join(ids[:3])}{more[reason]} {reason}" for reason, ids in reasons.items()]


def _with_agreement(cells: list[Cell]) -> list[Cell]:
    """Per run, the percentage of examples on which it says what the teacher says (cleaned, normalised text)."""
    teacher = next((cell for cell in cells if cell.method == TEACHER and cell.predictions), None)
    if teacher is None:
        return cells
    normal = lru_cache(maxsize=None)(normalize_answer)
    said = [normal(text) for text in teacher.predictions[0].cleaned]

    def share(predictions: Predictions) -> float:
        return 100 * sum(map(str.__eq__, map(normal, predictions.cleaned), said)) / len(said)

    return [replace(cell, agreement=tuple(share(p) for p in cell.predictions)) for cell in cells]

"""The cells of the main table: a method on one task and student, with its selected runs and their scores.

A run counts only if its predictions cover the reported split, each example once, and average to the recorded
metric; otherwise it has failed, and the selection is made again without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from kdsuite.config import TEACHER, ZERO_SHOT
from kdsuite.errors import DataError
from kdsuite.evaluate.crossed import Floats, Interval, crossed
from kdsuite.evaluate.selection import COMPLETED, FAILED, INCOMPLETE, NOT_RUN, Configuration, Run, Selection, select
from kdsuite.report import statistics
from kdsuite.report.load import Predictions, read_predictions
from kdsuite.tasks.metrics import normalize_answer

if TYPE_CHECKING:
    from kdsuite.report.analysis import TaskAnalysis


@dataclass(frozen=True, eq=False)
class Cell:
    """A method on one task and student. `scores` [S, n] are percent; NaN and None stand for no runs."""

    identity: Configuration  # of the method's first run; those that stand for it are in `selection`
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
        return self.identity.student

    @property
    def method(self) -> str:
        return self.identity.method

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


def cells_of(task: TaskAnalysis, runs: Sequence[Run]) -> list[Cell]:
    """The cells of a task: the teacher's, then each student's, zero-shot first and methods as planned."""
    cells: dict[tuple[str | None, str], list[Run]] = {}
    for run in runs:
        cells.setdefault((run.configuration.student, run.configuration.method), []).append(run)
    order = sorted(cells, key=lambda key: (key[1] != TEACHER, key[0] or "", key[1] != ZERO_SHOT))
    return _with_agreement([_cell(task, cells[key]) for key in order])


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
    note = "; ".join(filter(None, [selection.note, *losses(every)]))
    cell = Cell(runs[0].configuration, selection, status, note, used, tuple(predictions))
    if not used:
        return cell
    scores, interval, confidence = (
        100 * np.stack([p.scores[metric] for p in predictions]),
        None,
        task.settings.confidence,
    )
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

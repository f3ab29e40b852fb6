"""The cells of the main table: a method on one task and student, with its selected runs and their scores.

A run counts only if its predictions cover the reported split, each example once, and average to the recorded
metric; otherwise it has failed, and the selection is made again without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kdsuite.config.report import ReportSettings
from kdsuite.errors import DataError
from kdsuite.evaluate.selection import (
    COMPLETED,
    FAILED,
    INCOMPLETE,
    NOT_RUN,
    Candidate,
    Configuration,
    Run,
    Selection,
    select,
)
from kdsuite.report import statistics
from kdsuite.report.load import TEACHER, ZERO_SHOT, Predictions, aligned, read_predictions, without
from kdsuite.report.statistics import Floats, Interval
from kdsuite.tasks.metrics import normalize_answer


@dataclass(frozen=True, eq=False)
class Cell:
    """A method on one task and student. `scores` [S, n] are percent; NaN and None stand for no runs."""

    identity: Configuration  # of the method's first run; the chosen hyper-parameters are in `selection`
    selection: Selection
    status: str
    note: str
    runs: tuple[Run, ...] = ()
    predictions: tuple[Predictions, ...] = ()
    scores: Floats | None = None
    draws: Floats | None = None
    interval: Interval | None = None
    seed_interval: Interval | None = None
    secondary_mean: float = math.nan
    agreement: tuple[float, ...] = ()

    @property
    def student(self) -> str | None:
        return self.identity.student

    @property
    def method(self) -> str:
        return self.identity.method

    @property
    def chosen(self) -> Candidate | None:
        return self.selection.chosen

    @property
    def hyperparameters(self) -> str:
        return self.chosen.configuration.hyperparameters if self.chosen else ""

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


def cells_of(
    runs: Sequence[Run],
    ids: tuple[str, ...],
    groups: NDArray[np.int64],
    metrics: tuple[str, str],
    settings: ReportSettings,
) -> list[Cell]:
    """The cells of one task: the teacher's, then each student's, zero-shot first and methods as planned.

    `ids` and `groups` [n] are the reported split's; `metrics` are the primary and the secondary one.
    """
    cells = [_cell(mine, ids, *metrics) for mine in _by_method(runs)]
    return _with_agreement(_with_intervals(cells, groups, settings))


def _by_method(runs: Sequence[Run]) -> Iterator[list[Run]]:
    keys = dict.fromkeys((run.configuration.student, run.configuration.method) for run in runs)
    for key in sorted(keys, key=lambda k: (k[1] != TEACHER, k[0] or "", k[1] != ZERO_SHOT)):
        yield [run for run in runs if (run.configuration.student, run.configuration.method) == key]


def _cell(runs: list[Run], ids: tuple[str, ...], metric: str, secondary: str) -> Cell:
    """Choose a configuration and read its predictions; a run whose predictions are unusable has failed."""
    while True:
        selection = select(runs, metric)
        used = selection.chosen.completed if selection.chosen else ()
        read = [_read(run, ids, metric) for run in used]
        broken = {
            run.run_id: without(run, str(p))
            for run, p in zip(used, read, strict=True)
            if isinstance(p, DataError)
        }
        if not broken:
            break
        runs = [broken.get(run.run_id, run) for run in runs]
    predictions = tuple(p for p in read if isinstance(p, Predictions))
    cell = Cell(runs[0].configuration, selection, _status(selection), _note(selection), used, predictions)
    if not used:
        return cell
    scores = 100 * np.stack([p.scores[metric] for p in predictions])
    return replace(
        cell, scores=scores, secondary_mean=float(np.mean([r.metric("validation", secondary) for r in used]))
    )


def _read(run: Run, ids: tuple[str, ...], metric: str) -> Predictions | DataError:
    try:
        predictions = aligned(read_predictions(run), ids)
        if metric not in predictions.scores:
            raise DataError(f"predictions.jsonl has no scores named {metric}")
        if not np.isfinite(predictions.scores[metric]).all():
            raise DataError("predictions.jsonl has scores that are not finite")
        recorded, scored = run.metric("validation", metric), 100 * float(predictions.scores[metric].mean())
        if abs(recorded - scored) > 0.01:
            raise DataError(f"run.json says {metric} {recorded:.2f}, its predictions {scored:.2f}")
    except DataError as error:
        return error
    return predictions


def _status(selection: Selection) -> str:
    if selection.chosen is None:
        failed = any(run.status == FAILED for c in selection.candidates for run in c.runs)
        return FAILED if failed else NOT_RUN
    return COMPLETED if selection.complete else INCOMPLETE


def _note(selection: Selection) -> str:
    """What is missing from a cell, and why."""
    return "; ".join(
        filter(None, [selection.note, *losses(run for c in selection.candidates for run in c.runs)])
    )


def losses(runs: Iterable[Run]) -> list[str]:
    """Which runs have no result and why, a phrase per reason that names three runs at most."""
    reasons: dict[str, list[str]] = {}
    for run in runs:
        if run.status != COMPLETED:
            reasons.setdefault(f"{run.status} ({run.reason})", []).append(run.run_id)
    return [f"{_listed(names)} {reason}" for reason, names in reasons.items()]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _with_intervals(cells: list[Cell], groups: NDArray[np.int64], settings: ReportSettings) -> list[Cell]:
    """Bootstrap all runs of a task over the same resampled examples, then each cell over its seeds.

    Examples of a single group say nothing about other groups: then there are no draws, and no interval.
    """
    scored = [cell.scores for cell in cells if cell.scores is not None]
    if not scored:
        return cells
    sums, sizes = statistics.group_sums(np.concatenate(scored), groups), np.bincount(groups)
    if len(sizes) < 2:
        return [_with_seed_interval(cell, settings) if cell.runs else cell for cell in cells]
    means = statistics.bootstrap_means(sums, sizes, settings.bootstrap_samples, settings.seed)
    starts = np.cumsum([0, *(len(scores) for scores in scored)])
    blocks = iter([means[:, a:b] for a, b in pairwise(starts)])
    return [_with_interval(cell, next(blocks), settings) if cell.runs else cell for cell in cells]


def _with_interval(cell: Cell, means: Floats, settings: ReportSettings) -> Cell:
    draws = statistics.over_seeds(means, settings.seed)
    interval = statistics.percentile_interval(draws, settings.confidence)
    return _with_seed_interval(replace(cell, draws=draws, interval=interval), settings)


def _with_seed_interval(cell: Cell, settings: ReportSettings) -> Cell:
    return replace(cell, seed_interval=statistics.seed_interval(cell.seed_means, settings.confidence))


def _with_agreement(cells: list[Cell]) -> list[Cell]:
    """Per run, the percentage of examples on which it says what the teacher says (normalised text)."""
    teacher = next((cell for cell in cells if cell.method == TEACHER and cell.predictions), None)
    if teacher is None:
        return cells
    normal = lru_cache(maxsize=None)(normalize_answer)
    said = [normal(text) for text in teacher.predictions[0].texts]

    def share(predictions: Predictions) -> float:
        same = [normal(text) == other for text, other in zip(predictions.texts, said, strict=True)]
        return 100 * sum(same) / len(same)

    return [replace(cell, agreement=tuple(share(p) for p in cell.predictions)) for cell in cells]

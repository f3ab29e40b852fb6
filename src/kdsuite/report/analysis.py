"""From loaded runs to the numbers that every table, figure and sentence shares; computed once, in percent.

A *cell* is a method on one task and student: its selected configuration's runs with their scores per example.
A *comparison* subtracts two cells, paired by seed and example. The family that Holm's correction covers is
all comparisons of one task: every method against B0 for every student, and the pairs that the settings add.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kdsuite.errors import DataError
from kdsuite.report import statistics
from kdsuite.report.load import (
    BASELINE,
    COMPLETED,
    FAILED,
    INCOMPLETE,
    NOT_RUN,
    TEACHER,
    ZERO_SHOT,
    Configuration,
    Predictions,
    Record,
    Results,
    Run,
    aligned,
    read_examples,
    read_predictions,
    without,
)
from kdsuite.report.selection import Candidate, Selection, select
from kdsuite.report.settings import ReportSettings
from kdsuite.tasks.metrics import normalize_answer
from kdsuite.tasks.registry import TASKS

Floats = NDArray[np.float64]
Interval = statistics.Interval

BETTER, WORSE, NO_EVIDENCE, TOO_FEW_SEEDS = "better", "worse", "no evidence", "too few seeds"
NOT_INFERIOR = "not inferior"


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Comparison:
    """A − B on one task and student, in points. `verdict` is a word on A, or why there is none."""

    task: str
    student: str | None
    a: str
    b: str
    metric: str
    verdict: str
    seeds: int = 0
    examples: int = 0
    estimate: statistics.Crossed | None = None
    interval: Interval | None = None
    seed_test: statistics.SeedTest | None = None
    p_paired: float | None = None
    p_both: float | None = None
    p_holm: float | None = None
    detectable: float | None = None

    @property
    def name(self) -> str:
        return f"{self.a} vs {self.b}"

    @property
    def difference(self) -> float:
        return self.estimate.mean if self.estimate else math.nan


@dataclass(frozen=True)
class Gap:
    """A method against the teacher: is it not inferior, and how much of the teacher–B0 gap does it close?"""

    comparison: Comparison
    p_not_inferior: float | None = None
    p_holm: float | None = None
    verdict: str = NO_EVIDENCE
    share: float | None = None
    share_interval: Interval | None = None


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
    if name not in TASKS:
        raise DataError(f"task {name!r} of the results is not known here (known: {', '.join(TASKS)})")
    metric, secondary = TASKS[name].metric, TASKS[name].secondary_metric
    examples = read_examples(results.root, name)
    ids = tuple(examples) or _recorded_ids(results, name)
    groups = _groups(ids, examples)
    cells = [_cell(runs, ids, metric, secondary) for runs in _by_method(results.runs, name)]
    cells = _with_agreement(_with_intervals(cells, groups, settings))
    comparisons = _comparisons(cells, groups, name, metric, settings)
    gaps = _gaps(cells, groups, name, metric, settings)
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


# ---------------------------------------------------------------------------------------------------- cells


def _by_method(runs: Sequence[Run], task: str) -> Iterator[list[Run]]:
    """The task's runs per student and method: the teacher's, then each student's, zero-shot first."""
    mine = [run for run in runs if run.configuration.task == task]
    keys = dict.fromkeys((run.configuration.student, run.configuration.method) for run in mine)
    for key in sorted(keys, key=lambda k: (k[1] != TEACHER, k[0] or "", k[1] != ZERO_SHOT)):
        yield [run for run in mine if (run.configuration.student, run.configuration.method) == key]


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
    lost = [run for c in selection.candidates for run in c.runs if run.status != COMPLETED]
    reasons = [f"{run.run_id} {run.status} ({run.reason})" for run in lost]
    return "; ".join(filter(None, [selection.note, *reasons]))


def _with_intervals(cells: list[Cell], groups: NDArray[np.int64], settings: ReportSettings) -> list[Cell]:
    """Bootstrap all runs of a task over the same resampled examples, then each cell over its seeds."""
    scored = [cell.scores for cell in cells if cell.scores is not None]
    if not scored:
        return cells
    sums, sizes = statistics.group_sums(np.concatenate(scored), groups), np.bincount(groups)
    means = statistics.bootstrap_means(sums, sizes, settings.bootstrap_samples, settings.seed)
    starts = np.cumsum([0, *(len(scores) for scores in scored)])
    blocks = iter([means[:, a:b] for a, b in pairwise(starts)])
    return [_with_interval(cell, next(blocks), settings) if cell.runs else cell for cell in cells]


def _with_interval(cell: Cell, means: Floats, settings: ReportSettings) -> Cell:
    draws = statistics.over_seeds(means, settings.seed)
    return replace(
        cell,
        draws=draws,
        interval=statistics.percentile_interval(draws, settings.confidence),
        seed_interval=statistics.seed_interval(cell.seed_means, settings.confidence),
    )


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


# ---------------------------------------------------------------------------------------------- comparisons


def _comparisons(
    cells: list[Cell], groups: NDArray[np.int64], task: str, metric: str, settings: ReportSettings
) -> list[Comparison]:
    """The family of one task, Holm-corrected together."""
    found = {(cell.student, cell.method): cell for cell in cells}
    family = []
    for student in dict.fromkeys(cell.student for cell in cells if cell.student):
        methods = [c.method for c in cells if c.student == student and c.method not in (BASELINE, ZERO_SHOT)]
        for a, b in dict.fromkeys([*((m, BASELINE) for m in methods), *settings.comparisons]):
            comparison = Comparison(task, student, a, b, metric, NOT_RUN)
            family.append(
                _compared(comparison, found.get((student, a)), found.get((student, b)), groups, settings)
            )
    return _corrected(family, settings)


def _compared(
    comparison: Comparison,
    a: Cell | None,
    b: Cell | None,
    groups: NDArray[np.int64],
    settings: ReportSettings,
) -> Comparison:
    """Fill in everything but the correction; a missing side leaves the reason as verdict."""
    for cell in (a, b):
        if cell is None or not cell.runs:
            return replace(comparison, verdict=cell.status if cell else NOT_RUN)
    assert a and b
    differences = paired_differences(a, b)
    if not len(differences):
        return replace(comparison, verdict=INCOMPLETE)
    estimate = statistics.crossed_estimate(differences, groups)
    summed = statistics.group_sums(
        differences.sum(axis=0) / 100, groups
    )  # 0–1, so that right and wrong are integers
    return replace(
        comparison,
        verdict=NO_EVIDENCE if estimate.testable else TOO_FEW_SEEDS,
        seeds=len(differences),
        examples=differences.shape[1],
        estimate=estimate,
        interval=estimate.interval(settings.confidence),
        seed_test=statistics.paired_t_test(differences.mean(axis=1)),
        p_paired=statistics.sign_flip_test(summed, settings.permutations, settings.seed),
        p_both=estimate.p_value(),
    )


def paired_differences(a: Cell, b: Cell) -> Floats:
    """A − B in points, [S, n], over the seeds that both have; a cell that was only evaluated pairs with every
    seed.
    """
    assert a.scores is not None and b.scores is not None
    if (None,) in (a.seeds, b.seeds):
        return a.scores - b.scores
    common = [seed for seed in a.seeds if seed in b.seeds]
    return a.scores[[a.seeds.index(s) for s in common]] - b.scores[[b.seeds.index(s) for s in common]]


def _corrected(family: list[Comparison], settings: ReportSettings) -> list[Comparison]:
    """Holm over the testable comparisons; the detectable difference is that of its first, strictest step."""
    p_values = [c.p_both for c in family if c.p_both is not None]
    corrected, alpha = iter(statistics.holm(p_values)), 1 - settings.confidence
    done = []
    for c in family:
        if c.p_both is None or c.estimate is None:
            done.append(c)
            continue
        p = float(next(corrected))
        word = NO_EVIDENCE if p >= alpha else BETTER if c.difference > 0 else WORSE
        detectable = c.estimate.detectable(alpha / len(p_values), settings.power)
        done.append(replace(c, p_holm=p, verdict=word, detectable=detectable))
    return done


# ---------------------------------------------------------------------------------------------- the teacher


def _gaps(
    cells: list[Cell], groups: NDArray[np.int64], task: str, metric: str, settings: ReportSettings
) -> list[Gap]:
    """Every trained method against the teacher; non-inferiority is Holm-corrected within the task."""
    teacher = next((cell for cell in cells if cell.method == TEACHER), None)
    gaps = []
    for cell in cells:
        if cell.method in (TEACHER, ZERO_SHOT):
            continue
        baseline = next((c for c in cells if (c.method, c.student) == (BASELINE, cell.student)), None)
        comparison = Comparison(task, cell.student, cell.method, TEACHER, metric, NOT_RUN)
        gaps.append(
            _gap(_compared(comparison, cell, teacher, groups, settings), cell, baseline, teacher, settings)
        )
    p_values = [gap.p_not_inferior for gap in gaps if gap.p_not_inferior is not None]
    corrected = iter(statistics.holm(p_values))
    return [
        gap if gap.p_not_inferior is None else _judged(gap, float(next(corrected)), settings) for gap in gaps
    ]


def _gap(
    comparison: Comparison, cell: Cell, baseline: Cell | None, teacher: Cell | None, settings: ReportSettings
) -> Gap:
    gap = Gap(comparison, verdict=comparison.verdict)
    if comparison.estimate is None:
        return gap
    gap = replace(gap, p_not_inferior=comparison.estimate.p_above(-settings.margin))
    if cell.method == BASELINE or not (baseline and baseline.runs and teacher):
        return gap
    assert cell.draws is not None and baseline.draws is not None and teacher.draws is not None
    interval = statistics.gap_closed(cell.draws, baseline.draws, teacher.draws, settings.confidence)
    share = (cell.mean - baseline.mean) / (teacher.mean - baseline.mean) if interval else None
    return replace(gap, share=share, share_interval=interval)


def _judged(gap: Gap, p: float, settings: ReportSettings) -> Gap:
    """One-sided at half the two-sided level, as is usual for non-inferiority."""
    verdict = NOT_INFERIOR if p < (1 - settings.confidence) / 2 else NO_EVIDENCE
    return replace(gap, p_holm=p, verdict=verdict)

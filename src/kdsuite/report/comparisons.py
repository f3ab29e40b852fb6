"""Differences between cells, paired by seed and example, and what may be claimed of them.

The family that Holm's correction covers is all comparisons of one task: every method against B0 for every
student, and the pairs that the settings add. Comparisons with the teacher are a family of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kdsuite.config import TEACHER
from kdsuite.config.report import ReportSettings
from kdsuite.evaluate.selection import INCOMPLETE, NOT_RUN
from kdsuite.report import statistics
from kdsuite.report.cells import Cell
from kdsuite.report.load import BASELINE
from kdsuite.report.statistics import Floats, Interval

BETTER, WORSE, NO_EVIDENCE, TOO_FEW_SEEDS = "better", "worse", "no evidence", "too few seeds"
TOO_FEW_EXAMPLES, NOT_INFERIOR = "too few examples", "not inferior"


@dataclass(frozen=True)
class Comparison:
    """A − B on one task and student, in points. `verdict` is a word on A, or why there is none.

    Against the teacher: is A not inferior, and which `share` of the gap between B0 and the teacher does it close?
    """

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
    p_not_inferior: float | None = None
    share: float | None = None
    share_interval: Interval | None = None

    @property
    def name(self) -> str:
        return f"{self.a} vs {self.b}"

    @property
    def difference(self) -> float:
        return self.estimate.mean if self.estimate else math.nan


@dataclass(frozen=True)
class Context:
    """What all comparisons of a task share: its metric, its examples' groups [n], and the settings."""

    task: str
    metric: str
    groups: NDArray[np.int64]
    settings: ReportSettings


def compare_with_baseline(cells: Sequence[Cell], context: Context) -> list[Comparison]:
    """Every trained method against B0, per student, and the settings' pairs; Holm-corrected together.

    The detectable difference is that of Holm's first, strictest step.
    """
    settings, found, family = context.settings, _by_name(cells), []
    for student in dict.fromkeys(cell.student for cell in cells if cell.student):
        methods = [c.method for c in cells if c.student == student and c.trained and c.method != BASELINE]
        for a, b in dict.fromkeys([*((m, BASELINE) for m in methods), *settings.comparisons]):
            family.append(_compared(a, b, student, found.get((student, a)), found.get((student, b)), context))
    tests, alpha = sum(c.p_both is not None for c in family), 1 - settings.confidence
    for index, (c, p) in enumerate(zip(family, _corrected([c.p_both for c in family]), strict=True)):
        if p is not None and c.estimate is not None:
            word = NO_EVIDENCE if p >= alpha else BETTER if c.difference > 0 else WORSE
            detectable = c.estimate.detectable(alpha / tests, settings.power)
            family[index] = replace(c, p_holm=p, verdict=word, detectable=detectable)
    return family


def compare_with_teacher(cells: Sequence[Cell], context: Context) -> list[Comparison]:
    """Every trained method against the teacher; non-inferiority is Holm-corrected within the task."""
    settings, found = context.settings, _by_name(cells)
    teacher = found.get((None, TEACHER))
    gaps = [_gap(cell, teacher, found.get((cell.student, BASELINE)), context) for cell in cells if cell.trained]
    level = (1 - settings.confidence) / 2  # one-sided, as is usual for non-inferiority
    for index, (c, p) in enumerate(zip(gaps, _corrected([c.p_not_inferior for c in gaps]), strict=True)):
        if p is not None:
            gaps[index] = replace(c, p_holm=p, verdict=NOT_INFERIOR if p < level else NO_EVIDENCE)
    return gaps


def _corrected(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm-corrected together, those that there are."""
    corrected = iter(statistics.holm([p for p in p_values if p is not None]))
    return [None if p is None else float(next(corrected)) for p in p_values]


def _by_name(cells: Sequence[Cell]) -> dict[tuple[str | None, str], Cell]:
    return {(cell.student, cell.method): cell for cell in cells}


def paired_differences(a: Cell, b: Cell) -> Floats:
    """A − B in points, [S, n], over the seeds of both; what was only evaluated pairs with every seed."""
    assert a.scores is not None and b.scores is not None
    if (None,) in (a.seeds, b.seeds):
        return a.scores - b.scores
    common = [seed for seed in a.seeds if seed in b.seeds]
    return a.scores[[a.seeds.index(s) for s in common]] - b.scores[[b.seeds.index(s) for s in common]]


def _compared(
    one: str, other: str, student: str | None, a: Cell | None, b: Cell | None, context: Context
) -> Comparison:
    """All but the correction; where there is nothing to compare, the verdict says why."""
    comparison = Comparison(context.task, student, one, other, context.metric, NOT_RUN)
    if a is None or b is None:
        return comparison
    if not a.runs or not b.runs:
        return replace(comparison, verdict=b.status if a.runs else a.status)
    differences, groups, settings = paired_differences(a, b), context.groups, context.settings
    if not len(differences):
        return replace(comparison, verdict=INCOMPLETE)
    if groups.max() == 0:
        return replace(comparison, verdict=TOO_FEW_EXAMPLES)
    estimate = statistics.crossed_estimate(differences, groups)
    wins = statistics.group_sums(differences.sum(axis=0) / 100, groups)  # right and wrong as integers
    return replace(
        comparison,
        verdict=NO_EVIDENCE if estimate.testable else TOO_FEW_SEEDS,
        seeds=len(differences),
        examples=differences.shape[1],
        estimate=estimate,
        interval=estimate.interval(settings.confidence),
        seed_test=statistics.paired_t_test(differences.mean(axis=1)),
        p_paired=statistics.sign_flip_test(wins, settings.permutations, settings.seed),
        p_both=estimate.p_value(),
    )


def _gap(cell: Cell, teacher: Cell | None, baseline: Cell | None, context: Context) -> Comparison:
    c, settings = _compared(cell.method, TEACHER, cell.student, cell, teacher, context), context.settings
    if c.estimate is None:
        return c
    c = replace(c, p_not_inferior=c.estimate.p_above(-settings.margin))
    if cell.method == BASELINE or baseline is None or teacher is None or baseline.draws is None:
        return c
    assert cell.draws is not None and teacher.draws is not None
    interval = statistics.gap_closed(cell.draws, baseline.draws, teacher.draws, settings.confidence)
    share = (cell.mean - baseline.mean) / (teacher.mean - baseline.mean) if interval else None
    return replace(c, share=share, share_interval=interval)

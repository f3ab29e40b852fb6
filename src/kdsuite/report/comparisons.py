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

from kdsuite.config.report import ReportSettings
from kdsuite.evaluate.selection import INCOMPLETE, NOT_RUN
from kdsuite.report import statistics
from kdsuite.report.cells import Cell
from kdsuite.report.load import BASELINE, TEACHER, ZERO_SHOT
from kdsuite.report.statistics import Floats, Interval

BETTER, WORSE, NO_EVIDENCE, TOO_FEW_SEEDS = "better", "worse", "no evidence", "too few seeds"
TOO_FEW_EXAMPLES = "too few examples"
NOT_INFERIOR = "not inferior"


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
class Context:
    """What all comparisons of a task share: its metric, its examples' groups [n], and the settings."""

    task: str
    metric: str
    groups: NDArray[np.int64]
    settings: ReportSettings


def compare_with_baseline(cells: Sequence[Cell], context: Context) -> list[Comparison]:
    """Every trained method against B0, per student, and the settings' pairs; Holm-corrected together."""
    found = {(cell.student, cell.method): cell for cell in cells}
    family = []
    for student in dict.fromkeys(cell.student for cell in cells if cell.student):
        methods = [c.method for c in cells if c.student == student and c.method not in (BASELINE, ZERO_SHOT)]
        for a, b in dict.fromkeys([*((m, BASELINE) for m in methods), *context.settings.comparisons]):
            comparison = Comparison(context.task, student, a, b, context.metric, NOT_RUN)
            family.append(_compared(comparison, found.get((student, a)), found.get((student, b)), context))
    return _corrected(family, context.settings)


def paired_differences(a: Cell, b: Cell) -> Floats:
    """A − B in points, [S, n], over the seeds of both; what was only evaluated pairs with every seed."""
    assert a.scores is not None
    assert b.scores is not None
    if (None,) in (a.seeds, b.seeds):
        return a.scores - b.scores
    common = [seed for seed in a.seeds if seed in b.seeds]
    return a.scores[[a.seeds.index(s) for s in common]] - b.scores[[b.seeds.index(s) for s in common]]


def _compared(comparison: Comparison, a: Cell | None, b: Cell | None, context: Context) -> Comparison:
    """Fill in everything but the correction; where there is nothing to compare, the verdict says why."""
    if a is None or b is None:
        return comparison
    if not a.runs or not b.runs:
        return replace(comparison, verdict=b.status if a.runs else a.status)
    differences = paired_differences(a, b)
    if not len(differences):
        return replace(comparison, verdict=INCOMPLETE)
    if context.groups.max() == 0:
        return replace(comparison, verdict=TOO_FEW_EXAMPLES)
    return _tested(comparison, differences, context)


def _tested(comparison: Comparison, differences: Floats, context: Context) -> Comparison:
    settings, estimate = context.settings, statistics.crossed_estimate(differences, context.groups)
    summed = statistics.group_sums(
        differences.sum(axis=0) / 100, context.groups
    )  # right and wrong as integers
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


def compare_with_teacher(cells: Sequence[Cell], context: Context) -> list[Gap]:
    """Every trained method against the teacher; non-inferiority is Holm-corrected within the task."""
    found = {(cell.student, cell.method): cell for cell in cells}
    teacher = found.get((None, TEACHER))
    gaps = []
    for cell in cells:
        if cell.method in (TEACHER, ZERO_SHOT):
            continue
        comparison = Comparison(context.task, cell.student, cell.method, TEACHER, context.metric, NOT_RUN)
        comparison = _compared(comparison, cell, teacher, context)
        gaps.append(_gap(comparison, cell, found.get((cell.student, BASELINE)), teacher, context.settings))
    p_values = [gap.p_not_inferior for gap in gaps if gap.p_not_inferior is not None]
    corrected = iter(statistics.holm(p_values))
    level = (1 - context.settings.confidence) / 2  # one-sided, as is usual for non-inferiority
    return [
        gap if gap.p_not_inferior is None else _judged(gap, float(next(corrected)), level) for gap in gaps
    ]


def _gap(
    comparison: Comparison, cell: Cell, baseline: Cell | None, teacher: Cell | None, settings: ReportSettings
) -> Gap:
    gap = Gap(comparison, verdict=comparison.verdict)
    if comparison.estimate is None:
        return gap
    gap = replace(gap, p_not_inferior=comparison.estimate.p_above(-settings.margin))
    if cell.method == BASELINE or baseline is None or teacher is None or baseline.draws is None:
        return gap
    assert cell.draws is not None
    assert teacher.draws is not None
    interval = statistics.gap_closed(cell.draws, baseline.draws, teacher.draws, settings.confidence)
    share = (cell.mean - baseline.mean) / (teacher.mean - baseline.mean) if interval else None
    return replace(gap, share=share, share_interval=interval)


def _judged(gap: Gap, p: float, level: float) -> Gap:
    return replace(gap, p_holm=p, verdict=NOT_INFERIOR if p < level else NO_EVIDENCE)

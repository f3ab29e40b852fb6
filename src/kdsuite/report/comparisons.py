"""Differences between cells, paired by seed and example, and what may be claimed of them.

The family that Holm's correction covers is all comparisons of one task: every method against B0 for every
student, and the pairs that the settings add. Comparisons with the teacher are a family of their own.
An interval is corrected, too: it has the level at which Holm's procedure judged its comparison, so that a verdict
stands exactly where it leaves out 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import root_scalar

from kdsuite.config import TEACHER
from kdsuite.config.report import ReportSettings, pairs_of
from kdsuite.evaluate.crossed import Crossed, Floats, Interval, crossed, group_sums, possible
from kdsuite.evaluate.selection import NOT_RUN
from kdsuite.report import statistics
from kdsuite.report.load import BASELINE

if TYPE_CHECKING:
    from kdsuite.report.analysis import Cell, TaskAnalysis

BETTER, WORSE, NO_EVIDENCE, TOO_FEW_SEEDS = "better", "worse", "no evidence", "too few seeds"
TOO_FEW_EXAMPLES, NO_COMMON_SEED, NOT_INFERIOR = "too few examples", "no seed in common", "not inferior"
MORE_SEEDS = (5, 10, 20)  # with so many it is said what could be seen


@dataclass(frozen=True)
class Comparison:
    """A − B on one task and student, in points. `verdict` is a word on A, or why there is none.

    `plain` is the interval at the report's confidence, `interval` the corrected one. `detectable` is the gain that such
    a study finds with the report's power, `with_more` the same with more seeds that spread as these do (None where they
    would not be more), and `seeds_needed` how many seeds find one as large as the difference.
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
    estimate: Crossed | None = None
    plain: Interval | None = None
    interval: Interval | None = None
    seed_test: statistics.SeedTest | None = None
    p_paired: float | None = None
    p_both: float | None = None
    p_holm: float | None = None
    detectable: float | None = None
    with_more: Mapping[int, float | None] = field(default_factory=dict)
    seeds_needed: int | None = None
    p_not_inferior: float | None = None
    share: float | None = None
    share_interval: Interval | None = None

    @property
    def name(self) -> str:
        return f"{self.a} vs {self.b}"

    @property
    def difference(self) -> float:
        return self.estimate.mean if self.estimate else math.nan


def compare_with_baseline(task: TaskAnalysis) -> list[Comparison]:
    """Every trained method against B0, per student, and the settings' pairs; Holm-corrected together.

    What could have been seen is said for Holm's first, strictest step.
    """
    settings, family = task.settings, []
    for student in task.students:
        methods = [c.method for c in task.cells if c.student == student and c.trained]
        family += [compared(task, student, *pair) for pair in pairs_of(methods, settings.comparisons)]
    family = corrected(family, settings)
    strictest = (1 - settings.confidence) / max(1, sum(c.p_holm is not None for c in family))
    for index, c in enumerate(family):
        if c.p_holm is None or c.estimate is None:
            continue
        estimate, asked = c.estimate, (strictest, settings.power)
        family[index] = replace(
            c,
            detectable=estimate.detectable(*asked),
            with_more={n: estimate.detectable(*asked, n, known=True) if n > c.seeds else None for n in MORE_SEEDS},
            seeds_needed=estimate.seeds_for(abs(c.difference), *asked, known=True),
        )
    return family


def compare_with_teacher(task: TaskAnalysis) -> list[Comparison]:
    """Every trained method against the teacher; non-inferiority is Holm-corrected within the task."""
    return corrected([_gap(task, cell) for cell in task.cells if cell.trained], task.settings, sides=1)


def corrected(family: Sequence[Comparison], settings: ReportSettings, sides: int = 2) -> list[Comparison]:
    """Comparisons with their verdicts, Holm-corrected together; those without a test are left as they are.

    Of non-inferiority, which has one side, at half the level, as is usual.
    """
    alpha, judged = (1 - settings.confidence) * sides / 2, list(family)
    p_values = [c.p_both if sides == 2 else c.p_not_inferior for c in family]
    for index, (c, step) in enumerate(zip(family, holm(p_values, alpha), strict=True)):
        if step is not None and c.estimate is not None:
            claim = NOT_INFERIOR if sides == 1 else BETTER if c.difference > 0 else WORSE
            verdict = claim if step.p < alpha else NO_EVIDENCE
            interval = possible(c.estimate.interval(2 * step.level / sides))
            judged[index] = replace(c, p_holm=step.p, verdict=verdict, interval=interval)
    return judged


@dataclass(frozen=True)
class Step:
    """A comparison in Holm's procedure: its corrected p, and the level at which it was judged."""

    p: float
    level: float


def holm(p_values: Sequence[float | None], alpha: float) -> list[Step | None]:
    """Family-wise correction of those p-values that there are (Holm 1979, Scand. J. Statistics 6), however dependent.

    In the order of p the levels are α/m, α/(m−1), …; from the first that is not below its level on, all are judged at
    that one.
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    steps: list[Step | None] = [None] * len(p_values)
    corrected, level = 0.0, 0.0
    for rank, (p, index) in enumerate(order):
        left = len(order) - rank
        if corrected < alpha:
            level = alpha / left
        corrected = min(1.0, max(corrected, p * left))
        steps[index] = Step(corrected, level)
    return steps


def paired_differences(a: Cell, b: Cell) -> Floats:
    """A − B in points, [S, n], over the seeds of both; what was only evaluated pairs with every seed."""
    assert a.scores is not None and b.scores is not None
    if (None,) in (a.seeds, b.seeds):
        return a.scores - b.scores
    common = [seed for seed in a.seeds if seed in b.seeds]
    return a.scores[[a.seeds.index(s) for s in common]] - b.scores[[b.seeds.index(s) for s in common]]


def compared(task: TaskAnalysis, student: str | None, one: str, other: str) -> Comparison:
    """All but the correction; where there is nothing to compare, the verdict says why."""
    comparison = Comparison(task.name, student, one, other, task.metric, NOT_RUN)
    a, b = task.cell(one, student), task.cell(other, None if other == TEACHER else student)
    if a is None or b is None:
        return comparison
    if not a.runs or not b.runs:
        return replace(comparison, verdict=b.status if a.runs else a.status)
    return tested(comparison, paired_differences(a, b), task)


def tested(comparison: Comparison, differences: Floats, task: TaskAnalysis) -> Comparison:
    """A comparison with the tests of its differences [S, n] in points, paired by seed and example."""
    groups, settings = task.groups, task.settings
    if not len(differences):
        return replace(comparison, verdict=NO_COMMON_SEED)
    if groups.max() == 0:
        return replace(comparison, verdict=TOO_FEW_EXAMPLES)
    estimate = crossed(differences, groups)
    wins = group_sums(differences.sum(axis=0) / 100, groups)  # right and wrong as integers
    return replace(
        comparison,
        verdict=NO_EVIDENCE if estimate.testable else TOO_FEW_SEEDS,
        seeds=len(differences),
        examples=differences.shape[1],
        estimate=estimate,
        plain=possible(estimate.interval(1 - settings.confidence)),
        seed_test=statistics.paired_t_test(differences.mean(axis=1)),
        p_paired=statistics.sign_flip_test(wins, settings.permutations, settings.seed),
        p_both=estimate.p_value(),
    )


def _gap(task: TaskAnalysis, cell: Cell) -> Comparison:
    c, settings = compared(task, cell.student, cell.method, TEACHER), task.settings
    if c.estimate is None:
        return c
    c = replace(c, p_not_inferior=c.estimate.p_above(-settings.margin))
    teacher, baseline = task.cell(TEACHER), task.cell(BASELINE, cell.student)
    if cell.method == BASELINE or baseline is None or teacher is None or not baseline.runs:
        return c
    gain, gap = paired_differences(cell, baseline), paired_differences(teacher, baseline)
    gap = gap[[baseline.seeds.index(seed) for seed in cell.seeds if seed in baseline.seeds]]
    interval = share_closed(gain, gap, task.groups, 1 - settings.confidence)
    share = float(gain.mean() / gap.mean()) if interval else None
    return replace(c, share=share, share_interval=interval)


def share_closed(gain: Floats, gap: Floats, groups: NDArray[np.int64], level: float) -> Interval | None:
    """The shares of a gap [S, n] that a gain [S, n] may be: those r for which gain − r·gap may be 0 on average.

    Fieller 1954, J. Royal Statistical Society B 16. None where the gap is not clearly positive or the seeds are too
    few: the ratio means nothing then.
    """
    whole = crossed(gap, groups).interval(level) if len(gap) else None
    if whole is None or whole[0] <= 0:
        return None

    def beyond(share: float) -> float:
        """Positive where a share is rejected."""
        low, high = crossed(gain - share * gap, groups).interval(level) or (0.0, 0.0)
        return max(low, -high)

    share, bounds = float(gain.mean() / gap.mean()), []
    for side in (-1, 1):
        step = 0.1
        while beyond(share + side * step) < 0:
            step *= 2
        bounds.append(root_scalar(beyond, bracket=sorted((share, share + side * step)), xtol=1e-4).root)
    return bounds[0], bounds[1]

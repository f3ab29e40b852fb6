"""Where a comparison is doubtful itself, whatever its verdict says; `templates/sentences.j2` words what is found.

Each doubt is a record: its `kind`, the `student` it is about, and its numbers (percent, points).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

from kdsuite.config import TEACHER, ZERO_SHOT
from kdsuite.evaluate.crossed import POINTS, Crossed, Interval, crossed
from kdsuite.evaluate.selection import Record
from kdsuite.report.cells import Cell
from kdsuite.report.comparisons import Comparison, Context, paired_differences
from kdsuite.report.load import BASELINE

FALLEN = 5.0  # points below the median of a method's seeds


def doubts(
    cells: Sequence[Cell],
    comparisons: Sequence[Comparison],
    gaps: Sequence[Comparison],
    earlier: Mapping[str, Sequence[Record]],
    context: Context,
) -> list[Record]:
    """Those of one task, student by student; `gaps` are the comparisons with the teacher, `earlier` former looks."""
    found: list[Record | None] = []
    several = bool(context.groups.any())  # groups: indices from 0 on
    for student in dict.fromkeys(cell.student for cell in cells if cell.student):
        mine = {cell.method: cell for cell in cells if cell.student == student and cell.runs}
        gains = [abs(c.difference) for c in comparisons if (c.student, c.b) == (student, BASELINE) and c.estimate]
        trained = [cell for cell in mine.values() if cell.trained]
        about = [
            _untrained(mine, context) if several and {BASELINE, ZERO_SHOT} <= mine.keys() else None,
            *(
                _teacher(gap, cells, mine[BASELINE], context)
                for gap in gaps
                if gap.estimate and (gap.student, gap.a) == (student, BASELINE)
            ),
            _spread(trained, max(gains)) if gains else None,
            _fallen(trained),
            _tuning(trained),
            _apart(trained, context) if several and trained else None,
            _looks(earlier.get(student, ()), look(student, cells, comparisons), context),
        ]
        found += [record and record | {"student": student} for record in about]
    return [record for record in found if record]


def _untrained(mine: dict[str, Cell], context: Context) -> Record | None:
    """B0 is not shown to be better than the student as it came."""
    baseline, untrained = mine[BASELINE], mine[ZERO_SHOT]
    estimate = crossed(paired_differences(baseline, untrained), context.groups)
    interval = _interval(estimate, context)
    scores = {"score": baseline.mean, "untrained": untrained.mean, "difference": estimate.mean, "interval": interval}
    scores |= _cleaned(baseline, untrained)
    return {"kind": "untrained", **scores} if interval[0] <= 0 else None


def _teacher(gap: Comparison, cells: Sequence[Cell], baseline: Cell, context: Context) -> Record | None:
    """The teacher is not shown to be better than B0; `gap` is B0's."""
    assert gap.estimate is not None
    low, high = gap.interval or _interval(gap.estimate, context)
    numbers = {"difference": -gap.difference, "interval": (-high, -low), "seeds": gap.seeds}
    teacher = next(cell for cell in cells if cell.method == TEACHER)
    return {"kind": "teacher", **numbers, **_cleaned(teacher, baseline)} if high >= 0 else None


def _cleaned(one: Cell, other: Cell) -> Record:
    """Both scores, had answers been cleaned before they were scored; NaN where they are labels."""
    return {"cleaned": one.cleaned_mean, "cleaned_other": other.cleaned_mean}


def _interval(estimate: Crossed, context: Context) -> Interval:
    """Of a difference; with too few seeds for that, over examples for these runs."""
    level = 1 - context.settings.confidence
    low, high = estimate.interval(level) or estimate.interval_of_these(level)
    return max(low, -POINTS), min(high, POINTS)


def _spread(trained: Sequence[Cell], gain: float) -> Record | None:
    """One method's seeds differ by more than any two methods; `gain` is the largest difference to B0."""
    widest = max((cell for cell in trained if len(cell.runs) > 1), key=lambda cell: cell.std, default=None)
    if widest is None or widest.std <= gain:
        return None
    return {"kind": "spread", "method": widest.method, "sd": widest.std, "seeds": widest.seed_means, "gain": gain}


def _fallen(trained: Sequence[Cell]) -> Record | None:
    """Seeds far below the others of their method: luck that is not about normal, as the test over seeds assumes."""
    fallen = [
        {"method": cell.method, "seed": run.seed, "score": score, "below": float(np.median(cell.seed_means)) - score}
        for cell in trained
        for run, score in zip(cell.runs, cell.seed_means.tolist(), strict=True)
    ]
    far = [record for record in fallen if record["below"] > FALLEN]
    return {"kind": "fallen", "runs": far} if far else None


def _tuning(trained: Sequence[Cell]) -> Record | None:
    """One method had more hyper-parameters to choose from than another: {points: methods}, most first.

    A single seed has no `others` that choose for it.
    """
    points = sorted({cell.points for cell in trained}, reverse=True)
    by = {count: [cell.method for cell in trained if cell.points == count] for count in points}
    others = all(len(cell.runs) > 1 for cell in trained if cell.points > 1)
    return {"kind": "tuning", "points": by, "others": others} if len(by) > 1 else None


def _apart(trained: Sequence[Cell], context: Context) -> Record | None:
    """The runs that are reported score otherwise on dev, where they were chosen.

    Examples of dev are taken to vary as the reported ones do, for these runs.
    """
    runs = [run for cell in trained for run in cell.runs]
    dev, count = (np.array([run.metric("dev", name) for run in runs]) for name in (context.metric, "n"))
    scores = np.concatenate([cell.scores for cell in trained if cell.scores is not None]).mean(axis=0)
    estimate = crossed(scores, context.groups)
    error = np.sqrt(estimate.of_examples * (1 + scores.size / count.min()))
    chance = error * float(stdtrit(estimate.groups - 1, (1 + context.settings.confidence) / 2))
    if not abs(dev.mean() - estimate.mean) > chance:  # nor if dev scores or their number are not recorded: NaN
        return None
    sizes = {"dev_examples": int(count.min()), "examples": scores.size}
    return {"kind": "apart", "dev": dev.mean(), "reported": estimate.mean, "chance": chance, **sizes}


def look(student: str, cells: Sequence[Cell], comparisons: Sequence[Comparison]) -> Record | None:
    """What is seen by who reads the verdicts on a student: over how many `seeds`, and which `runs` of B0 (fingerprints)
    they rest on; None where there is no verdict.
    """
    tested = [c for c in comparisons if (c.student, c.b) == (student, BASELINE) and c.p_holm is not None]
    if not tested:
        return None
    mine = {cell.method: cell for cell in cells if cell.student == student}
    seeds = {seed for c in tested for seed in mine[c.a].seeds} & {*mine[BASELINE].seeds}
    points = mine[BASELINE].selection.candidates  # all of them: with more seeds, others may be chosen
    runs = {run.record.get("fingerprint") or run.run_id for p in points for run in p.completed if run.seed in seeds}
    return {"seeds": max(c.seeds for c in tested), "runs": sorted(runs)}


def _looks(earlier: Sequence[Record], now: Record | None, context: Context) -> Record | None:
    """Verdicts were given before, on runs that are among the present ones: on this study with fewer seeds."""
    former = [before["seeds"] for before in earlier if now and {*before["runs"]} < {*now["runs"]}]
    if not former or now is None:
        return None
    return {"kind": "looks", "seeds": [*sorted(former), now["seeds"]], "level": 1 - context.settings.confidence}

"""Where a comparison is doubtful itself, whatever its verdict says; `templates/sentences.j2` words what is found.

Each doubt is a record: its `kind`, the `student` it is about, and its numbers (percent, points).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit

from kdsuite.config import TEACHER, ZERO_SHOT
from kdsuite.evaluate.crossed import crossed
from kdsuite.evaluate.selection import Record
from kdsuite.report.comparisons import Comparison, paired_differences
from kdsuite.report.load import BASELINE

if TYPE_CHECKING:
    from kdsuite.report.analysis import Cell, TaskAnalysis

FALLEN = 5.0  # points below the median of a method's seeds


def doubts(task: TaskAnalysis, earlier: Mapping[str, Sequence[Record]]) -> list[Record]:
    """Those of a task, student by student; `earlier` are former looks."""
    found: list[Record] = []
    several = bool(task.groups.any())  # groups: indices from 0 on
    for student in task.students:
        mine = {cell.method: cell for cell in task.cells if cell.student == student and cell.runs}
        tested = [c for c in task.comparisons if (c.student, c.b) == (student, BASELINE) and c.estimate]
        trained = [cell for cell in mine.values() if cell.trained]
        about = [
            _untrained(task, mine[BASELINE], mine[ZERO_SHOT])
            if several and {BASELINE, ZERO_SHOT} <= mine.keys()
            else None,
            *(_teacher(task, gap) for gap in task.gaps if (gap.student, gap.a) == (student, BASELINE)),
            _spread(trained, max(abs(c.difference) for c in tested)) if tested else None,
            _fallen(trained),
            _tuning(trained),
            _unlabeled(task, trained),
            _apart(task, trained) if several and trained else None,
            _looks(task, earlier.get(student, ()), look(task, student)),
        ]
        found += [record | {"student": student} for record in about if record]
    return found


def _untrained(task: TaskAnalysis, baseline: Cell, untrained: Cell) -> Record | None:
    """B0 is not shown to be better than the student as it came."""
    estimate = crossed(paired_differences(baseline, untrained), task.groups)
    interval = estimate.interval_at_hand(1 - task.settings.confidence)
    scores = {"score": baseline.mean, "untrained": untrained.mean, "difference": estimate.mean, "interval": interval}
    return {"kind": "untrained", **scores, **_cleaned(baseline, untrained)} if interval[0] <= 0 else None


def _teacher(task: TaskAnalysis, gap: Comparison) -> Record | None:
    """The teacher is not shown to be better than B0; `gap` is B0's."""
    teacher, baseline = task.cell(TEACHER), task.cell(BASELINE, gap.student)
    if gap.estimate is None or teacher is None or baseline is None:
        return None
    low, high = gap.interval or gap.estimate.interval_at_hand(1 - task.settings.confidence)
    numbers = {"difference": -gap.difference, "interval": (-high, -low), "seeds": gap.seeds}
    return {"kind": "teacher", **numbers, **_cleaned(teacher, baseline)} if high >= 0 else None


def _cleaned(one: Cell, other: Cell) -> Record:
    """Both scores, had answers been cleaned before they were scored; NaN where they are labels."""
    return {"cleaned": one.cleaned_mean, "cleaned_other": other.cleaned_mean}


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


def _unlabeled(task: TaskAnalysis, trained: Sequence[Cell]) -> Record | None:
    """Some methods learned from the teacher on inputs without targets, too, which others cannot."""
    if not (given := task.about.get("unlabeled")):
        return None
    some = [cell.method for cell in trained if cell.method in given["methods"]]
    others = [cell.method for cell in trained if cell.method not in some]
    return (
        {"kind": "unlabeled", "count": given["inputs"], "methods": some, "others": others} if some and others else None
    )


def _apart(task: TaskAnalysis, trained: Sequence[Cell]) -> Record | None:
    """The runs that are reported score otherwise on dev, where they were chosen.

    Examples of dev are taken to vary as the reported ones do, for these runs.
    """
    runs = [run for cell in trained for run in cell.runs]
    dev, count = (np.array([run.metric("dev", name) for run in runs]) for name in (task.metric, "n"))
    scores = np.concatenate([cell.scores for cell in trained if cell.scores is not None]).mean(axis=0)
    estimate = crossed(scores, task.groups)
    error = np.sqrt(estimate.of_examples * (1 + scores.size / count.min()))
    chance = error * float(stdtrit(estimate.groups - 1, (1 + task.settings.confidence) / 2))
    if not abs(dev.mean() - estimate.mean) > chance:  # nor if dev scores or their number are not recorded: NaN
        return None
    sizes = {"dev_examples": int(count.min()), "examples": scores.size}
    return {"kind": "apart", "dev": dev.mean(), "reported": estimate.mean, "chance": chance, **sizes}


def look(task: TaskAnalysis, student: str) -> Record | None:
    """What is seen by who reads the verdicts on a student: over how many `seeds`, and which `runs` of B0 (fingerprints)
    they rest on; None where there is no verdict.
    """
    tested = [c for c in task.comparisons if (c.student, c.b) == (student, BASELINE) and c.p_holm is not None]
    if not tested:
        return None
    mine = {cell.method: cell for cell in task.cells if cell.student == student}
    seeds = {seed for c in tested for seed in mine[c.a].seeds} & {*mine[BASELINE].seeds}
    points = mine[BASELINE].selection.candidates  # all of them: with more seeds, others may be chosen
    runs = {run.record.get("fingerprint") or run.run_id for p in points for run in p.completed if run.seed in seeds}
    return {"seeds": max(c.seeds for c in tested), "runs": sorted(runs)}


def _looks(task: TaskAnalysis, earlier: Sequence[Record], now: Record | None) -> Record | None:
    """Verdicts were given before, on runs that are among the present ones: on this study with fewer seeds."""
    former = [before["seeds"] for before in earlier if now and {*before["runs"]} < {*now["runs"]}]
    if not former or now is None:
        return None
    return {"kind": "looks", "seeds": [*sorted(former), now["seeds"]], "level": 1 - task.settings.confidence}

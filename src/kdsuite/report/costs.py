"""What training cost: every run's own time, and the teacher's, apart and as a share of the runs it taught.

The teacher's fine-tuning and its cached outputs are paid once and serve all distillation runs of a task; the
share is their time divided by the number of completed runs that used it. B0 needs no teacher and bears none.
Sums over a table count the teacher's rows or the shares, never both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kdsuite.evaluate.selection import COMPLETED, Run, finite
from kdsuite.report.analysis import Analysis, TaskAnalysis
from kdsuite.report.load import TEACHER, ZERO_SHOT

FINE_TUNING, OUTPUTS = "teacher fine-tuning", "teacher outputs"
HOUR = 3600.0  # seconds


@dataclass(frozen=True)
class Cost:
    """Seconds of one run, or of one of the teacher's; NaN where they were not recorded."""

    task: str
    student: str
    method: str
    run: Run | None
    train_seconds: float
    evaluate_seconds: float = 0.0
    teacher_seconds: float = 0.0

    @property
    def own_seconds(self) -> float:
        return self.train_seconds + self.evaluate_seconds

    @property
    def seconds(self) -> float:
        """With the share of the teacher."""
        return self.own_seconds + self.teacher_seconds

    def timing(self, name: str) -> float:
        """A recorded figure, e.g. `examples_per_second`; NaN without one."""
        return finite(((self.run.record.get("timing") or {}) if self.run else {}).get(name))


def costs_of(analysis: Analysis, task: TaskAnalysis) -> list[Cost]:
    """The teacher's costs, then those of every completed training run, in the order of the plan."""
    runs = [r for r in analysis.runs if r.configuration.task == task.name and r.status == COMPLETED]
    taught = [run for run in runs if run.record.get("teacher")]
    teacher = _teacher(task.name, runs, taught)
    share = sum(cost.train_seconds for cost in teacher) / len(taught) if taught else 0.0
    return [
        *teacher,
        *(_cost(run, share) for run in runs if run.configuration.method not in (TEACHER, ZERO_SHOT)),
    ]


def _teacher(task: str, runs: Sequence[Run], taught: Sequence[Run]) -> list[Cost]:
    costs = [
        Cost(task, "", FINE_TUNING, run, _seconds(run, "train_seconds"))
        for run in runs
        if run.configuration.method == TEACHER and _seconds(run, "train_seconds") > 0
    ]
    spent = [finite(run.record["teacher"].get("seconds")) for run in taught]
    return costs + ([Cost(task, "", OUTPUTS, None, _largest(spent))] if spent else [])


def _largest(values: Sequence[float]) -> float:
    """The latest count: it only grows."""
    return max((value for value in values if not math.isnan(value)), default=math.nan)


def _cost(run: Run, share: float) -> Cost:
    configuration = run.configuration
    return Cost(
        configuration.task,
        configuration.student or "",
        configuration.method,
        run,
        _seconds(run, "train_seconds"),
        _seconds(run, "evaluate_seconds"),
        share if run.record.get("teacher") else 0.0,
    )


def _seconds(run: Run, name: str) -> float:
    return finite((run.record.get("timing") or {}).get(name))


def by_method(costs: Iterable[Cost]) -> list[list[Cost]]:
    """The costs of one student and method together."""
    groups: dict[tuple[str, str], list[Cost]] = {}
    for cost in costs:
        groups.setdefault((cost.student, cost.method), []).append(cost)
    return list(groups.values())


def mean(costs: Sequence[Cost], value: Callable[[Cost], float]) -> float:
    return float(np.mean([value(cost) for cost in costs]))


def money(seconds: float, cost_per_hour: float | None) -> float:
    """In the currency of the rate; NaN without one."""
    return math.nan if cost_per_hour is None else seconds / HOUR * cost_per_hour

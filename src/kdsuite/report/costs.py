"""What training cost: every run's own time, and the teacher's, apart and as a share of the runs it taught.

The teacher's fine-tuning and its cached outputs are paid once and serve all distillation runs of a task; the
share is their time divided by the number of completed runs that used it. B0 needs no teacher and bears none.
Sums over a table count the teacher's rows or the shares, never both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdsuite.config import TEACHER, ZERO_SHOT
from kdsuite.evaluate.selection import COMPLETED, Run, finite
from kdsuite.report.analysis import Analysis, TaskAnalysis

FINE_TUNING, OUTPUTS = "teacher fine-tuning", "teacher outputs"


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
        return _timing(self.run, name) if self.run else math.nan


def costs_of(analysis: Analysis, task: TaskAnalysis) -> list[Cost]:
    """The teacher's costs, then those of every completed training run, in the order of the plan."""
    runs = [r for r in analysis.runs if r.configuration.task == task.name and r.status == COMPLETED]
    teacher = [
        Cost(task.name, "", FINE_TUNING, run, _timing(run, "train_seconds"))
        for run in runs
        if run.configuration.method == TEACHER and _timing(run, "train_seconds") > 0
    ]
    taught = [run for run in runs if run.record.get("teacher")]
    if taught:  # the latest count counts: it only grows
        spent = [finite(run.record["teacher"].get("seconds")) for run in taught]
        latest = max((value for value in spent if not math.isnan(value)), default=math.nan)
        teacher.append(Cost(task.name, "", OUTPUTS, None, latest))
    share = sum(cost.train_seconds for cost in teacher) / len(taught) if taught else 0.0
    return teacher + [
        Cost(
            task.name,
            run.configuration.student or "",
            run.configuration.method,
            run,
            _timing(run, "train_seconds"),
            _timing(run, "evaluate_seconds"),
            share if run.record.get("teacher") else 0.0,
        )
        for run in runs
        if run.configuration.method not in (TEACHER, ZERO_SHOT)
    ]


def _timing(run: Run, name: str) -> float:
    return finite((run.record.get("timing") or {}).get(name))

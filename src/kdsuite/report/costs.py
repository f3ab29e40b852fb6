"""What training cost: every run's own time, and the teacher's, apart and as a share of the runs it taught.

The teacher's fine-tuning and its cached outputs are paid once and serve all distillation runs of a task; the
share is their time divided by the number of completed runs that used it. B0 needs no teacher and bears none.
Sums over a table count the teacher's rows or the shares, never both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kdsuite.config import TEACHER, ZERO_SHOT
from kdsuite.evaluate.selection import COMPLETED, Record, Run, finite
from kdsuite.report.analysis import Analysis, TaskAnalysis

FINE_TUNING, OUTPUTS = "teacher fine-tuning", "teacher outputs"
TIMINGS = ("examples_per_second", "supervised_tokens_per_second", "peak_memory_mb")


def costs_of_runs(analysis: Analysis) -> list[Record]:
    """Per task the teacher's costs, then those of every completed training run, in the order of the plan."""
    rows = [row for task in analysis.tasks for row in _costs(analysis, task)]
    for row in rows:
        row["seconds"] = row["train_seconds"] + row["evaluate_seconds"] + row["teacher_seconds"]
        row["cost"] = _price(row["seconds"], analysis.settings.cost_per_hour)
    return rows


def mean_costs(analysis: Analysis) -> list[Record]:
    """The means of `costs_of_runs` per task, student and method; totals are without the share of the teacher."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for row in costs_of_runs(analysis):
        groups.setdefault((row["task"], row["student"], row["method"]), []).append(row)
    return [_mean(group, analysis.settings.cost_per_hour) for group in groups.values()]


def _costs(analysis: Analysis, task: TaskAnalysis) -> list[Record]:
    runs = [r for r in analysis.runs if r.configuration.task == task.name and r.status == COMPLETED]
    tuned = [run for run in runs if run.configuration.method == TEACHER and _timing(run, "train_seconds") > 0]
    teacher = [_row(run, 0.0) | {"student": "", "method": FINE_TUNING, "evaluate_seconds": 0.0} for run in tuned]
    taught = [run for run in runs if run.record.get("teacher")]
    if taught:  # the latest count counts: it only grows
        spent = [finite(run.record["teacher"].get("seconds")) for run in taught]
        latest = max((value for value in spent if not math.isnan(value)), default=math.nan)
        seconds = {"train_seconds": latest, "evaluate_seconds": 0.0, "teacher_seconds": 0.0}
        about = {"task": task.name, "student": "", "method": OUTPUTS}
        teacher.append(about | seconds | dict.fromkeys(TIMINGS, math.nan))
    share = sum(row["train_seconds"] for row in teacher) / len(taught) if taught else 0.0
    trained = [run for run in runs if run.configuration.method not in (TEACHER, ZERO_SHOT)]
    return teacher + [_row(run, share if run.record.get("teacher") else 0.0) for run in trained]


def _row(run: Run, share: float) -> Record:
    """The seconds of one run and of its share of the teacher; NaN where they were not recorded."""
    about = run.configuration
    return {
        "task": about.task,
        "student": about.student or "",
        "method": about.method,
        "hyperparameters": about.hyperparameters,
        "seed": run.seed,
        "run_id": run.run_id,
        "teacher_seconds": share,
        **{name: _timing(run, name) for name in ("train_seconds", "evaluate_seconds", *TIMINGS)},
    }


def _timing(run: Run, name: str) -> float:
    return finite((run.record.get("timing") or {}).get(name))


def _mean(group: Sequence[Record], rate: float | None) -> Record:
    kinds = ("train_seconds", "evaluate_seconds", "teacher_seconds", "seconds", *TIMINGS)
    means = {name: float(np.mean([row[name] for row in group])) for name in kinds}
    total = sum(row["train_seconds"] + row["evaluate_seconds"] for row in group)
    return {
        **{name: group[0][name] for name in ("task", "student", "method")},
        **means,
        "runs": len(group),
        "seconds_per_run": means["seconds"],
        "total_seconds": total,
        "cost_per_run": _price(means["seconds"], rate),
        "total_cost": _price(total, rate),
    }


def _price(seconds: float, rate: float | None) -> float | None:
    """In the currency of the rate per hour; None without one."""
    return None if rate is None or math.isnan(seconds) else seconds / 3600 * rate

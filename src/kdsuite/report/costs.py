"""What training cost: every run's own time, and the teacher's, apart and as a share of the runs it taught.

The teacher's fine-tuning and its cached outputs are paid once and serve all distillation runs of a task; the
share is their time divided by the number of completed runs that used it. B0 needs no teacher and bears none.
Sums over a table count the teacher's rows or the shares, never both.
"""

import math

import numpy as np

from kdsuite.config import TEACHER, ZERO_SHOT
from kdsuite.evaluate.selection import COMPLETED, Record, Run, finite
from kdsuite.report.analysis import Analysis

FINE_TUNING, OUTPUTS = "teacher fine-tuning", "teacher outputs"
TIMINGS = "train_seconds evaluate_seconds examples_per_second supervised_tokens_per_second peak_memory_mb".split()


def costs_of_runs(analysis: Analysis) -> list[Record]:
    """Per task the teacher's costs, then those of every completed training run on the whole, in the plan's order."""
    rows: list[Record] = []
    for task in analysis.tasks:
        runs = [r for r in analysis.runs if r.configuration.task == task.name and r.configuration.fraction == 1]
        runs = [r for r in runs if r.status == COMPLETED]
        paid_once: Record = {"task": task.name, "student": "", "evaluate_seconds": 0.0, "teacher_seconds": 0.0}
        tuned = [_row(run, 0.0) for run in runs if run.configuration.method == TEACHER]
        teacher: list[Record] = [row | paid_once | {"method": FINE_TUNING} for row in tuned if row["train_seconds"] > 0]
        taught = [run for run in runs if run.record.get("teacher")]
        if taught:  # the latest count counts: it only grows
            spent = np.fmax.reduce([finite(run.record["teacher"].get("seconds")) for run in taught])
            unknown = dict.fromkeys(TIMINGS, math.nan)
            teacher.append(unknown | paid_once | {"method": OUTPUTS, "train_seconds": float(spent)})
        share = sum(row["train_seconds"] for row in teacher) / len(taught) if taught else 0.0
        trained = [run for run in runs if run.configuration.method not in (TEACHER, ZERO_SHOT)]
        rows += teacher + [_row(run, share if run.record.get("teacher") else 0.0) for run in trained]
    for row in rows:
        row["seconds"] = row["train_seconds"] + row["evaluate_seconds"] + row["teacher_seconds"]
        row["cost"] = _price(row["seconds"], analysis.settings.cost_per_hour)
    return rows


def mean_costs(analysis: Analysis) -> list[Record]:
    """The means of `costs_of_runs` per task, student and method; totals are without the share of the teacher."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for row in costs_of_runs(analysis):
        groups.setdefault((row["task"], row["student"], row["method"]), []).append(row)
    rows, rate = [], analysis.settings.cost_per_hour
    for named, group in groups.items():
        row: Record = dict(zip(("task", "student", "method"), named, strict=True))
        row |= {name: float(np.mean([run[name] for run in group])) for name in (*TIMINGS, "teacher_seconds", "seconds")}
        total = sum(run["train_seconds"] + run["evaluate_seconds"] for run in group)
        row |= {"runs": len(group), "seconds_per_run": row["seconds"], "total_seconds": total}
        rows.append(row | {"cost_per_run": _price(row["seconds"], rate), "total_cost": _price(total, rate)})
    return rows


def _row(run: Run, share: float) -> Record:
    """The seconds of one run and of its share of the teacher; NaN where they were not recorded."""
    about, timing = run.configuration, run.record.get("timing") or {}
    return {
        "task": about.task,
        "student": about.student or "",
        "method": about.method,
        "hyperparameters": about.hyperparameters,
        "seed": run.seed,
        "run_id": run.run_id,
        "teacher_seconds": share,
        **{name: finite(timing.get(name)) for name in TIMINGS},
    }


def _price(seconds: float, rate: float | None) -> float | None:
    """In the currency of the rate per hour; None without one."""
    return None if rate is None or math.isnan(seconds) else seconds / 3600 * rate

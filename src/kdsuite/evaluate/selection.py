"""Which runs stand for a method, for tables and benchmark alike: one per seed, at hyper-parameters that *other* seeds
chose on the dev split.

The best of a grid is partly the luckiest, and a run that helped to choose itself is reported with its luck (Cawley &
Talbot 2010, JMLR 11). So the seeds stand in a circle, in their order, and each takes the point with the best mean over
the half of the others that follow it. No two then choose for each other, so that under the null their scores are
unbiased and, as the test over seeds assumes, uncorrelated, which they are not if all the others choose
(docs/statistics.md has both). A single seed has no other to choose for it; two choose for each other.

Only configurations with all their planned seeds compete, as long as there is one; a grid with holes says so.
Equal means are settled by the order of the plan. All that is needed are the entries of a plan and run records.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

COMPLETED, FAILED, NOT_RUN, INCOMPLETE = "completed", "failed", "not run", "incomplete"

Record = dict[str, Any]


@dataclass(frozen=True)
class Configuration:
    """What distinguishes runs besides their seed: `point` is in the order of the symbols that stand for its names."""

    method: str
    task: str
    student: str | None = None
    point: tuple[tuple[str, float], ...] = ()
    fraction: float = 1.0  # of the training examples
    symbols: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def symbol(self, name: str) -> str:
        return self.symbols.get(name, name)

    @property
    def hyperparameters(self) -> str:
        """The point for reading: "T=2 α=0.3"."""
        return " ".join(f"{self.symbol(name)}={value:g}" for name, value in self.point)


@dataclass(frozen=True)
class Run:
    """One planned run: `status` is completed, failed or not run; metrics are percent."""

    run_id: str
    configuration: Configuration
    seed: int | None
    status: str
    reason: str | None
    folder: Path = Path()
    record: Record = field(default_factory=dict, repr=False)

    def metric(self, split: str, name: str) -> float:
        """A finite metric in percent, or NaN."""
        return finite(((self.record.get("metrics") or {}).get(split) or {}).get(name))


def planned_run(
    planned: Record, record: Record | None, folder: Path = Path(), symbols: Mapping[str, str] | None = None
) -> Run:
    """An entry of a plan (`run_id`, `fingerprint`, `spec`) with the record of its run; one of other settings
    does not count.
    """
    spec, fingerprint = planned["spec"], planned.get("fingerprint")
    if record and fingerprint and record.get("fingerprint") != fingerprint:
        record = None
    others = {"method", "task", "student", "seed", "point", "fraction"}  # beside which an earlier version has its point
    earlier = {name: value for name, value in spec.items() if name not in others and value is not None}
    symbols, values = symbols or {}, spec.get("point") or earlier
    names: list[str] = sorted(values)
    names.sort(key=lambda name: symbols.get(name, name))
    point = tuple((name, values[name]) for name in names)
    fraction = spec.get("fraction", 1.0)
    configuration = Configuration(spec["method"], spec["task"], spec.get("student"), point, fraction, symbols)
    status, reason = _status(record)
    return Run(planned["run_id"], configuration, spec.get("seed"), status, reason, folder, record or {})


def _status(record: Record | None) -> tuple[str, str | None]:
    """Completed only with finite metrics; what was started and never finished was not run."""
    if record is None:
        return NOT_RUN, "never started"
    status = record.get("status")
    if status == COMPLETED:
        values = (record.get("metrics") or {}).get("validation") or {}
        odd = sorted(name for name, value in values.items() if math.isnan(finite(value)))
        if odd or not values:
            return FAILED, f"recorded as completed, but without finite {', '.join(odd) or 'metrics'}"
        return COMPLETED, None
    if status == FAILED:
        return FAILED, record.get("reason") or "no reason recorded"
    return NOT_RUN, {"running": "started, not finished", "interrupted": "interrupted"}.get(
        str(status), f"status {status!r}"
    )


def finite(value: Any) -> float:
    """A recorded value as a number, NaN for everything that is not a finite one."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else math.nan


@dataclass(frozen=True)
class Candidate:
    """One configuration of a method's grid with all its planned runs; dev scores are percent."""

    configuration: Configuration
    runs: tuple[Run, ...]
    metric: str

    @property
    def completed(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.status == COMPLETED)

    @property
    def complete(self) -> bool:
        return len(self.completed) == len(self.runs)

    @property
    def dev(self) -> list[float]:
        return [run.metric("dev", self.metric) for run in self.completed]

    @property
    def dev_mean(self) -> float:
        return float(np.mean(self.dev)) if self.dev else math.nan

    @property
    def dev_std(self) -> float:
        return float(np.std(self.dev, ddof=1)) if len(self.dev) > 1 else math.nan


@dataclass(frozen=True)
class Selection:
    """A method's grid on one task and student, and the runs that stand for it: at most one per seed, in order."""

    candidates: tuple[Candidate, ...]
    runs: tuple[Run, ...]

    @property
    def complete(self) -> bool:
        return all(candidate.complete for candidate in self.candidates)

    @property
    def hyperparameters(self) -> str:
        """Those of the runs for reading: "T=2 α=0.3", or with how many runs have which."""
        counts = Counter(run.configuration.hyperparameters for run in self.runs)
        return next(iter(counts), "") if len(counts) < 2 else ", ".join(f"{n} × {point}" for point, n in counts.items())

    @property
    def dev_mean(self) -> float:
        """Of the runs, percent; NaN without any."""
        return float(np.mean([run.metric("dev", self.candidates[0].metric) for run in self.runs] or [math.nan]))

    @property
    def note(self) -> str:
        """What is missing from the grid, in one line; empty if nothing is."""
        whole = sum(candidate.complete for candidate in self.candidates)
        if self.complete or len(self.candidates) == 1:
            return ""
        return f"incomplete grid: {whole} of {len(self.candidates)} configurations have all their seeds"

    def has(self, candidate: Candidate) -> bool:
        """Whether a run at these hyper-parameters stands for the method."""
        return any(run in candidate.runs for run in self.runs)

    def as_dict(self) -> Record:
        """What summary/selection.json records."""
        first = self.candidates[0]
        means = {c.configuration.hyperparameters or "-": c.dev_mean for c in self.candidates}
        return {
            "task": first.configuration.task,
            "student": first.configuration.student,
            "method": first.configuration.method,
            **({"fraction": first.configuration.fraction} if first.configuration.fraction < 1 else {}),
            "rule": f"per seed, the highest mean {first.metric} on dev over the half of the other seeds that follow it",
            "chosen": self.hyperparameters if self.runs else None,
            "runs": [run.run_id for run in self.runs],
            "epochs": {r.run_id: r.record["selection"]["epoch"] for r in self.runs if r.record.get("selection")},
            "candidates": {point: None if math.isnan(mean) else round(mean, 4) for point, mean in means.items()},
            "note": self.note,
        }


def select(runs: Sequence[Run], metric: str) -> Selection:
    """Choose among the runs of one method, task and student (at least one run) by `metric` on dev."""
    candidates = tuple(
        Candidate(configuration, tuple(run for run in runs if run.configuration == configuration), metric)
        for configuration in dict.fromkeys(run.configuration for run in runs)
    )
    pool = [{run.seed: run for run in c.completed} for c in [c for c in candidates if c.complete] or candidates]
    seeds = sorted({seed for point in pool for seed in point}, key=lambda seed: -1 if seed is None else seed)
    chosen = []
    for index, seed in enumerate(seeds):
        others = [*seeds[index + 1 :], *seeds[:index]]
        voters = others[: max(1, len(others) // 2)] or [seed]
        options = [point for point in pool if seed in point]
        chosen.append(max(options, key=lambda point, voters=voters: _dev_mean(point, voters, metric))[seed])
    return Selection(candidates, tuple(chosen))


def _dev_mean(point: Mapping[int | None, Run], seeds: Sequence[int | None], metric: str) -> float:
    """Of a point's runs by seed, those of these seeds; minus infinity without any."""
    mean = float(np.mean([point[seed].metric("dev", metric) for seed in seeds if seed in point] or [math.nan]))
    return -math.inf if math.isnan(mean) else mean

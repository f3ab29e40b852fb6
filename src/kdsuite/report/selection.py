"""Which hyper-parameters stand for a method: those with the best mean over seeds on the dev split.

Only configurations with all their planned seeds compete, as long as there is one; a grid with holes says so.
Equal means are settled by the order of the plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdsuite.report.load import COMPLETED, Configuration, Run


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
    """A method's grid on one task and student, and the candidate that stands for it (None: nothing to
    choose).
    """

    candidates: tuple[Candidate, ...]
    chosen: Candidate | None

    @property
    def complete(self) -> bool:
        return all(candidate.complete for candidate in self.candidates)

    @property
    def note(self) -> str:
        """What is missing from the grid, in one line; empty if nothing is."""
        whole = sum(candidate.complete for candidate in self.candidates)
        if self.complete or len(self.candidates) == 1:
            return ""
        return f"incomplete grid: {whole} of {len(self.candidates)} configurations have all their seeds"

    def as_dict(self) -> dict[str, Any]:
        """What summary/selection.json records."""
        first = self.candidates[0]
        return {
            "task": first.configuration.task,
            "student": first.configuration.student,
            "method": first.configuration.method,
            "rule": f"highest mean {first.metric} over seeds on the dev split",
            "chosen": self.chosen.configuration.hyperparameters if self.chosen else None,
            "runs": [run.run_id for run in self.chosen.completed] if self.chosen else [],
            "epochs": {
                run.run_id: run.record["selection"]["epoch"]
                for run in (self.chosen.completed if self.chosen else ())
                if run.record.get("selection")
            },
            "candidates": {
                c.configuration.hyperparameters or "-": _rounded(c.dev_mean) for c in self.candidates
            },
            "note": self.note,
        }


def select(runs: Sequence[Run], metric: str) -> Selection:
    """Choose among the runs of one method, task and student (at least one run) by `metric` on dev."""
    grid = dict.fromkeys(run.configuration for run in runs)
    candidates = tuple(
        Candidate(configuration, tuple(run for run in runs if run.configuration == configuration), metric)
        for configuration in grid
    )
    return Selection(candidates, _best(candidates))


def _best(candidates: Sequence[Candidate]) -> Candidate | None:
    started = [c for c in candidates if c.completed]
    pool = [c for c in started if c.complete] or started
    if len(pool) <= 1:
        return pool[0] if pool else None
    return max(pool, key=lambda c: -math.inf if math.isnan(c.dev_mean) else c.dev_mean)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)

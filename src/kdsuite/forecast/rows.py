"""The rows of a forecast, as they are printed and as `--json` has them. None: unknown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunRow:
    """The runs of one task, method and student: `per_seed` hyper-parameter points for each of `seeds`."""

    task: str
    method: str
    student: str | None
    per_seed: int
    seeds: list[int]
    seconds_each: float | None
    run_ids: list[str]

    @property
    def seconds(self) -> float | None:
        return None if self.seconds_each is None else self.seconds_each * len(self.run_ids)


@dataclass(frozen=True)
class PassRow:
    """Work that is done once: pretraining, the teacher's passes over the training examples, the benchmark."""

    what: str
    tokens: int
    seconds: float | None


@dataclass(frozen=True)
class DiskRow:
    kind: str  # "download", "cache" or "results"
    what: str
    bytes: int | None


@dataclass(frozen=True)
class MemoryRow:
    """The peak of a stage, with the model that has it, and whether the device has as much."""

    stage: str
    model: str
    bytes: int | None
    fits: bool | None


@dataclass(frozen=True)
class Forecast:
    """All of it; `teacher` is the one that will be taken, `seconds` and `bytes` are sums of what is known."""

    teacher: str
    runs: list[RunRow]
    passes: list[PassRow]
    disk: list[DiskRow]
    memory: list[MemoryRow]
    advice: list[str]
    basis: list[str]

    @property
    def seconds(self) -> float:
        return sum(row.seconds or 0.0 for row in [*self.runs, *self.passes])

    @property
    def bytes(self) -> int:
        return sum(row.bytes or 0 for row in self.disk)

"""The rows of a forecast, as `--json` has them and as they are printed: aligned tables, durations and sizes in words.

None is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdsuite.forecast.evidence import EvidenceRow
    from kdsuite.forecast.scene import Machine

UNKNOWN = "?"
VERDICTS = {None: "", True: "fits", False: "does not fit"}


@dataclass(frozen=True)
class RunRow:
    """The runs of one task, method, student and fraction of the training examples: `per_seed` hyper-parameter points
    for each of `seeds`."""

    task: str
    method: str
    student: str | None
    per_seed: int
    seeds: list[int]
    seconds_each: float | None
    run_ids: list[str]
    fraction: float = 1.0

    @property
    def called(self) -> str:
        """The method, with its share of the training examples where that is not all of them."""
        return self.method + (f" on {100 * self.fraction:g} %" if self.fraction < 1 else "")

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
    """The peak of a stage, with the model that has it, and whether the device has as much; on each of `gpus` devices
    that the model is split over."""

    stage: str
    model: str
    bytes: int | None
    fits: bool | None
    gpus: int = 1

    @property
    def where(self) -> str:
        return self.model if self.gpus == 1 else f"{self.model}, on each of {self.gpus}"


@dataclass(frozen=True)
class JobRow:
    """`count` jobs of a kind: GPUs and seconds of each, bytes that it reads from and writes to shared storage."""

    what: str
    count: int
    gpus: int
    seconds: float
    reads: int
    writes: int


@dataclass(frozen=True)
class Placed:
    """All jobs on so many GPUs: seconds per stage, and by what share all is done sooner with more of something."""

    gpus: int
    jobs: list[JobRow]
    stages: dict[str, float]
    sooner: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())

    @property
    def lines(self) -> list[str]:
        """For the terminal."""
        cells = [
            [job.what, str(job.count), str(job.gpus), span(job.seconds), amount(job.reads), amount(job.writes)]
            for job in self.jobs
        ]
        read, written = (sum(job.count * getattr(job, what) for job in self.jobs) for what in ("reads", "writes"))
        way, share = next(iter(self.sooner.items()))
        others = ", ".join(f"{other} {less:.0%}" for other, less in list(self.sooner.items())[1:])
        stages = ", ".join(f"{stage} {span(seconds)}" for stage, seconds in self.stages.items())
        return [
            f"On {self.gpus} GPUs, each job's traffic with shared storage",
            *_table([["", "jobs", "GPUs", "each", "reads", "writes"], *cells], right=5),
            f"  all: {span(self.seconds)} ({stages}); {amount(read)} read, {amount(written)} written, "
            f"{amount(round((read + written) / self.seconds))}/s on average",
            f"  first bottleneck: {way} would save {share:.0%} of the time (others: {others})",
        ]


@dataclass(frozen=True)
class Forecast:
    """All of it; `teacher` is the one that will be taken, `seconds` and `bytes` are sums of what is known.

    `reported`: how many examples each task's reported split has.
    """

    teacher: str
    runs: list[RunRow]
    passes: list[PassRow]
    disk: list[DiskRow]
    memory: list[MemoryRow]
    advice: list[str]
    basis: list[str]
    reported: dict[str, int]
    evidence: list[EvidenceRow] = field(default_factory=list)
    placed: Placed | None = None  # on paper

    @property
    def seconds(self) -> float:
        return sum(row.seconds or 0.0 for row in [*self.runs, *self.passes])

    @property
    def bytes(self) -> int:
        return sum(row.bytes or 0 for row in self.disk)


def as_json(forecast: Forecast, machine: Machine) -> str:
    """All rows and their sums; seconds and bytes."""
    about = {"device": machine.device, "dtype": machine.dtype, "memory_bytes": machine.memory}
    sums = {"seconds": forecast.seconds, "disk_bytes": forecast.bytes}
    return json.dumps(asdict(forecast) | sums | {"machine": about}, indent=1)


def describe(forecast: Forecast, machine: Machine) -> list[str]:
    """Lines for the reader."""
    count = sum(len(row.run_ids) for row in forecast.runs)
    runs = [
        [row.task, row.called, row.student or "–", ", ".join(map(str, row.seeds)) or "–"]
        + [str(len(row.run_ids)), span(row.seconds_each), span(row.seconds)]
        for row in forecast.runs
    ]
    passes = [[row.what, f"{row.tokens:,}", span(row.seconds)] for row in forecast.passes]
    disk = [[row.kind, row.what, amount(row.bytes)] for row in forecast.disk]
    memory = [[row.stage, row.where, amount(row.bytes), VERDICTS[row.fits]] for row in forecast.memory]
    power = {f"{100 * row.power:g}" for row in forecast.evidence}
    seen = [f"  {line}" for row in forecast.evidence for line in row.lines]
    change = ["What to change", *(f"  {line}" for line in forecast.advice), ""] if forecast.advice else []
    last = f"{count} runs: about {span(forecast.seconds)}, {amount(forecast.bytes)} of disk"
    if forecast.placed:
        last = f"{last}; side by side {span(forecast.placed.seconds)}"
    return [
        f"{count} runs",
        *_table([["task", "method", "student", "seeds", "runs", "each", "all"], *runs], right=3),
        "",
        f"Once, with the teacher {forecast.teacher}",
        *_table([["", "tokens", "time"], *passes], right=2),
        "",
        "Disk",
        *_table([["", "", "size"], *disk], right=1),
        "",
        f"Peak memory, where {amount(machine.memory)} are usable",
        *_table([["stage", "model", "needs", ""], *memory], right=2),
        "",
        *([*forecast.placed.lines, ""] if forecast.placed else ()),
        *change,
        *([f"What it can show, with {power.pop()} % power after correction", *seen, ""] if power else ()),
        "Basis (an estimate: expect a factor of two)",
        *(f"  {line}" for line in forecast.basis),
        "",
        last,
    ]


def span(seconds: float | None) -> str:
    """`40 s`, `12 min`, `3 h 20 min`, `5 d 4 h`, `2 years`; two digits are all that an estimate has."""
    if seconds is None:
        return UNKNOWN
    for unit, size, part, smaller in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            whole, rest = divmod(round(seconds / smaller), size // smaller)
            if whole >= 1000 and unit == "d":
                return f"{whole / 365:,.0f} years"
            return f"{whole} {unit} {rest} {part}" if rest and whole < 10 else f"{whole} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "< 1 s"


def amount(size: int | None) -> str:
    """Bytes in the unit that fits: `35 kB`, `1.2 MB`, `16 GB` (powers of 1000)."""
    if size is None:
        return UNKNOWN
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}" if size < 10 * scale else f"{size / scale:,.0f} {unit}"
    return f"{size} B"


def _table(lines: Sequence[Sequence[str]], right: int) -> list[str]:
    """Aligned columns, the last `right` of them to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        [cell.ljust(width) for cell, width in zip(line[:-right], widths, strict=False)]
        + [cell.rjust(width) for cell, width in zip(line[-right:], widths[-right:], strict=True)]
        for line in lines
    ]
    return ["  " + "  ".join(cells).rstrip() for cells in aligned]

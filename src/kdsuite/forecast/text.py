"""A forecast for the terminal: aligned tables, words for durations and sizes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from kdsuite.forecast.rows import Forecast
from kdsuite.forecast.scene import Machine

UNKNOWN = "?"
VERDICTS = {None: "", True: "fits", False: "does not fit"}


def as_json(forecast: Forecast, machine: Machine) -> str:
    """All rows and their sums; seconds and bytes."""
    about = {"device": machine.device, "dtype": machine.dtype, "memory_bytes": machine.memory}
    sums = {"seconds": forecast.seconds, "disk_bytes": forecast.bytes}
    return json.dumps(asdict(forecast) | sums | {"machine": about}, indent=1)


def describe(forecast: Forecast, machine: Machine) -> list[str]:
    """Lines for the reader."""
    count = sum(len(row.run_ids) for row in forecast.runs)
    runs = [
        [
            row.task, row.method, row.student or "–", ", ".join(map(str, row.seeds)) or "–",
            str(len(row.run_ids)), span(row.seconds_each), span(row.seconds),
        ]
        for row in forecast.runs
    ]  # fmt: skip
    passes = [[row.what, f"{row.tokens:,}", span(row.seconds)] for row in forecast.passes]
    disk = [[row.kind, row.what, amount(row.bytes)] for row in forecast.disk]
    memory = [[row.stage, row.model, amount(row.bytes), VERDICTS[row.fits]] for row in forecast.memory]
    change = ["What to change", *(f"  {line}" for line in forecast.advice), ""] if forecast.advice else []
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
        *change,
        "Basis (an estimate: expect a factor of two)",
        *(f"  {line}" for line in forecast.basis),
        "",
        f"{count} runs: about {span(forecast.seconds)}, {amount(forecast.bytes)} of disk",
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

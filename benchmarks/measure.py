"""What the benchmark programs share: side-by-side timing, the peak memory of a fresh process, a table, findings.

Both sides of a comparison take turns in one process, so that whatever else the machine does hits both alike;
what counts is the ratio. Memory is measured in a process that does nothing else. A program prints its tables and
hands its `Finding`s to whoever asks for them with `--findings` (`benchmarks/__main__.py`, for the summary).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from kdsuite.runtime.device import MB, peak_memory_mb, reset_peak_memory
from kdsuite.runtime.process import silence

silence()  # before the libraries that the programs import behind this file

CPU = torch.device("cpu")
Work = Callable[[], object]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Finding:
    """A line of the summary: what was found, and what was aimed at (None: there is no target)."""

    question: str  # what is measured, e.g. "KD1 step, teacher cached"
    against: str  # the other side of a ratio, or the yardstick
    figure: str  # e.g. "CPU time", "peak memory"
    unit: str  # × for ratios
    median: float
    low: float
    high: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        if self.at_least is not None:
            return self.median >= self.at_least
        return None if self.at_most is None else self.median <= self.at_most

    @classmethod
    def of_values(
        cls, question: str, against: str, figure: str, unit: str, values: Sequence[float], **target: float
    ) -> Finding:
        return cls(question, against, figure, unit, statistics.median(values), min(values), max(values), **target)

    @classmethod
    def of_ratio(
        cls, question: str, against: str, figure: str, slow: Sequence[float], fast: Sequence[float], **target: float
    ) -> Finding:
        """How many times as much; neighbours in time are compared."""
        ratios = [a / b for a, b in zip(slow, fast, strict=True)]
        return cls.of_values(question, against, figure, "×", ratios, **target)


def arguments(doc: str | None, repeats: int) -> argparse.ArgumentParser:
    """The options that every program has; `doc` is its docstring."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes, once, to see that it runs")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"measurements of each side (default {repeats})")
    parser.add_argument("--findings", type=Path, help="write what was found to this file too, a JSON object per line")
    return parser


def asked(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What a program was asked for, which computes with one thread; with --quick each side is measured once."""
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.repeats = 1
    return options


def show(
    options: argparse.Namespace,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    findings: Sequence[Finding],
    about: str = "",
) -> None:
    """How a program ends: where and how often was measured, `about` it all, the table; findings are kept."""
    print(f"{machine()}; medians of {options.repeats} repeats (smallest–largest){about}\n")
    print(table(header, rows))
    keep(findings, options.findings)


def keep(findings: Sequence[Finding], path: Path | None) -> None:
    """Write findings for the summary, if it was asked for."""
    if path is not None:
        path.write_text("".join(json.dumps(asdict(f)) + "\n" for f in findings), encoding="utf-8")


@dataclass
class Times:
    """Seconds per repeat: of the clock on the wall, and of this process on a CPU."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @contextmanager
    def taken(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def side_by_side(sides: dict[str, Work], repeats: int, warm: bool = False) -> dict[str, Times]:
    """Every side once per repeat, in turn, after a round that does not count; none if all is `warm` already."""
    times = {name: Times() for name in sides}
    for work in () if warm else sides.values():
        work()
    for _ in range(repeats):
        for name, work in sides.items():
            with times[name].taken():
                work()
    return times


def clocked(owner: Any, method: str) -> Sequence[float]:
    """The CPU seconds of each call of an object's method, from now on."""
    seconds: list[float] = []
    inner = getattr(owner, method)

    def call(*args: Any, **named: Any) -> Any:
        begun = time.process_time()
        result = inner(*args, **named)
        seconds.append(time.process_time() - begun)
        return result

    setattr(owner, method, call)
    return seconds


def peak_mb(prepare: Callable[..., Work], *args: object, imported: Sequence[str] = ()) -> float:
    """`peak_mb_here` in a fresh process; the modules `imported` are so already, once for all calls."""
    context = get_context("forkserver")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # the server that forks knows no other path
    context.set_forkserver_preload([__name__, *imported])  # this one first, as it silences the others
    return fresh(peak_mb_here, prepare, *args, context=context)


def fresh(work: Callable[..., Result], *args: object, context: BaseContext) -> Result:
    """`work(*args)` in a process that does nothing else; a forked one need not import anything again."""
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *args).result()


def peak_mb_here(prepare: Callable[..., Work], *args: object) -> float:
    """Megabytes that `prepare(*args)()` takes at its peak above what `prepare` left."""
    torch.set_num_threads(1)
    work = prepare(*args)
    _give_back()
    before = psutil.Process().memory_info().rss / MB
    reset_peak_memory(CPU)
    work()
    return peak_memory_mb(CPU) - before


def _give_back() -> None:
    """Give freed memory back to the system, where the C library can: what follows would hide in it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def spread(seconds: Sequence[float], unit: float = 1e-3) -> str:
    """Median with the smallest and the largest value."""
    low, middle, high = (f(seconds) / unit for f in (min, statistics.median, max))
    return f"{middle:,.1f} ({low:,.1f}–{high:,.1f})"


def ratio(slow: Sequence[float], fast: Sequence[float], digits: int = 1) -> str:
    """How many times slower: the median over the repeats, so that neighbours in time are compared."""
    return f"{Finding.of_ratio('', '', '', slow, fast).median:.{digits}f}×"


def times_as_much(more: float, less: float) -> str:
    """A ratio of sizes in MB, where there is enough to be measured."""
    return f"{more / less:.1f}×" if less >= 1 else "–"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, the first to the left."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| " + " | ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in (cells[0], rule, *cells[1:])
    )  # fmt: skip


def machine() -> str:
    """What the figures were taken on."""
    cores, threads = os.cpu_count(), torch.get_num_threads()
    kind = torch.backends.cpu.get_cpu_capability()
    return f"{cores} CPU cores ({kind}), {threads} thread{'' if threads == 1 else 's'}, torch {torch.__version__}"

"""How long does a report take with all of SQuAD's validation split, and 33 runs that say something about each example?

The results are made up by the tests' own writer: a teacher, two students as they come, and five methods with
three seeds for each; KD1's grid has a second point, whose runs are only counted. Every report is built in a fresh
process from the folder on, imports not counted; its memory is what building takes on top of them.

    python benchmarks/report.py [--quick] [--repeats 3]
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import psutil
from measure import CPU, MB, Finding, Times, arguments, fresh, keep, machine, spread, table

from kdsuite.config.report import ReportSettings
from kdsuite.evaluate.selection import COMPLETED
from kdsuite.report.build import build_report
from kdsuite.report.load import load
from kdsuite.runtime.device import peak_memory_mb, reset_peak_memory

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "report"))
from synthetic import SKILLS, Study, write_results  # pyright: ignore[reportMissingImports]

EXAMPLES, QUICK = 10_570, 200  # SQuAD's validation split
TARGET = 10.0  # seconds
METHODS = SKILLS | {"KD1+KD3": 0.83}
GRID = ((2.0, 0.5), (4.0, 0.5))


def write(folder: Path, examples: int) -> None:
    study = Study(("squad",), ("S1", "S2"), n=examples, skills=METHODS, grid=GRID)
    write_results(folder, study)


def build(folder: Path) -> tuple[float, float, float]:
    """Seconds of the clock and of the CPU that a report takes, and MB on top of what there was."""
    times, before = Times(), psutil.Process().memory_info().rss / MB
    reset_peak_memory(CPU)
    with times.taken():
        build_report(folder, ReportSettings())
    return times.wall[0], times.cpu[0], peak_memory_mb(CPU) - before


def main() -> None:
    options = arguments(__doc__, 3).parse_args()
    examples, repeats = (QUICK, 1) if options.quick else (EXAMPLES, options.repeats)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, examples)
        runs = [run for run in load(folder).runs if run.status == COMPLETED]
        megabytes = sum((run.folder / "predictions.jsonl").stat().st_size for run in runs) / MB
        once = partial(build, folder) if options.quick else partial(fresh, build, folder, context=get_context("spawn"))
        wall, cpu, peak = zip(*(once() for _ in range(repeats)), strict=True)
    print(f"{machine()}; medians of {repeats} reports (smallest–largest)\n")
    header = ("examples", "runs", "predictions MB", "seconds", "CPU seconds", "peak MB")
    row = (f"{examples:,}", str(len(runs)), f"{megabytes:.0f}", spread(wall, 1), spread(cpu, 1), spread(peak, 1))
    print(table(header, [row]))
    what = f"report, {examples:,} examples"
    target = {} if options.quick else {"at_most": TARGET}
    keep(
        [
            Finding.of_values(what, "33 runs read", "time to build", "s", wall, **target),
            Finding.of_values(what, "33 runs read", "CPU time to build", "s", cpu),
            Finding.of_values(what, "33 runs read", "peak memory on top", "MB", peak),
        ],
        options.findings,
    )


if __name__ == "__main__":
    main()

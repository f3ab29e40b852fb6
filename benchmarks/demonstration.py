"""Does the offline run show what it is there to show, whatever the corpora? Repeated with other corpus seeds.

Each repetition generates other corpora, pretrains other models on them, and does all runs of the offline configuration
(without benchmark and page) in a results folder of its own, going on with what is there. Per repetition and task:
the teacher, B0, and of each method its gain over B0 and the corrected p, as `kdsuite report` computes them.

    python benchmarks/demonstration.py [--repetitions 10] [--first 1] [--results results-demonstration] [--set k=v]
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

from measure import table

from kdsuite.config import TEACHER, Settings
from kdsuite.config.files import load
from kdsuite.pipeline import run
from kdsuite.report import load as records
from kdsuite.report.analysis import TaskAnalysis, analyse
from kdsuite.report.comparisons import BETTER, WORSE
from kdsuite.report.load import BASELINE
from kdsuite.runtime.progress import Progress


def settings_of(seed: int, sets: list[str]) -> Settings:
    """The offline configuration with other corpora and other models."""
    tasks = load(env_file=None).tasks
    seeds = [f"models.offline.seed={seed}", *(f"tasks.{name}.sample_seed={seed}" for name in tasks)]
    return load(sets=[*seeds, *sets], env_file=None)


def row(seed: int, task: TaskAnalysis) -> list[str]:
    """Means in percent, gains in points with their corrected p."""
    teacher = task.cell(TEACHER)
    (baseline,) = (cell for cell in task.cells if cell.method == BASELINE)
    cells = [str(seed), task.name, f"{teacher.mean:.1f}" if teacher else "–", f"{baseline.mean:.1f}"]
    for c in task.comparisons:
        p = "–" if c.p_holm is None else f"{c.p_holm:.3f}"
        cells.append(f"{c.difference:+.1f}, p {p}: {c.verdict}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=10, help="corpus seeds to try")
    parser.add_argument("--first", type=int, default=1, help="the first of them; 0 is the offline run's own")
    parser.add_argument("--results", type=Path, default=Path("results-demonstration"), help="a folder in it for each")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="as `kdsuite run --set`")
    options = parser.parse_args()
    rows: list[list[str]] = []
    shown: Counter[str] = Counter()
    header: list[str] = []
    for seed in range(options.first, options.first + options.repetitions):
        settings, folder, began = settings_of(seed, options.set), options.results / f"seed{seed}", time.monotonic()
        run(settings, folder, ("prepare", "cache", "train"), progress=Progress.silent())
        for task in analyse(records.load(folder), settings.report).tasks:
            rows.append(row(seed, task))
            header = ["seed", "task", "teacher", BASELINE, *(c.name for c in task.comparisons)]
            verdicts = {c.verdict for c in task.comparisons}
            shown[f"{task.name}: a method better than B0"] += BETTER in verdicts
            shown[f"{task.name}: a comparison without a claim"] += bool(verdicts - {BETTER, WORSE})
            print(" | ".join(rows[-1]), flush=True)
        print(f"seed {seed}: {time.monotonic() - began:,.0f} s", flush=True)
    print(f"\n{table(header, rows)}\n")
    for what, times in shown.items():
        print(f"{what}: {times} of {options.repetitions}")


if __name__ == "__main__":
    main()

"""What it costs to have a job placed by each executor, and that the bytes are the same.

    python benchmarks/placing.py [--executor serial --executor processes:2 --executor ray] [--runs 16] [--epochs 2]

Tiny runs (B0, one seed each) are done twice by every executor in a folder of its own: the second time all are there
already, so that only placing is paid. Processor time is that of this process and of all it has started, as last seen;
what Slurm starts is not among that. `slurm` takes a cluster, or tests/slurm_commands.py linked as its commands.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from measure import table

from kdsuite.config import Settings, load
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.data import splits
from kdsuite.jobs.job import Job
from kdsuite.jobs.trials import try_models
from kdsuite.pipeline import executor_of
from kdsuite.plan import expand
from kdsuite.runtime import device
from kdsuite.runtime.process import freeze_imports
from kdsuite.runtime.progress import Progress

EVERY = 0.2  # seconds between two looks at what processes have used


def _watch(pid: int, asked: Connection) -> None:
    """Answers with the processor seconds that a process and its descendants have used since this began, this one left
    out. A thread of the process itself would make it wait for the interpreter's lock at every file it reads."""
    used: dict[tuple[int, float], float] = {}

    def look() -> float:
        first = psutil.Process(pid)
        for process in [first, *first.children(recursive=True)]:
            try:
                times = process.cpu_times()
                used[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue
        return sum(seconds for (number, _), seconds in used.items() if number != os.getpid())

    before = look()
    asked.send(0.0)
    while True:
        if not asked.poll(EVERY):
            look()
        elif asked.recv():
            asked.send(look() - before)
        else:
            return


@contextmanager
def processor_time() -> Iterator[Callable[[], float]]:
    """Seconds of this process and its descendants since the block began."""
    here, there = get_context("spawn").Pipe()
    watcher = get_context("spawn").Process(target=_watch, args=(os.getpid(), there))
    watcher.start()
    here.recv()
    try:
        yield lambda: (here.send(True), here.recv())[1]
    finally:
        here.send(False)
        watcher.join()


def settings_of(runs: int, epochs: int) -> Settings:
    task = [f"tasks.sst2.{key}" for key in ("train_size=64", "dev_size=16", "validation_size=16", "max_new_tokens=2")]
    seeds = f"seeds={list(range(1, runs + 1))}"
    others = ["methods=[B0]", "threads=1", "dtype=float32", "models.offline.pretraining_steps=40"]
    return load(None, sets=[*task, f"tasks.sst2.training.epochs={epochs}", seeds, *others])


def measured(name: str, settings: Settings, results: Path) -> tuple[list[str], dict[str, bytes]]:
    """A row of the table, and the predictions."""
    bench = Bench(settings, results, device.choose("cpu", "float32", 1), Progress.silent())
    splits(bench, "sst2")
    try_models(bench)
    jobs = [Job(settings, results, spec) for spec in expand(settings, ["sst2"]) if spec.seed is not None]
    walls, works, skipped = [], [], []
    with processor_time() as used, executor_of(name)(bench) as place:
        for _ in range(2):
            started = time.perf_counter()
            place(jobs, lambda job, result: skipped.append(result().skipped))
            walls.append(time.perf_counter() - started)
            works.append(used())
    assert skipped == [False] * len(jobs) + [True] * len(jobs), name
    found = {path.parent.name: path.read_bytes() for path in results.glob("raw_runs/B0*/predictions.jsonl")}
    assert len(found) == len(jobs)
    return [name, f"{walls[0]:.1f}", f"{works[0]:.1f}", f"{1000 * walls[1] / len(jobs):.0f}"], found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executor", action="append")
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two runs, one after the other")
    options = parser.parse_args()
    names = ["serial"] if options.quick else options.executor or ["serial", "processes:2", "ray"]
    freeze_imports()  # as a command does, and every worker
    rows, same = [], None
    with tempfile.TemporaryDirectory() as root:
        for number, name in enumerate(names):
            settings = settings_of(2 if options.quick else options.runs, options.epochs)
            row, found = measured(name, settings, Path(root) / str(number))
            assert same in (None, found), f"{name} has other predictions"
            rows, same = [*rows, row], found
            print(row, flush=True)
    header = ["executor", "wall s", "processor s", "ms per job that is done"]
    print(table(header, rows))


if __name__ == "__main__":
    main()

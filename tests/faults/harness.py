"""Fault injection: `python tests/faults/harness.py` (also `make faults`).

Runs a small suite undisturbed, then again: killed (SIGKILL) or stopped (Ctrl-C) at random moments, with a disk
that is full at random moments, with damaged files, and by several processes at once. It is started again until
it is done, and must end with the same bytes. Prints what was survived and what differs (nothing, or the exit
code is 1). Children are forked, so it runs where there is fork (Linux, macOS).
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import suite

CREWS = ("processes:2", "ray")
ENDS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}  # exit codes
STORAGE = 2  # exit code of a command that cannot write
ATTEMPTS = 400  # restarts after which a suite that does not end is given up
DAMAGED = (  # files that some stage trusts, one of each kind, below the results folder
    "processed_data/{one}/train.jsonl",
    "processed_data/{other}/manifest.json",
    "models/offline/student/model.safetensors",
    "models/B0_{one}_S1_seed42/adapter_model.safetensors",
    "models/teacher_{other}/adapter_model.safetensors",
    "teacher_cache/{one}/*/part-00000.safetensors",
    "teacher_cache/{one}/*/manifest.json",
    "teacher_cache/{other}/*/answers.jsonl",
    "teacher_cache/{other}/*/quality.json",
    "raw_runs/KD1_{one}_S1_T2_a0.5_seed42/run.json",
    "raw_runs/KD3_{other}_S1_l1_seed42/predictions.jsonl",
    "raw_runs/benchmarks/{one}.json",
    "raw_runs/plan.json",
    "summary/manifest.json",
    "summary/table_4_1_main_results.csv",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="how many times to kill")
    parser.add_argument("--interrupts", type=int, default=10, help="how many times to press Ctrl-C")
    parser.add_argument("--full-disks", type=int, default=10, help="how many times the disk is full")
    parser.add_argument(
        "--damage", choices=["alone", "together"], default="alone", help="one damaged file at a time, or all"
    )
    parser.add_argument("--checkpoints", type=int, default=6, help="how many checkpoints are damaged")
    parser.add_argument("--rounds", type=int, default=10, help="how often 2, and 4, processes share a plan")
    parser.add_argument("--crews", type=int, default=5, help="how often workers and their parent are killed, of each")
    parser.add_argument(
        "--executor", action="append", help=f"whose workers; repeatable; default: {' and '.join(CREWS)}"
    )
    parser.add_argument("--task", action="append", help="only this task; repeatable")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as root:
        harness = Harness(Path(root), rng, options.task or ["sst2", "squad"])
        harness.kills(options.kills)
        harness.kills(options.interrupts, signal.SIGINT)
        harness.full_disks(options.full_disks)
        harness.damages(options.damage == "alone")
        harness.damaged_checkpoints(options.checkpoints)
        harness.together(options.rounds)
        for executor in options.executor or CREWS:
            harness.crews(options.crews, executor)
        print(f"differences: {harness.wrong}")
        return 1 if harness.wrong else 0


class Harness:
    """One undisturbed suite, and everything that is compared with it."""

    def __init__(self, root: Path, rng: random.Random, tasks: list[str]) -> None:
        self.root, self.rng, self.tasks, self.wrong = root, rng, tasks, 0
        self.damaged = [name.format(one=tasks[0], other=tasks[-1]) for name in DAMAGED]
        self.calm = self._folder("undisturbed")
        started = time.monotonic()
        code = suite.run(self.calm, tasks)
        self.seconds = time.monotonic() - started
        if code != 0:
            sys.exit(f"the undisturbed suite failed ({code}):\n{(self.calm / 'log.txt').read_text()}")
        self.expected = suite.outcome(self.calm)
        print(f"undisturbed: {self.seconds:.1f} s, {len(self.expected)} files to compare", flush=True)

    def kills(self, count: int, number: signal.Signals = signal.SIGKILL) -> None:
        """A signal at random moments, in as many suites as it takes to send it so often."""
        survived: Counter[str] = Counter()
        suites = 0
        while survived.total() < count:
            folder = self._folder(f"killed-{suites}")
            rest = count - survived.total()
            survived += self._killed_until_done(folder, rest, number)
            self._compare(folder, f"suite {suites} after {survived.total()} times {number.name}")
            suites += 1
            shutil.rmtree(folder)
        places = ", ".join(f"{stage} {number}" for stage, number in sorted(survived.items()))
        print(f"{number.name} survived: {survived.total()} in {suites} suites ({places})", flush=True)

    def _killed_until_done(self, folder: Path, most: int, number: signal.Signals) -> Counter[str]:
        killed: Counter[str] = Counter()
        for _ in range(ATTEMPTS):
            child = suite.start(folder, self.tasks)
            if killed.total() < most and not _ends_within(child, self.rng.uniform(0, self.seconds / 5)):
                os.kill(child, number)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                if code == ENDS[number]:
                    killed[self._stage(folder)] += 1
                    continue
                if code != 0:
                    self._report(f"{number.name} ended with {code}", _log(folder))
            elif killed.total() >= most:
                os.waitpid(child, 0)
            return killed
        sys.exit(f"the suite does not end:\n{(folder / 'log.txt').read_text()}")

    def _stage(self, folder: Path) -> str:
        """What a killed suite was at, as far as its files tell."""
        results = folder / "results"
        if len(list(results.glob("raw_runs/benchmarks/*.json"))) == len(self.tasks):
            return "report"
        records = [path.read_text() for path in results.glob("raw_runs/*/run.json")]
        if sum('"status": "completed"' in record for record in records) == len(suite.runs(self.tasks)):
            return "benchmark"
        if len(list(results.glob("teacher_cache/*/*/quality.json"))) == len(self.tasks):
            return "train"
        return "cache" if (results / "raw_runs/plan.json").exists() else "prepare"

    def full_disks(self, count: int) -> None:
        """From a random moment on there is no space left, then the suite is started again with space."""
        survived = 0
        while survived < count:
            folder = self._folder("full")
            while (code := suite.run(folder, self.tasks, self._fills_up(survived < count))) != 0:
                survived += 1
                if code != STORAGE:
                    self._report(f"a full disk ended with {code}", _log(folder))
                elif "No space left on device" not in _log(folder).splitlines()[-1]:
                    self._report("a full disk was not told", _log(folder))
            self._compare(folder, "full disk")
            shutil.rmtree(folder)
        print(f"full disks survived: {survived}", flush=True)

    def _fills_up(self, wanted: bool) -> Callable[[], None]:
        nth = self.rng.randrange(1, 150)
        return lambda: _full_disk(nth) if wanted else None

    def damages(self, alone: bool) -> None:
        """Truncated and altered files of a finished suite: told or made anew, and everything as it was."""
        cases = [[(name, way)] for name in self.damaged for way in WAYS]
        if not alone:
            cases = [[(name, WAYS[(i + j) % 2]) for i, name in enumerate(self.damaged)] for j in range(2)]
        for case in cases:
            folder = self._folder("damaged")
            shutil.copytree(self.calm / "results", folder / "results")
            for name, way in case:
                way(_the(folder / "results", name), self.rng)
            label = ", ".join(f"{way.__name__[1:]} {name}" for name, way in case)
            if suite.run(folder, self.tasks) != 0:
                self._report(f"{label}: failed", _log(folder))
            self._compare(folder, label)
            shutil.rmtree(folder)
        print(f"damaged files noticed and made anew: {sum(map(len, cases))}", flush=True)

    def damaged_checkpoints(self, count: int) -> None:
        """A suite is killed while it trains, and the checkpoint it would go on from is damaged."""
        noticed = 0
        while noticed < count:
            folder = self._folder("checkpoint")
            child = suite.start(folder, self.tasks)
            while not (found := _checkpoints(folder)):
                time.sleep(0.005)
            time.sleep(self.rng.uniform(0, self.seconds / 30))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            found = _checkpoints(folder)
            if found:
                self.rng.choice(WAYS)(self.rng.choice(found), self.rng)
                noticed += 1
            if suite.run(folder, self.tasks) != 0 or (found and "is not used: " not in _log(folder)):
                self._report(f"a damaged checkpoint ({found}) was not told", _log(folder))
            self._compare(folder, "damaged checkpoint")
            shutil.rmtree(folder)
        print(f"damaged checkpoints noticed: {noticed}", flush=True)

    def together(self, rounds: int) -> None:
        """Two and four processes on one plan: everything is done, each run by one of them."""
        for processes in (2, 4) * rounds:
            folder = self._folder("together")
            children = [suite.start(folder, self.tasks) for _ in range(processes)]
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            done = suite.times_done(folder, self.tasks)
            if any(codes) or set(done.values()) != {1}:
                self._report(f"{processes} processes ended with {codes}: {done}", _log(folder))
            self._compare(folder, f"{processes} processes")
            shutil.rmtree(folder)
        print(f"plans finished by 2 and by 4 processes, each run done once: {rounds} and {rounds}", flush=True)

    def crews(self, count: int, executor: str) -> None:
        """Workers under one parent: a worker is killed, then the parent, and it goes on until it is done."""
        killed: Counter[str] = Counter()
        for _ in range(count):
            folder = self._folder("crew")
            parent = suite.start(folder, self.tasks, executor=executor)
            while not (workers := _workers(parent)):
                time.sleep(0.1)
            time.sleep(self.rng.uniform(0, self.seconds / 2))
            killed["worker"] += _killed(self.rng.choice(workers))
            time.sleep(self.rng.uniform(0, self.seconds / 2))
            workers = _workers(parent)
            killed["parent"] += _killed(psutil.Process(parent))
            os.waitpid(parent, 0)
            if alive := psutil.wait_procs(workers, timeout=60)[1]:
                self._report(f"workers outlive their parent: {alive}", _log(folder))
            parent = suite.start(folder, self.tasks, executor=executor)
            if code := os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]):
                self._report(f"a crew ended with {code}", _log(folder))
            self._compare(folder, "crew")
            shutil.rmtree(folder)
        print(f"crews of {executor} went on, killed: {dict(killed)}", flush=True)

    def _compare(self, folder: Path, label: str) -> None:
        for name in suite.differences(self.expected, suite.outcome(folder)):
            self._report(f"{label}: {name} differs", "")
        for name in suite.leftovers(folder):
            self._report(f"{label}: {name} is left over", "")

    def _report(self, line: str, log: str) -> None:
        self.wrong += 1
        print(f"WRONG: {line}\n{log}", flush=True)

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir()
        return folder


def _ends_within(child: int, seconds: float) -> bool:
    """Wait for a child's end at most so long; whether it ended (it is then waited for)."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.01)
    return False


def _workers(parent: int) -> list[psutil.Process]:
    """The worker processes of a suite; beside them are what spawns them, a resource tracker, and Ray's own."""
    found = []
    for child in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.Error):
            if re.search(r"spawn_main|^ray::Actor", " ".join(child.cmdline())):
                found.append(child)
    return found


def _killed(process: psutil.Process) -> bool:
    """Kill a process; whether it was still there."""
    if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
        return False
    process.kill()
    return True


def _full_disk(nth: int) -> None:
    """From the n-th flush of this process on, there is no space left."""
    real, calls = os.fsync, iter(range(1, sys.maxsize))

    def fsync(descriptor: int) -> None:
        if next(calls) >= nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    os.fsync = fsync


def _the(results: Path, pattern: str) -> Path:
    [path] = results.glob(pattern)
    return path


def _checkpoints(folder: Path) -> list[Path]:
    """The files of the newest checkpoint."""
    there = sorted(folder.glob("results/raw_runs/*/checkpoint-*"), key=lambda path: path.name)
    return sorted(there[-1].iterdir()) if there else []


def _log(folder: Path) -> str:
    return (folder / "log.txt").read_text(encoding="utf-8")


def _truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


WAYS: list[Callable[[Path, random.Random], None]] = [_truncate, _flip]


if __name__ == "__main__":
    sys.exit(main())

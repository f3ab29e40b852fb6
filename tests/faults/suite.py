"""A small suite with every stage, and what must be the same however often it was killed.

Importing this module makes the offline models and the report of this process smaller than they are, so that
the time goes into what can be killed; nothing else is changed.
"""

# ruff: noqa: E402
from __future__ import annotations

from kdsuite.runtime.process import silence

silence()  # before the libraries that speak when they are imported

import csv
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import kdsuite.pipeline
import kdsuite.report.build  # noqa: F401
from kdsuite import cli
from kdsuite.benchmark.measure import FIGURES
from kdsuite.extras.offline import models as offline
from kdsuite.report import figures
from kdsuite.store import parts
from kdsuite.store.spending import SECONDS

CONFIGURATION = """
threads: 1
dtype: float32
seeds: [42]
methods: [B0, KD1, KD2, KD3]
tasks:
  sst2: &task
    train_size: 40
    dev_size: 8
    validation_size: 12
    max_length: 256
    max_new_tokens: 4
    quality_floor: 0
    training: &training {epochs: 2, batch_size: 8, learning_rate: 3.0e-3, logging_steps: 3, checkpoint_minutes: 0.001}
    teacher_training: {<<: *training, enabled: true, epochs: 1}
  squad: *task
models:
  teacher: {name: offline-teacher, batch_size: 8}
  students: {S1: {name: offline-student}}
  lora: {enabled: true, r: 4, alpha: 8, dropout: 0.1}
  offline: {pretraining_steps: 8}
kd1: {temperatures: [2], alphas: [0.5], top_k: 16}
evaluation: {batch_size: 12}
benchmark:
  {batch_sizes: [1], new_tokens: 2, answers: 1, blocks: 1, warmup: 0, threads: [1], memory: false, quantize: []}
report: {permutations: 100, explorer_examples: 20}
"""
PER_TASK = (
    ("teacher", ""), ("zero-shot", "_S1"), ("B0", "_S1_seed42"), ("KD1", "_S1_T2_a0.5_seed42"),
    ("KD2", "_S1_seed42"), ("KD3", "_S1_l1_seed42"),
)  # fmt: skip
TIMED = {"seconds"}  # columns of histories that are measured
STATIC = {"new_tokens", "weights_mb", "disk_mb", "parameters", "embedding_parameters", "adapter_parameters"}
MEASURED = set(FIGURES) - STATIC  # columns of the benchmark table that are measured


parts.EVERY = 0.0  # so that there are parts to go on with when it is killed
offline.DOCUMENTS, offline.TEXTS, offline.CONVERSATIONS = 300, 300, 60
figures.FIGURES = figures.FIGURES[:1]
gc.collect()
gc.freeze()  # children need not look through what is imported


def runs(tasks: Sequence[str]) -> list[str]:
    """The run ids of the suite's plan."""
    return [f"{name}_{task}{rest}" for task in tasks for name, rest in PER_TASK]


def arguments(folder: Path, tasks: Sequence[str]) -> list[str]:
    """The command line that does all stages of these tasks below `folder`."""
    configuration = folder / "suite.yaml"
    if not configuration.exists():  # others may be reading it
        configuration.write_text(CONFIGURATION, encoding="utf-8")
    narrow = [part for task in tasks for part in ("--task", task)]
    return ["run", "--config", str(configuration), "--results", str(folder / "results"), *narrow]


def run(folder: Path, tasks: Sequence[str], inject: Callable[[], None] = lambda: None) -> int:
    """Do the suite; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(start(folder, tasks, inject), 0)[1])


def start(
    folder: Path, tasks: Sequence[str], inject: Callable[[], None] = lambda: None, executor: str = "serial"
) -> int:
    """Begin the suite in a child of this process, which has everything imported already; its process id.

    `inject` is called in the child first. What it says is appended to log.txt.
    """
    command = [*arguments(folder, tasks), "--executor", executor]
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        inject()
        status = cli.main(command)
        sys.stdout.flush()
    finally:
        os._exit(status)


def outcome(folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on kills: weights, predictions, histories, tables, by name."""
    results = folder / "results"
    found = {path.relative_to(results).as_posix(): path.read_bytes() for path in _exact(results)}
    for path in results.glob("raw_runs/*/history.csv"):
        found[path.relative_to(results).as_posix()] = _without(path, TIMED)
    found["benchmarks.csv"] = _without(results / "summary" / "benchmarks.csv", MEASURED)
    for path in results.glob("raw_runs/*/run.json"):
        record = json.loads(path.read_bytes())
        facts = {name: record.get(name) for name in ("run_id", "fingerprint", "status", "metrics", "selection")}
        found[path.relative_to(results).as_posix()] = json.dumps(facts, sort_keys=True).encode()
    return found


def times_done(folder: Path, tasks: Sequence[str]) -> dict[str, int]:
    """How often each run was done, as told in the log; `already there` does not count."""
    lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
    return {run: sum(f"] {run}: " in line and "already there" not in line for line in lines) for run in runs(tasks)}


def differences(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of what is not in both, byte for byte."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def leftovers(folder: Path) -> list[str]:
    """Half-written files, checkpoints and parts of answers that should be gone when all is done."""
    names = (".tmp-*", "checkpoint-*", "answers-*.json", "*evaluated-*.json")
    return sorted(path.relative_to(folder).as_posix() for name in names for path in folder.rglob(name))


def _exact(results: Path) -> Iterator[Path]:
    for pattern in (
        "models/*/*.safetensors", "models/offline/*/*.safetensors", "processed_data/*/*",
        "raw_runs/*/predictions.jsonl", "teacher_cache/*/*/*", "summary/table_4_[123]*.csv",
        "summary/against_teacher.csv", "summary/selection.json", "summary/latex/table_4_[123]*.tex",
    ):  # fmt: skip
        yield from (path for path in results.glob(pattern) if path.is_file() and path.name != SECONDS)


def _without(path: Path, columns: set[str]) -> bytes:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [{k: v for k, v in row.items() if k not in columns} for row in csv.DictReader(stream)]
    return json.dumps(rows).encode()

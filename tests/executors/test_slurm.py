"""A Slurm cluster that is this machine (slurm_commands.py): workers pull jobs, and are put into the queue again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import slurm_commands
from kdsuite.config import Settings, changed
from kdsuite.errors import RunError, SettingsError
from kdsuite.executors.serial import serial
from kdsuite.executors.slurm import PROGRAMS, on_slurm
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.job import Done, Job
from kdsuite.plan import RunSpec, expand
from kdsuite.runtime import device
from kdsuite.runtime.progress import Progress


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the commands keep what they did."""
    commands, home = tmp_path / "bin", tmp_path / "slurm"
    commands.mkdir()
    home.mkdir()
    for name in PROGRAMS:
        shutil.copy(slurm_commands.__file__, commands / name)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(home))
    package = Path(sys.modules["kdsuite"].__file__ or "").parents[1]
    monkeypatch.setenv("PYTHONPATH", str(package))
    return home


def bench_in(results: Path, settings: Settings) -> Bench:
    choice = device.choose(settings.device, settings.dtype, settings.threads)
    return Bench(settings, results, choice, Progress.silent())


def everything(bench: Bench, executor: Any) -> dict[str, str]:
    """What came of the runs, where the teacher was not asked; each is settled once."""
    said: dict[str, str] = {}

    def settle(job: Job, result: Callable[[], Done]) -> None:
        assert job.name not in said
        try:
            said[job.name] = result().line
        except RunError as error:
            said[job.name] = f"failed: {error}"

    settings, results = bench.settings, bench.results
    with executor(bench) as place:
        place([Job(settings, results, spec) for spec in expand(settings) if spec.method != "teacher"], settle)
    return said


def preempt(cluster: Path, results: Path, done: threading.Event) -> None:
    """Once a training has begun, send the workers that there are the signal that announces their end."""
    while not done.is_set() and not list(results.glob("raw_runs/B0*/run.json")):
        time.sleep(0.02)
    for name in [path.stem for path in cluster.glob("*.state") if path.read_text() == "RUNNING"]:
        subprocess.run(["scancel", name, "--signal=USR2"], check=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_of_slurm_say_and_leave_what_one_process_does_also_when_they_are_preempted(
    one_task: Settings, tmp_path: Path, cluster: Path
) -> None:
    settings = changed(one_task, {"tasks.mine.training.epochs": 40, "tasks.mine.training.checkpoint_minutes": 0.001})
    before, bench = bench_in(tmp_path / "serial", settings), bench_in(tmp_path / "results", settings)
    expected, done = everything(before, serial), threading.Event()
    thread = threading.Thread(target=preempt, args=(cluster, bench.results, done))
    thread.start()
    try:
        said = everything(bench, lambda bench: on_slurm(bench, 2))
    finally:
        done.set()
        thread.join()
    assert said == expected
    for pattern in ("raw_runs/*/predictions.jsonl", "models/*/*.safetensors"):
        made = {path.relative_to(before.results): path.read_bytes() for path in before.results.glob(pattern)}
        assert made and made == {
            path.relative_to(bench.results): path.read_bytes() for path in bench.results.glob(pattern)
        }
    assert list(cluster.glob("*.requeued"))
    assert list(bench.layout.exchanges.iterdir()) == []
    first = (cluster / "1.script").read_text()
    assert "--cpus-per-task=1" in first and "--requeue" in first and "--time" not in first and "wckey" not in first


def test_what_sbatch_refuses_is_one_line(
    one_task: Settings,
    tmp_path: Path,
    cluster: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "none")
    job = Job(one_task, tmp_path, RunSpec("zero-shot", "mine", "little"))
    with (
        on_slurm(bench_in(tmp_path, one_task), 1) as place,
        pytest.raises(SettingsError, match="--executor slurm: sbatch refuses: .*invalid partition specified: none"),
    ):
        place([job], lambda job, result: None)
    assert capfd.readouterr().err == ""


def test_without_slurm_it_is_refused(one_task: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(SettingsError, match="--executor slurm: no sbatch here"),
        on_slurm(bench_in(tmp_path, one_task), 1),
    ):
        pass

"""Jobs on Ray give what jobs one after the other give, whatever happens to workers and to the command."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
import torch

from kdsuite import pipeline
from kdsuite.config import Settings, changed
from kdsuite.errors import SettingsError
from kdsuite.executors import ray as executor
from kdsuite.executors.serial import serial
from kdsuite.runtime import device
from kdsuite.runtime.process import sigterm_as_ctrl_c
from kdsuite.runtime.progress import Progress

GPU = {"CPU": 1, "GPU": 1}
STAGES = "cache", "train"


def start(settings: Settings, results: Path) -> int:
    """Begin the stages in a child of this process, on two GPUs that Ray believes in; what it says is in log.txt."""
    if child := os.fork():
        return child
    status = 1
    try:
        os.environ["RAY_ADDRESS"] = "127.0.0.1:9"  # nobody asked for that cluster
        ray.init = partial(ray.init, num_cpus=2, num_gpus=2)
        log = os.open(results / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1)  # pytest's go elsewhere
        where = partial(executor.on_ray, address="", each=GPU)
        with sigterm_as_ctrl_c():
            status = len(pipeline.run(settings, results, STAGES, progress=Progress(), executor=where).failed)
    except KeyboardInterrupt:
        status = 130
    finally:
        sys.stdout.flush()
        os._exit(status)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_work(child: int) -> list[psutil.Process]:
    """Ray's workers that do a job; they are called after what they do."""
    found = []
    for process in psutil.Process(child).children(recursive=True):
        try:
            if process.cmdline()[0].startswith("ray::Actor.do"):
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return found


def completed(results: Path) -> dict[Path, bytes]:
    records = {path: path.read_bytes() for path in results.glob("raw_runs/*/run.json")}
    return {path: record for path, record in records.items() if b'"status": "completed"' in record}


def left(results: Path) -> dict[Path, bytes]:
    patterns = "raw_runs/*/predictions.jsonl", "models/*/*.safetensors", "teacher_cache/*/*/*.safetensors"
    return {path.relative_to(results): path.read_bytes() for pattern in patterns for path in results.glob(pattern)}


def until(true: Any) -> Any:
    while not (found := true()):
        time.sleep(0.02)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_and_the_command_are_killed_and_stopped_and_each_run_is_trained_once(
    one_task: Settings, tmp_path: Path
) -> None:
    calm, results = tmp_path / "serial", tmp_path / "results"
    results.mkdir()
    changes = {"seeds": [42, 43], "tasks.mine.training.epochs": 4}
    settings = changed(one_task, changes | {"tasks.mine.training.checkpoint_minutes": 0.001})
    pipeline.run(settings, calm, STAGES, progress=Progress.silent(), executor=serial)

    child = start(settings, results)
    until(lambda: at_work(child))[0].kill()
    until(lambda: len(completed(results)) > 1)
    kept, workers = completed(results), at_work(child)
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    assert not psutil.wait_procs(workers, timeout=60)[1]
    child = start(settings, results)
    until(lambda: at_work(child))
    os.kill(child, signal.SIGTERM)
    assert ended(child) == 130
    pipeline.run(settings, results, STAGES, progress=Progress.silent(), executor=serial)  # what is left

    assert left(results) == left(calm) and len(left(calm)) == 6 + 4 + 1
    assert {path: path.read_bytes() for path in kept} == kept
    said = (results / "log.txt").read_text()
    assert "its worker ended" in said and "2 jobs at once, each with 1 CPU, 1 GPU" in said
    for name in (path.parent.name for path in completed(results)):
        assert sum(f"] {name}: accuracy" in line for line in said.splitlines()) <= 1
    assert "raylet" not in said and "Traceback" not in said and "WARNING" not in said
    assert not list(results.glob("raw_runs/*/checkpoint*"))


def test_what_no_node_has_is_refused_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def node(alive: bool = True, **resources: float) -> dict[str, Any]:
        return {"Alive": alive, "Resources": resources}

    nodes = [node(CPU=8, memory=4e9), node(CPU=4, memory=16e9, GPU=2), node(False, CPU=64, memory=1e12, GPU=8)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert executor.capacity({"CPU": 1, "memory": 3.9e9}) == 1 + 4
    assert executor.capacity({"CPU": 1, "GPU": 0.5}) == 4
    assert executor.capacity({"CPU": 3, "GPU": 0.5}) == 1
    with pytest.raises(SettingsError, match=r"a job needs 1 CPU, 32.0 GB, and no node .* has 8 CPU, 4.0 GB$"):
        executor.capacity({"CPU": 1, "memory": 32e9})
    with pytest.raises(SettingsError, match=r"a job needs 1 CPU, 4 GPU, and no node .* has 8 CPU, 0 GPU$"):
        executor.capacity({"CPU": 1, "GPU": 4})


def test_what_a_job_needs_is_a_share_of_a_gpu_or_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory_bytes", lambda place: (80, 70))
    bench: Any = SimpleNamespace(settings=SimpleNamespace(threads=None))
    bench.choice = SimpleNamespace(device=torch.device("cpu"))
    assert executor.needs(bench, 30) == {"CPU": 1, "memory": 30}
    bench.choice, bench.settings.threads = SimpleNamespace(device=torch.device("cuda")), 4
    assert executor.needs(bench, 30) == {"CPU": 4, "GPU": 0.5}
    assert executor.needs(bench, 100) == {"CPU": 4, "GPU": 1}


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nothing answers."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def test_a_cluster_that_is_not_there_is_refused_at_once(nobody: str) -> None:
    with (
        pytest.raises(SettingsError, match=rf"--executor ray:{nobody}: that cluster cannot be joined: .*refused"),
        executor.on_ray(SimpleNamespace(), nobody, GPU),  # pyright: ignore[reportArgumentType]
    ):
        pass

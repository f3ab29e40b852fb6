"""Jobs side by side give what jobs one after the other give, whatever happens to a worker."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from kdsuite.config import Settings, changed
from kdsuite.errors import RunError, SettingsError
from kdsuite.executors.processes import DEATHS, count, processes
from kdsuite.executors.serial import serial
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.job import Done, Job
from kdsuite.pipeline import executor_of
from kdsuite.plan import RunSpec, expand
from kdsuite.runtime import device
from kdsuite.runtime.device import GPUS, gpus
from kdsuite.runtime.progress import Progress
from kdsuite.store.locks import Locks


def bench_in(results: Path, settings: Settings) -> Bench:
    choice = device.choose(settings.device, settings.dtype, settings.threads)
    return Bench(settings, results, choice, Progress.silent())


def outcome(result: Callable[[], Done]) -> str:
    try:
        return result().line
    except RunError as error:
        return f"failed: {error}"


def everything(bench: Bench, place: Any) -> list[dict[str, str]]:
    """What came of the runs before the teacher was asked, of the teacher, and of the runs again."""
    runs = [Job(bench.settings, bench.results, spec) for spec in expand(bench.settings) if spec.method != "teacher"]
    teaching = [Job(bench.settings, bench.results, RunSpec("teacher", "mine"), "teach")]
    said = []
    for jobs in (runs, teaching, runs):
        lines: dict[str, str] = {}
        place(jobs, lambda job, result, lines=lines: lines.update({job.name: outcome(result)}))
        said.append(lines)
    return said


ROOT = Path(__file__).parents[2]
SECOND = "B0", "mine", "little", 42


@pytest.mark.slow
def test_side_by_side_says_and_leaves_what_one_after_the_other_does(
    one_task: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said, left = [], []
    for name, executor in (("serial", serial), ("processes", lambda bench: processes(bench, 2))):
        bench = bench_in(tmp_path / name, one_task)
        with executor(bench) as place:
            said.append(everything(bench, place))
        made = [*bench.results.glob("raw_runs/*/predictions.jsonl"), *bench.results.glob("models/*/*.safetensors")]
        left.append({path.relative_to(bench.results): path.read_bytes() for path in made})
    assert said[0] == said[1]
    assert capfd.readouterr().err == ""  # no library has spoken in a worker
    first, _, again = said[0]
    assert "are not complete; run `kdsuite cache`" in first["KD1_mine_little_T2_a0.5_seed42"]
    assert first["B0_mine_little_seed42"].startswith("B0_mine_little_seed42: accuracy")
    assert again["B0_mine_little_seed42"].endswith("already there")
    assert left[0] == left[1] and len(left[0]) >= 6
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_a_job_that_ends_its_worker_again_and_again_has_failed(one_task: Settings, tmp_path: Path) -> None:
    said: dict[str, str] = {}
    killed: set[int] = set()

    def kill_all() -> None:
        while not said:
            for child in psutil.Process().children():
                if "spawn_main" in " ".join(child.cmdline()) and child.pid not in killed:
                    killed.add(child.pid)
                    child.kill()
            time.sleep(0.05)

    threading.Thread(target=kill_all, daemon=True).start()
    job = Job(one_task, tmp_path, RunSpec("zero-shot", "mine", "little"))
    with processes(bench_in(tmp_path, one_task), 1) as place:
        place([job], lambda job, result: said.update({job.name: outcome(result)}))
    assert said[job.name].startswith(
        f"failed: the process that did it ended {DEATHS} times, last with code -9, killed, often for"
    )
    assert len(killed) >= DEATHS


@pytest.mark.slow
def test_what_settles_ends_all_when_it_raises(one_task: Settings, tmp_path: Path) -> None:
    """As where the teacher's fallback is taken."""

    def settle(job: Job, result: Callable[[], Done]) -> None:
        raise RunError("enough")

    with processes(bench_in(tmp_path, one_task), 1) as place:
        with pytest.raises(RunError, match="enough"):
            place([Job(one_task, tmp_path, RunSpec("zero-shot", "mine", "little"))], settle)
        assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_what_another_process_is_at_comes_last(one_task: Settings, tmp_path: Path) -> None:
    order: list[str] = []
    first, second = (Job(one_task, tmp_path, RunSpec(*spec)) for spec in (("zero-shot", "mine", "little"), SECOND))
    bench = bench_in(tmp_path, one_task)
    with ExitStack() as held, processes(bench, 1) as place:
        assert held.enter_context(Locks(bench.layout.locks).attempt(first.name))

        def settle(job: Job, result: Callable[[], Done]) -> None:
            assert not result().skipped
            order.append(job.name)
            held.close()

        place([first, second], settle)
    assert order == [second.name, first.name]


NOT_THERE = "dask processes:0 processes:x processes:-1 serial:2 slurm:0 slurm:gpu ray:2 ray:head ray:ray://head:10001"


@pytest.mark.parametrize("name", [*NOT_THERE.split(), ""])
def test_an_executor_that_there_is_not_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=r"serial, processes\[:N\], ray\[:HOST:PORT\] and slurm\[:N\]"):
        executor_of(name)


def test_the_executors_that_the_page_lists_are_those_that_there_are() -> None:
    listed = re.findall(r"^\| `(\w+)(?:\[:.*?\])?` \|", (ROOT / "docs" / "scale.md").read_text("utf-8"), re.M)
    assert list(dict.fromkeys(listed)) == ["serial", "processes", "ray", "slurm"]  # and again, what they cost
    for name in listed:
        assert callable(executor_of(name))


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_cluster_gives_a_job_one_device_and_says_so_before_it_is_asked(name: str, one_task: Settings) -> None:
    bench: Any = SimpleNamespace(settings=changed(one_task, {"devices_per_job": 2}))
    with pytest.raises(
        SettingsError, match=rf"--executor {name} gives each job one device; .* take serial or processes"
    ):
        executor_of(name)(bench)


@pytest.mark.parametrize(("name", "library"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_executor_whose_library_is_not_installed_says_how_to(
    name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"kdsuite.executors.{name}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(SettingsError, match=rf"--executor {name} needs {library}: pip install 'kdsuite\[{name}\]'"):
        executor_of(name)


def test_gpus_are_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GPUS, "3,5")
    assert gpus(torch.device("cuda")) == ["3", "5"]
    assert gpus(torch.device("cuda", 1)) == ["5"]
    assert gpus(torch.device("cpu")) == []


def test_as_many_at_once_as_cores_and_memory_bear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cores", lambda: 8)
    monkeypatch.setattr(device, "memory_bytes", lambda place: (64, 40))
    bench: Any = SimpleNamespace(choice=SimpleNamespace(device=torch.device("cpu")), settings=None)

    def at_once(threads: int | None, needed: int, devices: int = 1) -> int:
        bench.settings = SimpleNamespace(threads=threads, devices_per_job=devices)
        return count(bench, needed)

    assert at_once(1, 10) == 4  # memory
    assert at_once(1, 1) == 8  # cores
    assert at_once(4, 1) == 2
    assert at_once(16, 1) == at_once(1, 100) == 1
    monkeypatch.setenv(GPUS, "0,1")
    bench.choice = SimpleNamespace(device=torch.device("cuda"))
    assert at_once(1, 30) == 2  # one on each GPU
    assert at_once(1, 30, devices=2) == 1

"""What must not happen however a suite ends: something lost, something half, something else in the tables."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdsuite import cli
from kdsuite.store import records as registry

HARNESS = Path(__file__).parent / "harness.py"
TINY = Path(__file__).parents[1] / "tiny.yaml"
PACKAGE = Path(cli.__file__).parents[1]
pytestmark = pytest.mark.slow
SHORT = "--task squad --kills 2 --interrupts 1 --full-disks 1 --damage together --checkpoints 1 --rounds 1 --crews 1 "
SHORT += "--executor processes:2"  # ray: tests/executors/test_ray.py


@pytest.mark.timeout(900)
def test_whatever_happens_to_a_suite_it_ends_with_the_same_bytes() -> None:
    """A short `make faults`."""
    command = [sys.executable, str(HARNESS), *SHORT.split()]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert "SIGKILL survived: 2" in done.stdout
    assert "damaged files noticed and made anew: 30" in done.stdout
    assert "crews of processes:2 went on, killed: {'worker': 1, 'parent': 1}" in done.stdout
    assert done.stdout.endswith("differences: 0\n")


def as_somebody_without_rights() -> list[str]:
    """The start of a command whose files' permissions count, also for the superuser."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("the superuser may write everywhere, and there is no setpriv to give that up")
    return ["setpriv", "--bounding-set", "-dac_override"]


def test_a_read_only_results_folder_is_one_line_and_stays_as_it_is(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir(mode=0o555)
    command = [*as_somebody_without_rights(), sys.executable, "-m", "kdsuite.cli"]
    command += ["prepare", "--config", str(TINY), "--task", "sst2", "--results", str(results)]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1, done.stderr
    assert "Permission denied" in errors[0] and "the same command goes on where it stopped" in errors[0]
    assert list(results.iterdir()) == []


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decades to and fro between any two looks at it."""
    jumps = iter(range(10**9))

    def jumping(real=time.time) -> float:
        return real() + (-1) ** next(jumps) * 1e9

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(registry, "now", lambda: time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(jumping())))
    arguments = ["--config", str(TINY), "--task", "sst2", "--method", "B0", "--results", str(tmp_path)]
    assert cli.main(["run", *arguments]) == 0
    written = {path: path.read_bytes() for path in tmp_path.glob("raw_runs/*/run.json")}
    assert len(written) == 3  # the teacher, the student as it came, B0
    assert cli.main(["run", *arguments]) == 0
    assert {path: path.read_bytes() for path in tmp_path.glob("raw_runs/*/run.json")} == written


def test_ctrl_c_before_anything_is_written_is_no_traceback(monkeypatch, capsys) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kdsuite.config.load", interrupt)
    assert cli.main(["plan", "--config", str(TINY)]) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on where it stopped\n"

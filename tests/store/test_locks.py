"""A lock has one owner, dead owners lose it at once, and names are done once by whoever gets to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kdsuite.store import locks
from kdsuite.store.locks import Locks


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "POLL", 0.001)


def free(folder: Path, name: str = "a") -> bool:
    with Locks(folder).attempt(name) as ours:
        return ours


def test_a_lock_has_one_owner_and_is_free_again_after_the_block(tmp_path: Path):
    with Locks(tmp_path).attempt("a") as ours:
        assert ours
        assert not free(tmp_path)
        assert free(tmp_path, "b")
    assert free(tmp_path)
    with pytest.raises(KeyError), Locks(tmp_path).hold("a"):
        raise KeyError
    assert free(tmp_path)


def holder(folder: Path, what: str) -> subprocess.Popen[str]:
    """A process that holds lock `a` and then does `what`."""
    code = (
        "import os, sys, time; from pathlib import Path; from kdsuite.store.locks import Locks\n"
        f"with Locks(Path(sys.argv[1])).hold('a'):\n    print('held', flush=True); {what}"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_who_waits_is_told_for_whom_and_a_killed_owners_lock_is_taken_over(tmp_path: Path):
    process = holder(tmp_path, "time.sleep(60)")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        process.kill()

    with Locks(tmp_path, say).hold("a"):
        assert said == [f"a: process {process.pid} on {os.uname().nodename} is at it; waiting"]
    process.wait()


def test_every_name_is_done_once_those_that_others_hold_last(tmp_path: Path):
    started, done = threading.Event(), []

    def other() -> None:
        with Locks(tmp_path).hold("b"):
            started.set()
            while "c" not in done:
                pass

    thread = threading.Thread(target=other)
    thread.start()
    started.wait()
    Locks(tmp_path).in_turn(["a", "b", "c"], done.append)
    thread.join()
    assert done == ["a", "c", "b"]


def test_another_hosts_lock_is_left_alone_while_its_heart_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On a file system that does not share flock between hosts; no clock but the watcher's own counts."""
    path, here = tmp_path / "a", Locks(tmp_path)
    path.write_text(json.dumps({"pid": 1, "host": "another-host", "since": 0}))
    now = [1000.0]
    monkeypatch.setattr(locks.time, "monotonic", lambda: now[0])
    for beat in (5e9, 1.0, 7.0):  # seconds: in the far future, in the past, whatever the other's clock says
        os.utime(path, (beat, beat))
        now[0] += locks.STALE - 1
        with here.attempt("a") as ours:
            assert not ours
    now[0] += locks.STALE + 1
    with here.attempt("a") as ours:
        assert ours


def test_nothing_is_left_behind(tmp_path: Path):
    with Locks(tmp_path).hold("a"):
        assert not free(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_many_who_take_and_remove_a_lock_never_hold_it_together(tmp_path: Path):
    """The file is removed with every release, so that others hold a lock on a file that is gone."""
    inside, seen = [], []

    def work() -> None:
        for _ in range(100):
            with Locks(tmp_path).hold("a"):
                inside.append(1)
                seen.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 400


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 3}'])
def test_a_lock_file_without_a_readable_owner_is_free(tmp_path: Path, content: str):
    (tmp_path / "a").write_text(content)
    assert free(tmp_path)


def test_the_heart_beats_while_the_lock_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "BEAT", 0.01)
    with Locks(tmp_path).hold("a"):
        os.utime(tmp_path / "a", (1.0, 1.0))
        while (tmp_path / "a").stat().st_mtime == 1.0:
            pass


@pytest.mark.parametrize("arguments", [["plan"], ["run", "--set", "threads=1"], ["export", "a", "b"]])
def test_an_operating_system_without_such_locks_is_told_in_one_line(tmp_path: Path, arguments: list[str]):
    """As on Windows, where the module is missing: everything can be imported, nothing is begun."""
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "import kdsuite.pipeline, kdsuite.extras.notebook, kdsuite.forecast.doctor\n"
        f"from kdsuite import cli; sys.exit(cli.main({arguments}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (1, "", [])
    line = "error: kdsuite runs on Linux and macOS; on Windows, install and run it inside of WSL"
    assert done.stderr.splitlines()[-1] == line
    assert "Traceback" not in done.stderr

"""A lock has one owner, dead owners lose it at once, and names are done once by whoever gets to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdsuite.store import locks
from kdsuite.store.files import atomic_write_text
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


def sign(path: Path, host: str = "another-host", pid: int = 1) -> None:
    """A lock as filelock writes it."""
    record = {"pid": pid, "host": host, "mode": "lease", "token": "f" * 32, "duration": locks.STALE}
    path.write_text("".join(["filelock/2\n", *(f"{name}={value}\n" for name, value in record.items())]))


def test_another_hosts_lock_is_left_alone_while_its_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No clock but the watcher's own counts."""
    path, here = tmp_path / "a", Locks(tmp_path)
    sign(path)
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


def test_a_file_system_that_cannot_exchange_names_delays_a_dead_owners_end_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As NFS and SMB; there filelock takes nothing over."""
    monkeypatch.setattr("filelock._soft.exchange_names", lambda *names: False)
    monkeypatch.setattr("filelock._util.exchange_names", lambda *names: False)
    monkeypatch.setattr(locks, "STALE", 0.3)
    monkeypatch.setattr(locks, "BEAT", 0.1)
    dead = holder(tmp_path, "pass")
    dead.wait()
    sign(tmp_path / "a", os.uname().nodename, dead.pid)
    assert not free(tmp_path)
    with Locks(tmp_path).hold("a"):
        assert not free(tmp_path)
    assert list(tmp_path.iterdir()) == []


SUSPENDED = """
import sys; from pathlib import Path
from kdsuite.errors import LockLost
from kdsuite.store import files, locks
locks.STALE, locks.BEAT, locks.POLL = 1.0, 0.2, 0.01
folder, content = Path(sys.argv[1]), Path(sys.argv[1]) / "content"
def make(temporary): (temporary / "x").write_text("mine")
with locks.Locks(folder / ".locks").hold("a"):
    files.atomic_write_text(content, "mine")
    print("held", flush=True)
    sys.stdin.readline()
    try:
        if sys.argv[2] == "file":
            files.atomic_write_text(content, "mine, later")
        else:
            with files.atomic_folder(folder / "made") as temporary: make(temporary)
    except LockLost as error:
        print(error, flush=True)
"""


@pytest.mark.parametrize("what", ["file", "folder"])
def test_who_was_suspended_and_lost_its_lock_learns_of_it_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
):
    monkeypatch.setattr(locks, "STALE", 1.0)
    monkeypatch.setattr(locks, "BEAT", 0.2)
    command = [sys.executable, "-c", SUSPENDED, str(tmp_path), what]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGSTOP)
    with Locks(tmp_path / ".locks").hold("a"):
        atomic_write_text(tmp_path / "content", "of another process")
        process.send_signal(signal.SIGCONT)
        said, complaints = process.communicate("\n", timeout=60)
        assert complaints == ""
        assert said.startswith(f"a: process {os.getpid()} on {os.uname().nodename} has taken this work over")
        assert (tmp_path / "content").read_text() == "of another process"
        assert sorted(path.name for path in tmp_path.iterdir()) == [".locks", "content"]
        assert not free(tmp_path / ".locks")  # what it let go of was not ours


def test_who_was_suspended_and_lost_nothing_goes_on(tmp_path: Path):
    command = [sys.executable, "-c", SUSPENDED, str(tmp_path), "file"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.0)  # seconds: more than its lease, but nobody was waiting
    process.send_signal(signal.SIGCONT)
    assert process.communicate("\n", timeout=60)[0] == ""
    assert (tmp_path / "content").read_text() == "mine, later"


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


@pytest.mark.parametrize("content", ["", "{", "[]", "filelock/2\npid=3\n"])
def test_a_lock_file_without_a_readable_owner_is_free_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
):
    """Its owner was killed before it had signed."""
    monkeypatch.setattr(locks, "STALE", 0.3)
    monkeypatch.setattr(locks, "BEAT", 0.1)
    (tmp_path / "a").write_text(content)
    said: list[str] = []
    with Locks(tmp_path, said.append).hold("a"):
        assert said == ["a: another process is at it; waiting"]


def test_the_heart_beats_while_the_lock_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "BEAT", 0.01)
    with Locks(tmp_path).hold("a"):
        os.utime(tmp_path / "a", (1.0, 1.0))
        while (tmp_path / "a").stat().st_mtime == 1.0:
            pass


def test_the_locks_can_be_imported_where_there_is_no_fcntl():
    """As on Windows."""
    code = "import sys; sys.modules['fcntl'] = None; import kdsuite.store.locks"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code]).returncode == 0


@pytest.mark.slow
def test_an_operating_system_that_nothing_was_tried_on_is_told_in_one_line(tmp_path: Path):
    """Everything can be imported, nothing is begun."""
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "import kdsuite.pipeline, kdsuite.extras.notebook, kdsuite.forecast.doctor\n"
        "from kdsuite.runtime import process\n"
        "process.sys = type('', (), {'platform': 'win32', 'modules': sys.modules})\n"
        "from kdsuite import cli; commands = ['plan'], ['run', '--set', 'threads=1'], ['export', 'a', 'b']\n"
        "sys.exit(sum(cli.main(command) for command in commands))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (3, "", [])
    line = "error: kdsuite runs on Linux and macOS; on Windows, install and run it inside of WSL"
    assert done.stderr.splitlines()[-3:] == [line] * 3
    assert "Traceback" not in done.stderr

"""One owner per artefact: several processes can work on one results folder.

A lock is a small file in `<results>/.locks` that the operating system locks for a process (flock) and frees
when that process ends, however it ends: a dead owner's lock is taken over without asking any clock. The file
names its owner (host, process, its start) for those who wait, and its time of change is the owner's heartbeat.
That one counts where two hosts share a folder but not its locks: another host's lock is left alone until its
heart has not been seen beating for a while, by the clock of the one who watches.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from kdsuite.errors import KdsuiteError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BEAT = 20.0  # seconds between two heartbeats
STALE = 180.0  # seconds without one after which another host's owner is taken for dead
POLL = 0.5  # seconds between two looks at a lock that somebody else holds
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}  # of file systems that cannot lock


def check_supported() -> None:
    """KdsuiteError where the operating system has no such locks."""
    if fcntl is None:
        raise KdsuiteError("kdsuite runs on Linux and macOS; on Windows, install and run it inside of WSL")


def this_process() -> dict[str, Any]:
    """Who we are: host, process id and its start."""
    process = psutil.Process()
    return {"pid": process.pid, "host": socket.gethostname(), "since": process.create_time()}


@dataclass
class Locks:
    """The locks of one results folder. `say` is told for whom we wait."""

    folder: Path
    say: Callable[[str], None] = lambda line: None
    _seen: dict[str, tuple[float, float]] = field(
        default_factory=dict
    )  # name: its last beat, and when it was new
    _told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        check_supported()

    @contextmanager
    def attempt(self, name: str) -> Iterator[bool]:
        """Hold the lock while the block lasts, unless somebody else does; yields whether it is ours."""
        path = self.folder / name
        file = self._take(name, path)
        if file is None:
            yield False
            return
        with file:
            try:
                _sign(file.fileno(), this_process())
                with _heartbeat(path):
                    yield True
            finally:
                path.unlink(missing_ok=True)  # while it is ours: nobody else's is removed

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold the lock while the block lasts, after whoever has it; says for whom it waits."""
        while True:
            with self.attempt(name) as ours:
                if ours:
                    yield
                    return
            self._wait([name])

    def in_turn(self, names: Sequence[str], do: Callable[[str], object]) -> None:
        """`do(name)` once for every name, holding its lock; names that others hold come last."""
        waiting = list(names)
        while waiting:
            held = [name for name in waiting if not self._do(name, do)]
            if len(held) == len(waiting):
                self._wait(held)
            waiting = held

    def _do(self, name: str, do: Callable[[str], object]) -> bool:
        with self.attempt(name) as ours:
            if ours:
                do(name)
        return ours

    def _wait(self, names: Sequence[str]) -> None:
        for name in set(names) - self._told:
            self.say(f"{name}: {_owner_words(self.folder / name)} is at it; waiting")
            self._told.add(name)
        time.sleep(POLL)

    def _take(self, name: str, path: Path) -> BinaryIO | None:
        """The lock's open file, locked; None while somebody else has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            with ExitStack() as unless_ours:
                file = unless_ours.enter_context(path.open("a+b"))
                if not self._seize(file, name):
                    return None
                if _is_at(file, path):  # else its last owner has removed it meanwhile
                    unless_ours.pop_all()
                    return file

    def _seize(self, file: BinaryIO, name: str) -> bool:
        assert fcntl is not None  # or there were no Locks
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            if not self._told:
                self.say("this file system has no locks: let one process at a time work on these results")
                self._told.add(name)
        owner = _owner(file)
        return owner is None or owner["host"] == socket.gethostname() or self._silent(file, name)

    def _silent(self, file: BinaryIO, name: str) -> bool:
        """Whether another host's heart was not seen beating for so long that its owner is dead."""
        beat, now = os.fstat(file.fileno()).st_mtime, time.monotonic()
        if name not in self._seen or self._seen[name][0] != beat:
            self._seen[name] = beat, now
        return now - self._seen[name][1] > STALE


def _is_at(file: BinaryIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _sign(descriptor: int, owner: dict[str, Any]) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(owner).encode())


def _owner(file: BinaryIO) -> dict[str, Any] | None:
    """Who signed a lock, None if nobody did (or was killed while signing)."""
    file.seek(0)
    try:
        owner = json.loads(file.read())
    except ValueError:
        return None
    return owner if isinstance(owner, dict) and {"pid", "host"} <= owner.keys() else None


def _owner_words(path: Path) -> str:
    with suppress(FileNotFoundError), path.open("rb") as file:
        if owner := _owner(file):
            return f"process {owner['pid']} on {owner['host']}"
    return "another process"


@contextmanager
def _heartbeat(path: Path) -> Iterator[None]:
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            with suppress(OSError):
                os.utime(path)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        ended.set()

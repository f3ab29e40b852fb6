"""One owner per artefact: several processes, on one machine or many, can work on one results folder.

A lock is a small file in `<results>/.locks` that names its owner (filelock's SoftFileLease) and whose time of change
is the owner's heartbeat. An owner that ended on this machine loses it at once. Any other is taken for dead when no
heartbeat was seen for a while, by the clock of the one who waits. So a process that was suspended can lose a lock
that it believes in: whatever it writes under one is held against the lock just before it takes its place.
"""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from filelock import SoftFileLease, Timeout

from kdsuite.errors import LockLost
from kdsuite.runtime.process import check_supported
from kdsuite.store import files

BEAT = 20.0  # seconds between two heartbeats
STALE = 180.0  # seconds without one after which an owner is taken for dead
POLL = 0.5  # seconds between two looks at a lock


@dataclass
class Locks:
    """The locks of one results folder. `say` is told for whom we wait."""

    folder: Path
    say: Callable[[str], None] = lambda line: None
    _leases: dict[str, SoftFileLease] = field(default_factory=dict)
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)  # its last beat, and when it was new
    _told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        check_supported()

    @contextmanager
    def attempt(self, name: str) -> Iterator[bool]:
        """Hold the lock while the block lasts, unless somebody else does; yields whether it is ours."""
        if name not in self._leases:
            path = self.folder / name
            self._leases[name] = SoftFileLease(path, lease_duration=STALE, heartbeat_interval=BEAT)
        lease = self._leases[name]
        try:
            lease.acquire(blocking=False)
            token = lease.token
        except Timeout:
            token = None
        if token is None:
            yield False
            return

        def still_ours() -> None:
            for patience in (POLL, 0.0):  # who looks whether we are dead moves the file away for a moment
                if (owner := lease.owner) is not None and owner.token == token:
                    return
                time.sleep(patience)
            raise LockLost(
                f"{name}: {_words(lease)} has taken this work over, because this process was suspended for long; "
                "nothing more of it is written. The same command, started again, shares the rest"
            )

        files.guards.append(still_ours)
        try:
            yield True
        finally:
            files.guards.remove(still_ours)
            lease.release()

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold the lock while the block lasts, after whoever has it; says for whom it waits.

        Whatever is written in the block is LockLost if another process has taken the lock over meanwhile.
        """
        while True:
            with self.attempt(name) as ours:
                if ours:
                    yield
                    return
            self.wait([name])

    def in_turn(self, names: Sequence[str], do: Callable[[str], object]) -> None:
        """`do(name)` once for every name, holding its lock; names that others hold come last."""
        waiting = list(names)
        while waiting:
            held = []
            for name in waiting:
                with self.attempt(name) as ours:
                    if ours:
                        do(name)
                    else:
                        held.append(name)
            if len(held) == len(waiting):
                self.wait(held)
            waiting = held

    def wait(self, names: Sequence[str]) -> None:
        """A moment, for locks that others were found to hold; it is told once who does, and who is dead loses it."""
        for name in names:
            lease = self._leases[name]
            if name not in self._told:
                self._told.add(name)
                self.say(f"{name}: {_words(lease)} is at it; waiting")
            if self._is_silent(name) or _is_zombie(lease):
                lease.force_break()
        time.sleep(POLL)

    def _is_silent(self, name: str) -> bool:
        """Whether a lock was not changed for longer than even filelock waits.

        It does not take over what it cannot read, nor on a file system that cannot exchange two names (NFS, SMB).
        """
        try:
            beat = (self.folder / name).stat().st_mtime_ns
        except FileNotFoundError:
            return False
        if self._seen.get(name, (None,))[0] != beat:
            self._seen[name] = beat, time.monotonic()
        return time.monotonic() - self._seen[name][1] > STALE + BEAT


def _is_zombie(lease: SoftFileLease) -> bool:
    """Whether a lock's owner has ended but nobody has asked how, which filelock takes for alive."""
    owner = lease.owner
    if owner is None or owner.hostname.partition("?")[0] != socket.gethostname():
        return False
    with suppress(psutil.Error):
        return psutil.Process(owner.pid).status() == psutil.STATUS_ZOMBIE
    return False


def _words(lease: SoftFileLease) -> str:
    """Who has a lock. Within a container, filelock appends its process namespace to the host's name."""
    owner = lease.owner
    return f"process {owner.pid} on {owner.hostname.partition('?')[0]}" if owner else "another process"

"""Every job is done once; those that another process holds come last."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from kdsuite.executors.serial import place
from kdsuite.store.locks import Locks


@dataclass(frozen=True)
class Named:
    name: str


def test_each_job_is_done_once_under_its_lock_in_order(tmp_path: Path) -> None:
    locks, done = Locks(tmp_path), []

    def do(job: Named) -> None:
        with Locks(tmp_path).attempt(job.name) as ours:
            assert not ours  # it is held while the job is done
        done.append(job.name)

    place([Named("a"), Named("b"), Named("c")], do, locks)  # pyright: ignore[reportArgumentType]
    assert done == ["a", "b", "c"]


def test_what_somebody_else_is_at_comes_last(tmp_path: Path) -> None:
    done: list[str] = []
    begun, over = threading.Event(), threading.Event()

    def other() -> None:
        with Locks(tmp_path).hold("a"):
            begun.set()
            over.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait(30)

    def do(job: Named) -> None:
        done.append(job.name)
        if job.name == "c":
            over.set()

    started = time.monotonic()
    place([Named(name) for name in "abc"], do, Locks(tmp_path))  # pyright: ignore[reportArgumentType]
    thread.join()
    assert done == ["b", "c", "a"], time.monotonic() - started

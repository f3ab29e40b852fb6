"""Every job is done once; those that another process holds come last."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kdsuite.executors.serial import serial
from kdsuite.store.locks import Locks


@dataclass(frozen=True)
class Named:
    name: str


def named(names: str) -> Any:
    return [Named(name) for name in names]


def bench_with(locks: Locks) -> Any:
    return SimpleNamespace(locks=locks)


def test_each_job_is_done_once_under_its_lock_in_order(tmp_path: Path) -> None:
    locks, done = Locks(tmp_path), []

    def settle(job: Any, result: object) -> None:
        with Locks(tmp_path).attempt(job.name) as ours:
            assert not ours  # it is held while the job is done
        done.append(job.name)

    with serial(bench_with(locks)) as place:
        place(named("abc"), settle)
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

    def settle(job: Any, result: object) -> None:
        done.append(job.name)
        if job.name == "c":
            over.set()

    started = time.monotonic()
    with serial(bench_with(Locks(tmp_path))) as place:
        place(named("abc"), settle)
    thread.join()
    assert done == ["b", "c", "a"], time.monotonic() - started

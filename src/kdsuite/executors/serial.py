"""One job after the other, in this process; other processes with the same results folder take those that are left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdsuite.jobs.job import Job
from kdsuite.store.locks import Locks


def place(jobs: Sequence[Job], do: Callable[[Job], object], locks: Locks) -> None:
    """Do every job once, holding its lock; those that another process is at come last."""
    by_name = {job.name: job for job in jobs}
    locks.in_turn(list(by_name), lambda name: do(by_name[name]))

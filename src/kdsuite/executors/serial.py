"""One job after the other, in this process; other processes with the same results folder take those that are left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from kdsuite.jobs.bench import Bench
from kdsuite.jobs.job import Done, Job, do

Settle = Callable[[Job, Callable[[], Done]], None]
Place = Callable[[Sequence[Job], Settle], None]


@contextmanager
def serial(bench: Bench) -> Iterator[Place]:
    def place(jobs: Sequence[Job], settle: Settle) -> None:
        by_name = {job.name: job for job in jobs}
        bench.locks.in_turn(list(by_name), lambda name: settle(by_name[name], partial(do, by_name[name], bench)))

    yield place

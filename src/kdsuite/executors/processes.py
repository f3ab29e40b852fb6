"""Jobs side by side on one machine: worker processes, each with a GPU or a share of the CPU's threads.

A worker takes one job at a time through a pipe of its own and does it under its lock, so that other invocations on the
same results folder, here or elsewhere, can take part. One that dies is replaced, and its job is taken up again where
its checkpoint is; a job that kills `DEATHS` workers has failed. The first Ctrl-C asks every worker to end after its
step, a second ends them at once. A worker whose parent has died ends by itself.
"""

from __future__ import annotations

import os
import signal
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from kdsuite.errors import RunError
from kdsuite.executors.hand import Hand, outcome
from kdsuite.executors.serial import Place, Settle
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.job import Job
from kdsuite.jobs.team import dismiss
from kdsuite.runtime import device
from kdsuite.runtime.process import begin, end_with_parent, sigterm_as_ctrl_c

DEATHS = 3  # of workers at one job, after which it has failed
ENDED = (EOFError, ConnectionResetError, BrokenPipeError)  # what a pipe says of a process that is gone


@dataclass
class Worker:
    process: SpawnProcess
    pipe: Connection
    job: Job | None = None

    def give(self, job: Job) -> None:
        self.job = job
        with suppress(*ENDED):  # that it is gone is seen when it is listened to
            self.pipe.send(job)


def count(bench: Bench, needed: int) -> int:
    """How many jobs that need so many bytes of a device's memory run side by side here, at least one."""
    devices = bench.settings.devices_per_job
    places = len(device.gpus(bench.choice.device)) // devices or 1
    _, free = device.memory_bytes(bench.choice.device)
    threads = devices * (bench.settings.threads or 1)
    return max(1, min(device.cores() // threads, places * (free // needed if needed else 1)))


@contextmanager
def processes(bench: Bench, workers: int) -> Iterator[Place]:
    """Up to so many at once; they are started when first needed and kept until the block ends."""
    crew: list[Worker] = []
    try:
        yield partial(_place, bench, workers, crew)
    finally:
        _dismiss(crew)


def _place(bench: Bench, workers: int, crew: list[Worker], jobs: Sequence[Job], settle: Settle) -> None:
    try:
        _distribute(bench, workers, crew, jobs, settle)
    except BaseException:
        _dismiss(crew)
        crew.clear()
        raise


def _distribute(bench: Bench, workers: int, crew: list[Worker], jobs: Sequence[Job], settle: Settle) -> None:
    waiting, deaths = deque(jobs), Counter[str]()
    while len(crew) < min(workers, len(jobs)):
        crew.append(_hire(bench, len(crew), workers))
    while waiting or any(worker.job for worker in crew):
        for worker in crew:
            if worker.job is None and waiting:
                worker.give(waiting.popleft())
        for pipe in connection.wait([worker.pipe for worker in crew if worker.job]):
            number, worker = next((n, worker) for n, worker in enumerate(crew) if worker.pipe is pipe)
            job = worker.job
            assert job is not None
            try:
                what, value = worker.pipe.recv()
            except ENDED:
                worker.process.join()
                deaths[job.name] += 1
                status = worker.process.exitcode
                code = f"code {status}" + (", killed, often for want of memory" if status == -9 else "")
                if deaths[job.name] < DEATHS:
                    bench.progress.say(f"{job.title}: its process ended ({code}); it is done again")
                    waiting.appendleft(job)
                else:
                    settle(job, outcome(RunError(f"the process that did it ended {DEATHS} times, last with {code}")))
                bench.progress.mirror(number, None)
                crew[number] = _hire(bench, number, workers)
                continue
            if what == "line":
                bench.progress.say(value)
            elif what == "work":
                bench.progress.mirror(number, value)
            else:
                worker.job = None
                if value is None:  # somebody else is at it
                    waiting.append(job)
                else:
                    settle(job, outcome(value))


def _hire(bench: Bench, number: int, workers: int) -> Worker:
    """Start a worker: on as many GPUs as a job needs of those there are, in turn; else with its share of the CPU's
    threads."""
    ours, its = get_context("spawn").Pipe()
    devices = bench.settings.devices_per_job
    threads = bench.settings.threads or max(1, bench.choice.threads // (workers * devices))
    about = bench.choice.device.type, bench.choice.dtype_name, threads, bench.progress.interval
    begun = f"{__name__}:{work.__name__}", its, *about
    process = get_context("spawn").Process(target=begin, args=begun, daemon=devices == 1)  # else it has its own
    gpus = device.gpus(bench.choice.device)
    places = [gpus[at : at + devices] for at in range(0, len(gpus) - devices + 1, devices)] or [[]]
    with device.only(places[number % len(places)]):
        process.start()
    its.close()
    return Worker(process, ours)


def _dismiss(crew: Sequence[Worker]) -> None:
    """End all workers: idle ones at once, others after their step; at once if Ctrl-C comes (again)."""
    for worker in crew:
        worker.pipe.close()
    for _ in range(2):
        for worker in crew:
            if worker.job and worker.process.is_alive():
                worker.process.terminate()
        try:
            for worker in crew:
                worker.process.join()
            return
        except KeyboardInterrupt:
            continue
    for worker in crew:
        worker.process.kill()


# --- in the worker


def work(pipe: Connection, place: str, dtype: str, threads: int, interval: float) -> None:
    """Do the jobs that come through the pipe, until it is closed."""
    os.setsid()  # a terminal's Ctrl-C goes to the parent, which passes it on
    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))

    def tell(what: str, value: Any) -> None:
        with suppress(*ENDED):  # the parent has closed it: it waits for our end
            pipe.send((what, value))

    hand = Hand(place, dtype, threads, interval, tell)
    with sigterm_as_ctrl_c(), suppress(KeyboardInterrupt, *ENDED):
        while True:
            tell("done", hand.attempt(pipe.recv()))
    dismiss()

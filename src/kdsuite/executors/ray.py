"""Jobs on a Ray cluster: workers are actors, each with a share of a GPU, or with CPUs and memory.

Only Ray Core. A worker takes one job at a time and does it under its lock, so that other invocations take part. One
that dies is replaced, and its job is taken up again where its checkpoint is; a job that kills `DEATHS` workers has
failed. An error of a run is its result and never tried again. The first Ctrl-C ends every worker after its step, a
second at once. Ray waits silently for what no node has, and for a cluster that is not there: both are refused here.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# read when ray is imported, and by what it starts: no statistics sent, no packing of this folder under `uv run`
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
import ray
import ray._private.worker as driver
from ray.exceptions import RayActorError, RayError

from kdsuite.errors import KdsuiteError, RunError, SettingsError, first_line
from kdsuite.executors.exchange import LOOK, SLOW, Exchange, exchange
from kdsuite.executors.hand import outcome
from kdsuite.executors.processes import DEATHS
from kdsuite.executors.serial import Place, Settle
from kdsuite.executors.worker import Actor
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.job import Job
from kdsuite.runtime import device
from kdsuite.runtime.process import sigterm_as_ctrl_c

Needs = Mapping[str, float]  # of one job, under Ray's names of resources
KNOCK = 5.0  # seconds in which a cluster's address has to answer
PATIENCE = 60.0  # seconds without a free worker, after which it is told
STORE = 100 * 2**20  # bytes for objects in a cluster of our own, instead of 30 % of the memory: they are small


@dataclass
class Worker:
    actor: Any
    answer: Any  # that is waited for; None for an idle worker's
    job: Job | None = None


def needs(bench: Bench, peak: int) -> Needs:
    """What a job needs that takes `peak` bytes of the device's memory."""
    threads = bench.settings.threads or 1
    if bench.choice.device.type != "cuda":
        return {"CPU": threads, "memory": peak}
    total, _ = device.memory_bytes(bench.choice.device)
    return {"CPU": threads, "GPU": 1 / max(1, total // peak) if peak else 1}


@contextmanager
def on_ray(bench: Bench, address: str, each: Needs) -> Iterator[Place]:
    """As many at once as the cluster bears of what each needs; one of this machine alone if there is no address."""
    with sigterm_as_ctrl_c():
        _connect(address)
        try:
            there = capacity(each)
            bench.progress.say(f"up to {there} jobs at once, each with {_words(each)}")
            crew: list[Worker] = []
            with sigterm_as_ctrl_c(), exchange(bench.layout.exchanges) as box:  # again: Ray has taken SIGTERM
                try:
                    yield partial(_place, bench, each, box, crew)
                finally:
                    _dismiss(crew, box)
        finally:
            ray.shutdown()


def _connect(address: str) -> None:
    """SettingsError if there is no such cluster; without an address, RAY_ADDRESS is not looked at either."""
    driver._worker_logs_enabled = False  # else Ray prints what its nodes report, whatever log_to_driver says
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if not address:
        ray.init("local", include_dashboard=False, object_store_memory=STORE, **quiet)
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK).close()
        ray.init(address, **quiet)
    except (OSError, OverflowError, RuntimeError, ValueError, RayError) as error:
        raise SettingsError(f"--executor ray:{address}: that cluster cannot be joined: {first_line(error)}") from error


def capacity(each: Needs) -> int:
    """How many jobs with such needs the cluster bears at once; SettingsError if no node bears one."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    counts = [
        int(min(node.get(name, 0) / amount for name, amount in each.items() if amount) + 1e-6)  # thirds of a GPU
        for node in nodes
    ]
    if not any(counts):
        best = max(nodes, key=lambda node: [node.get(name, 0) for name in each], default={})
        raise SettingsError(
            f"--executor ray: a job needs {_words(each)}, and no node of the cluster has that; the largest has "
            + _words({name: best.get(name, 0) for name in each})
        )
    return sum(counts)


def _words(amounts: Needs) -> str:
    units = {"CPU": lambda n: f"{n:g} CPU", "GPU": lambda n: f"{n:.2g} GPU", "memory": lambda n: f"{n / 1e9:.1f} GB"}
    return ", ".join(units[name](amount) for name, amount in amounts.items())


def _place(bench: Bench, each: Needs, box: Exchange, crew: list[Worker], jobs: Sequence[Job], settle: Settle) -> None:
    try:
        _distribute(bench, each, box, crew, jobs, settle)
    except BaseException as error:
        _dismiss(crew, box)
        if isinstance(error, RayError):
            raise KdsuiteError(f"--executor ray: {first_line(error)}; the same command goes on") from error
        raise


def _distribute(
    bench: Bench, each: Needs, box: Exchange, crew: list[Worker], jobs: Sequence[Job], settle: Settle
) -> None:
    waiting, deaths, told = deque(jobs), Counter[str](), time.monotonic() + PATIENCE
    while len(crew) < min(capacity(each), len(jobs)):
        crew.append(_hire(bench, each, box, len(crew)))
    while waiting or any(worker.job for worker in crew):
        for worker in crew:
            if worker.answer is None and waiting:
                worker.job = waiting.popleft()
                worker.answer = worker.actor.do.remote(worker.job)
        answers = [worker.answer for worker in crew if worker.answer is not None]
        for answer in ray.wait(answers, timeout=LOOK)[0]:
            number, worker = next((n, worker) for n, worker in enumerate(crew) if worker.answer is answer)
            job, worker.job, worker.answer = worker.job, None, None
            try:
                result = ray.get(answer)
            except RayActorError:
                deaths[job.name if job else ""] += 1
                if job is None and deaths[""] == DEATHS:
                    raise
                bench.progress.mirror(number, None)
                crew[number] = _hire(bench, each, box, number)
                if job is not None and deaths[job.name] == DEATHS:
                    reason = f"the worker that did it ended {DEATHS} times (killed, often for want of memory)"
                    settle(job, outcome(RunError(reason)))
                elif job is not None:
                    bench.progress.say(f"{job.title}: its worker ended; it is done again")
                    waiting.appendleft(job)
                continue
            if job is None:
                if result is not None:  # a node on which nothing can be done
                    raise result
            elif result is None:  # somebody else is at it
                waiting.append(job)
            else:
                settle(job, outcome(result))
        box.show(bench.progress)
        if not any(worker.job for worker in crew) and time.monotonic() > told:
            bench.progress.say("no worker has begun yet: others have what the cluster has; waiting")
            told = math.inf


def _hire(bench: Bench, each: Needs, box: Exchange, number: int) -> Worker:
    """Start a worker. SettingsError if the nodes that could have borne it are gone."""
    capacity(each)
    amounts = {"num_cpus": each["CPU"], "num_gpus": each.get("GPU", 0), "memory": each.get("memory") or None}
    kind: Any = ray.remote(Actor)
    actor = kind.options(**amounts, max_restarts=0, max_task_retries=0).remote()
    about = bench.choice.device.type, bench.choice.dtype_name, bench.settings.threads or 1
    interval = max(bench.progress.interval, SLOW)
    return Worker(actor, actor.ready.remote(box.folder, Path.cwd(), number, *about, interval))


def _dismiss(crew: list[Worker], box: Exchange) -> None:
    """End all workers: idle ones at once, others after their step; at once if Ctrl-C comes (again)."""
    busy = [worker.answer for worker in crew if worker.job and worker.answer is not None]
    box.stop()
    with suppress(KeyboardInterrupt):
        ray.wait(busy, num_returns=len(busy)) if busy else None
    for worker in crew:
        ray.kill(worker.actor)
    crew.clear()
    box.go_on()

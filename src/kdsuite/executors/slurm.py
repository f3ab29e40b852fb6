"""Jobs on a Slurm cluster: an array of workers that pull them, through submitit.

Each worker goes through the jobs once and does those that nobody has done or is at, under their locks; what came of
each is posted in a folder that all see. What partition, time, GPUs, account they get is said in the variables that
sbatch itself reads (SBATCH_PARTITION, SBATCH_TIMELIMIT, SBATCH_GPUS, …). Before its time is over, or where Slurm is
told to announce preemption, a worker gets submitit's signal: it ends its step, writes a checkpoint and puts itself
into the queue again. Jobs whose workers ended are given to a new array; after `DEATHS` arrays in a row of which none
ended a job, those that are left have failed.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from functools import partial
from pathlib import Path
from typing import Any

from submitit import JobEnvironment, SlurmExecutor
from submitit.core.core import Job as Task
from submitit.core.utils import FailedJobError

from kdsuite.errors import KdsuiteError, RunError, SettingsError, first_line
from kdsuite.executors.exchange import LOOK, SLOW, Exchange, Outbox, exchange
from kdsuite.executors.hand import Hand, outcome
from kdsuite.executors.processes import DEATHS
from kdsuite.executors.serial import Place, Settle
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.job import Job
from kdsuite.runtime.process import sigterm_as_ctrl_c

PROGRAMS = ("sbatch", "srun", "sacct", "scancel", "scontrol")
MOST = 1000  # workers at once: Slurm's own limit of an array is 1,001 if nobody has changed it
BEGINNING = ".begin"  # under this name a worker posts why it cannot begin
STATES = 30.0  # seconds between two questions to Slurm whether workers are still there


@contextmanager
def on_slurm(bench: Bench, workers: int) -> Iterator[Place]:
    """Up to so many workers, else one for each job; Slurm begins as many as it has room for."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        raise SettingsError(f"--executor slurm: no {missing[0]} here; give the command on a machine that has it")
    yield partial(_place, bench, workers or MOST)


def _place(bench: Bench, workers: int, jobs: Sequence[Job], settle: Settle) -> None:
    left, vain = {job.name: job for job in jobs}, 0
    while left:
        if not any(_is_free(bench, name) for name in left):
            bench.locks.wait(list(left))
            continue
        before = len(left)
        with exchange(bench.layout.exchanges) as box:
            array = _submit(bench, box, min(workers, len(left)), list(left.values()))
            bench.progress.say(f"Slurm's array {_number(array)}: {len(array)} workers")
            try:
                _follow(bench, box, array, left, settle)
            except BaseException:
                _dismiss(box, array)
                raise
            _slurm("scancel", _number(array))  # those that have not begun: nothing is left for them
            last = next((line for task in array for line in reversed((task.stderr() or "").splitlines())), "")
        vain = 0 if len(left) < before else vain + 1
        if vain == DEATHS:
            reason = (
                f"the workers that did it ended {DEATHS} times; the last said: {last or 'nothing (sacct says how)'}"
            )
            for job in left.values():
                settle(job, outcome(RunError(reason)))
            return


def _is_free(bench: Bench, name: str) -> bool:
    with bench.locks.attempt(name) as ours:
        return ours


def _submit(bench: Bench, box: Exchange, workers: int, jobs: Sequence[Job]) -> Sequence[Task[None]]:
    """Start workers. SettingsError with what sbatch says, if it refuses."""
    executor = SlurmExecutor(box.folder)
    about = bench.choice.device.type, bench.choice.dtype_name, bench.settings.threads
    pull = partial(work, jobs, box.folder, Path.cwd(), *about, max(bench.progress.interval, SLOW))
    options = {"time": None, "wckey": None, "cpus_per_task": bench.settings.threads, "job_name": "kdsuite"}
    executor.update_parameters(**options, additional_parameters={"requeue": True})
    try:
        with redirect_stderr(io.StringIO()), executor.batch():
            array = [executor.submit(pull) for _ in range(workers)]
    except FailedJobError as error:
        raise SettingsError(f"--executor slurm: sbatch refuses: {first_line(error)}") from error
    return array


def _follow(bench: Bench, box: Exchange, array: Sequence[Task[None]], left: dict[str, Job], settle: Settle) -> None:
    """Show and settle what workers do, until all is done or all of them have ended."""
    asked = time.monotonic()
    while left:
        if time.monotonic() - asked > STATES:
            array[0].watcher.update_if_long_enough("force")  # of all
            asked = time.monotonic()
        ended = all(task.done() for task in array)  # before what they posted is looked for
        box.show(bench.progress)
        if isinstance(error := box.posted(BEGINNING), Exception):
            raise error
        for name, job in list(left.items()):
            if (result := box.posted(name)) is not None:
                del left[name]
                settle(job, outcome(result))
        if ended:
            return
        time.sleep(LOOK)


def _dismiss(box: Exchange, array: Sequence[Task[None]]) -> None:
    """End all workers: those that wait at once, others after their step; at once if Ctrl-C comes (again)."""
    box.stop()
    _slurm("scancel", "--state=PENDING", _number(array))
    try:
        while not all(task.done() for task in array):
            time.sleep(LOOK)
            array[0].watcher.update_if_long_enough("force")
    except KeyboardInterrupt:
        _slurm("scancel", _number(array))


def _number(array: Sequence[Task[Any]]) -> str:
    return array[0].job_id.partition("_")[0]


def _slurm(*command: str) -> None:
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


# --- in the worker


def work(jobs: Sequence[Job], folder: Path, working: Path, *about: Any) -> None:
    """Go through the jobs once. Submitit's signal, and what ends this worker otherwise, comes after the step."""
    announced: list[int] = []

    def note(number: int, frame: Any) -> None:
        announced.append(number)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(getattr(signal, f"SIG{JobEnvironment.USR_SIG}"), note)
    box = Outbox(folder, working, int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")))
    try:
        hand = Hand(*about, tell=box.tell)
    except KdsuiteError as error:
        return box.post(BEGINNING, error)
    with sigterm_as_ctrl_c(), suppress(KeyboardInterrupt):
        for job in jobs:
            with hand.bench(job).locks.attempt(job.name) as ours:
                if ours and not box.has(job.name):
                    box.post(job.name, hand.do(job))
            box.tell("work", None)
    if announced:
        _slurm("scontrol", "requeue", JobEnvironment().job_id)
        sys.exit(1)  # without a result, so that it does not count as ended

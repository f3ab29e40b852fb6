"""A unit of work that any process on any machine can do from settings, results folder and spec alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdsuite.config import Settings
from kdsuite.jobs.asking import build_part, build_teacher_outputs
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.data import task
from kdsuite.jobs.rationales import build_rationales
from kdsuite.jobs.team import lead
from kdsuite.jobs.training import execute, is_done
from kdsuite.jobs.trials import try_models
from kdsuite.plan import RunSpec
from kdsuite.runtime import device
from kdsuite.runtime.process import silence
from kdsuite.runtime.progress import Progress


@dataclass(frozen=True)
class Job:
    """A run; or, `teach`, the teacher's own run on a task and then all that is kept of what it says, or only, with a
    `part`, what it says there; or, `try`, the trials of all models, where they are spread over devices. Picklable."""

    settings: Settings
    results: Path
    spec: RunSpec
    kind: Literal["run", "teach", "try"] = "run"
    part: int | None = None

    @property
    def name(self) -> str:
        """Of its lock: nobody else does it at the same time."""
        teaching = f"teacher-{self.spec.task}" if self.part is None else f"teacher-{self.spec.task}-part-{self.part}"
        return {"run": self.spec.run_id, "teach": teaching, "try": "trials"}[self.kind]

    @property
    def title(self) -> str:
        part = "" if self.part is None else f", part {self.part + 1}"
        return {"run": self.spec.run_id, "teach": f"teacher of {self.spec.task}{part}", "try": "trials"}[self.kind]


@dataclass(frozen=True)
class Done:
    """What came of a job; `line` says it."""

    line: str
    skipped: bool = False


def do(job: Job, bench: Bench | None = None) -> Done:
    """Do a job unless it is done; the caller holds its lock. RunError says why it failed, which is recorded."""
    settings = job.settings
    if bench is None:
        silence()
        choice = device.choose(settings.device, settings.dtype, settings.threads)
        bench = Bench(settings, job.results, choice, Progress())
    if settings.devices_per_job > 1:
        lead(bench)
    if job.kind == "try":
        try_models(bench)
        return Done("every model was tried")
    if job.kind == "run":
        return _run(bench, job.spec)
    if job.part is not None:
        build_part(bench, job.spec.task, job.part)
        return Done(f"{job.title}: asked")
    with bench.locks.hold(job.spec.run_id):
        done = _run(bench, job.spec)
    build_teacher_outputs(bench, job.spec.task)
    build_rationales(bench, job.spec.task)
    return done


def _run(bench: Bench, spec: RunSpec) -> Done:
    if is_done(bench, spec):
        return Done(f"{spec.run_id}: already there", skipped=True)
    fields, metric = execute(bench, spec), task(bench, spec.task).metric
    return Done(f"{spec.run_id}: {metric} {fields['metrics']['validation'][metric]:.1f}")

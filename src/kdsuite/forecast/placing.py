"""The jobs of a plan on the GPUs of a machine on paper: how long all of them take, and what they wait for first.

Jobs are placed as an executor places them: those that ask the teacher, a long task's in parts, here as many as there
are places for the teacher; then one per run, the longest first; then the benchmark, which has the machine to itself.
Each begins by reading its models, and the teacher's outputs if it learns from them, from shared storage, and leaves
there what it makes; a worker that goes on to the next run has the weights already, so what is read is an upper bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdsuite.config import TrainingSettings, changed
from kdsuite.forecast.footprint import PREDICTION_BYTES, saved_bytes, teacher_outputs
from kdsuite.forecast.paper import OnPaper
from kdsuite.forecast.proportion import benchmark_rows
from kdsuite.forecast.rows import JobRow, Placed
from kdsuite.forecast.scene import TEACHER, Scene, UnknownShape
from kdsuite.forecast.times import pass_rows, run_rows, teacher_rows
from kdsuite.methods.base import ANSWERS
from kdsuite.models.costs import checkpoint_bytes, weight_bytes
from kdsuite.plan import RunSpec
from kdsuite.teacher.shards import shards

STORAGE = 1e9  # bytes per second that a job reads from, or writes to, shared storage: an assumption
MORE = 4  # times as large batches


@dataclass(frozen=True)
class Jobs:
    """By stage, those of one kind in a row; seconds with what storage takes."""

    cache: list[JobRow]
    train: list[JobRow]
    benchmark: float  # seconds

    @classmethod
    def of(cls, scene: Scene, gpus: int, storage: float = STORAGE) -> "Jobs":
        """UnknownShape of a model whose sizes are not known."""
        runs = run_rows(scene)
        last = sum(row.seconds or 0.0 for row in benchmark_rows(scene, [*runs, *pass_rows(scene)]))
        asking = [_asking(scene, task, gpus, storage) for task in scene.tasks if not scene.served]
        specs = {spec.run_id: spec for spec in scene.specs}
        training = []
        for row in runs:
            spec = specs[row.run_ids[0]]
            if spec.role == TEACHER and scene.served:
                continue  # its server's matter
            if row.seconds_each is None:
                raise UnknownShape(row.student)
            what = " ".join(filter(None, (row.task, row.called, row.student)))
            training.append(_run(scene, spec, what, len(row.run_ids), row.seconds_each, storage))
        return cls([job for job in asking if job.seconds], training, last)

    def seconds(self, gpus: int) -> float:
        return makespan(self.cache, gpus) + makespan(self.train, gpus) + self.benchmark


def placed(scene: Scene, speeds: OnPaper) -> Placed:
    """The jobs, the time of each stage, and by how much the whole would be shorter with more of one thing."""
    gpus = speeds.gpus
    jobs = Jobs.of(scene, gpus)
    whole, gpu = jobs.seconds(gpus), speeds.gpu

    def on(**faster: float) -> Scene:
        other = replace(speeds, gpu=replace(gpu, **faster))
        return replace(scene, machine=replace(scene.machine, speeds=other))

    def took(scene: Scene, gpus: int = gpus, storage: float = STORAGE) -> float:
        return Jobs.of(scene, gpus, storage).seconds(gpus)

    settings = scene.settings
    sizes = {} if scene.served else {"models.teacher.batch_size": settings.models.teacher.batch_size}
    sizes |= {"evaluation.batch_size": settings.evaluation.batch_size}
    answering = changed(settings, {key: MORE * size for key, size in sizes.items()})
    wider = {f"tasks.{task}.training.micro_batch_size": _wider(settings.tasks[task].training) for task in scene.tasks}
    training = changed(settings, wider)
    ways = {
        f"{MORE} times the batch size in answering": took(replace(scene, settings=answering)),
        f"{MORE} times the micro-batch in training": took(replace(scene, settings=training)),
        "twice the GPUs": took(scene, 2 * gpus),
        "twice the operations per second": took(on(peak=2 * gpu.peak)),
        "twice the memory's bandwidth": took(on(bandwidth=2 * gpu.bandwidth)),
        "twice the link between GPUs": took(on(link=2 * gpu.link)),
        "twice as fast storage": took(scene, storage=2 * STORAGE),
    }
    saved = {way: 1 - seconds / whole for way, seconds in ways.items()}
    stages = {"cache": makespan(jobs.cache, gpus), "train": makespan(jobs.train, gpus), "benchmark": jobs.benchmark}
    return Placed(gpus, [*jobs.cache, *jobs.train], stages, dict(sorted(saved.items(), key=lambda item: -item[1])))


def _wider(training: TrainingSettings) -> int:
    """The largest micro-batch, up to so many times as large, that the batch is a multiple of."""
    micro, batch = training.micro_batch_size or training.batch_size, training.batch_size
    return max(size for size in range(micro, min(MORE * micro, batch) + 1) if batch % size == 0)


def makespan(rows: Sequence[JobRow], gpus: int) -> float:
    """Seconds until all jobs are done; the longest begins first, on those GPUs that are free the soonest."""
    free = [0.0] * gpus
    for row in sorted(rows, key=lambda row: -row.seconds):
        for _ in range(row.count):
            free.sort()
            free[: row.gpus] = [free[row.gpus - 1] + row.seconds] * row.gpus
    return max(free)


def _asking(scene: Scene, task: str, gpus: int, storage: float) -> JobRow:
    """The workers that share what the teacher says on a task: as many as there are parts and places for the teacher."""
    shape, size = scene.shape(TEACHER), scene.sizes[task]
    split = scene.machine.speeds.split(shape)
    workers = 1 if size.unlabeled else max(1, min(shards(size.train), gpus // split))
    seconds = sum(row.seconds or 0.0 for row in teacher_rows(scene, task))
    reads = weight_bytes(shape, shape.stored)
    writes = teacher_outputs(scene, task) if scene.wants_outputs(task) else 0
    each = seconds / workers + (reads + writes / workers) / storage if seconds else 0.0
    return JobRow(f"{task}, asking the teacher", workers, split, each, reads, writes // workers)


def _run(scene: Scene, spec: RunSpec, what: str, count: int, seconds: float, storage: float) -> JobRow:
    """Runs that differ in their seed and hyper-parameters."""
    shape = scene.shape(spec.role)
    reads, writes = weight_bytes(shape, shape.stored), PREDICTION_BYTES * scene.sizes[spec.task].validation
    if spec.recipe and set(spec.recipe.needs) - {ANSWERS}:
        reads += teacher_outputs(scene, spec.task)
    if scene.trains(spec):
        saved, training = saved_bytes(shape, scene.settings.models.lora), scene.training(spec.role, spec.task)
        each = checkpoint_bytes(saved) // 2
        writes += saved + each * (1 + int(seconds / 60 / training.checkpoint_minutes))
    more = (reads + writes) / storage
    return JobRow(what, count, scene.machine.speeds.split(shape), seconds + more, reads, writes)

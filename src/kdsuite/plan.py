"""Settings → run specs: what a configuration asks for, each with its documented id and its fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kdsuite.config import Settings, nearest
from kdsuite.errors import SettingsError
from kdsuite.methods.registry import METHODS, Method
from kdsuite.store.files import fingerprint

RECORD_FORMAT = 2  # raise it when the meaning of a run changes: every earlier record is then superseded

INDIFFERENT = {
    "logging_steps",
    "checkpoint_minutes",
}  # settings of a training that its result does not depend on

TEACHER, ZERO_SHOT = "teacher", "zero-shot"


@dataclass(frozen=True)
class RunSpec:
    """One (method, task, student, hyper-parameters, seed); `teacher` and `zero-shot` are only evaluated."""

    method: str
    task: str
    student: str | None = None
    seed: int | None = None
    temperature: float | None = None
    alpha: float | None = None
    feature_weight: float | None = None

    @property
    def run_id(self) -> str:
        parts = [self.method, self.task, *([self.student] if self.student else [])]
        if self.temperature is not None:
            parts += [f"T{self.temperature:g}", f"a{self.alpha:g}"]
        if self.feature_weight is not None:
            parts.append(f"l{self.feature_weight:g}")
        if self.seed is not None and self.method != TEACHER:
            parts.append(f"seed{self.seed}")
        return "_".join(parts)

    @property
    def trained(self) -> bool:
        return self.method not in (TEACHER, ZERO_SHOT)

    @property
    def recipe(self) -> Method | None:
        """What is learned and how; None for what is only evaluated."""
        return METHODS.get(self.method)

    @property
    def uses_teacher(self) -> bool:
        return self.recipe is not None and (self.recipe.target == TEACHER or self.recipe.needs_outputs)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def expand(
    settings: Settings, tasks: Iterable[str] | None = None, methods: Iterable[str] | None = None
) -> list[RunSpec]:
    """All run specs of a configuration, in the order in which they are run.

    `tasks` and `methods` narrow it down; SettingsError when they name what the configuration has not.
    """
    chosen_tasks = _chosen("task", tasks, settings.tasks.names)
    chosen_methods = _chosen("method", methods, settings.methods)
    specs = []
    for task in chosen_tasks:
        specs.append(RunSpec(TEACHER, task))
        for student in settings.trained_students:
            specs.append(RunSpec(ZERO_SHOT, task, student))
            for seed in settings.seeds:
                specs += [
                    s for method in chosen_methods for s in _grid(settings, method, task, student, seed)
                ]
    return specs


def _chosen(kind: str, names: Iterable[str] | None, known: Sequence[str]) -> list[str]:
    wanted = list(names) if names else list(known)
    for name in wanted:
        if name not in known:
            raise SettingsError(f"unknown {kind} {name!r}{nearest(name, known)}")
    return [name for name in known if name in wanted]


def _grid(settings: Settings, method: str, task: str, student: str, seed: int) -> list[RunSpec]:
    soft = (
        [(t, a) for t in settings.kd1.temperatures for a in settings.kd1.alphas]
        if METHODS[method].soft
        else [(None, None)]
    )
    features = settings.kd3.weights if METHODS[method].features else [None]
    return [RunSpec(method, task, student, seed, t, a, w) for t, a in soft for w in features]


def run_fingerprint(settings: Settings, spec: RunSpec, sources: dict[str, str]) -> str:
    """Identifies a run by everything that decides its result.

    `sources` are the fingerprints of what the run reads: `data`, `teacher` and, by name, the students.
    Settings that the run does not use (other tasks, other methods, the report) are left out.
    """
    task = settings.tasks[spec.task]
    about: dict[str, Any] = {
        "format": RECORD_FORMAT,
        "spec": spec.as_dict(),
        "task": task.model_dump(exclude={"training", "teacher_training", "quality_floor"}),
        "data": sources["data"],
        "numerics": {"device": settings.device, "dtype": settings.dtype},
    }
    if spec.trained:
        about["training"] = task.training.model_dump(exclude=INDIFFERENT)
        about["lora"] = settings.models.lora.model_dump()
    if spec.student:
        about["student"] = student_identity(settings, spec.student, sources)
    if spec.uses_teacher or spec.method == TEACHER:
        about["teacher"] = teacher_identity(settings, spec.task, sources)
    if spec.recipe and spec.recipe.soft:
        about["kd1"] = settings.kd1.model_dump(exclude={"temperatures", "alphas"})
    if spec.recipe and spec.recipe.target == TEACHER:
        about["kd2"] = [settings.kd2.model_dump(), task.quality_floor]
    if spec.recipe and spec.recipe.features:
        about["kd3"] = settings.kd3.model_dump(exclude={"weights"})
    return fingerprint(about)


def student_identity(settings: Settings, student: str, sources: dict[str, str]) -> list[Any]:
    """What makes a student the one it is: its settings and its weights and tokenizer."""
    return [settings.student(student).model_dump(), sources[student]]


def teacher_identity(settings: Settings, task: str, sources: dict[str, str]) -> dict[str, Any]:
    """What makes the teacher of a task the one it is: its weights and, if it was, its fine-tuning."""
    training = settings.tasks[task].teacher_training
    teacher = settings.models.teacher.model_dump(exclude={"batch_size"})
    identity: dict[str, Any] = {"model": teacher, "weights": sources["teacher"]}
    if training.enabled:
        identity["training"] = training.model_dump(exclude=INDIFFERENT)
        identity["lora"] = settings.models.lora.model_dump()
    return identity

"""Everything that a forecast looks up: settings, machine, sizes of the tasks, shapes and speeds of the models.

Nothing is loaded or downloaded for it. A model whose configuration is not on this machine has no shape, and
what depends on it no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeVar

from kdsuite.config import (
    OFFLINE_STUDENT,
    OFFLINE_TEACHER,
    ModelSettings,
    ServedTeacherSettings,
    Settings,
    TeacherSettings,
    TrainingSettings,
    looks_local,
)
from kdsuite.forecast.speeds import Load, Speeds
from kdsuite.methods.base import ANSWERS, LIVE, STATES, Method, Request, method, needed
from kdsuite.models.costs import Shape, shape_of, weight_bytes
from kdsuite.plan import TEACHER, RunSpec
from kdsuite.tasks.example import task_of
from kdsuite.tasks.sizes import CHARACTERS_PER_TOKEN, TaskSize, task_size

T = TypeVar("T")
shape_once = cache(shape_of)


class UnknownShape(Exception):
    """A figure depends on a model whose sizes are not known."""


def if_known(figure: Callable[..., T], *arguments: object) -> T | None:
    """A figure of these arguments, None where it depends on a model whose sizes are not known."""
    try:
        return figure(*arguments)
    except UnknownShape:
        return None


@dataclass(frozen=True)
class Machine:
    """What a plan is held against; `memory` is what the device has, in bytes; `threads` those of its CPU."""

    device: str
    dtype: str
    memory: int
    speeds: Speeds
    threads: int = 1


@dataclass(frozen=True)
class Scene:
    """A configuration on a machine; tasks, with their sizes, and runs are those of the plan."""

    settings: Settings
    machine: Machine
    specs: Sequence[RunSpec]
    sizes: Mapping[str, TaskSize]

    @classmethod
    def of(cls, settings: Settings, specs: Sequence[RunSpec], machine: Machine) -> Scene:
        sizes = {task: task_size(task, settings.tasks[task]) for task in dict.fromkeys(s.task for s in specs)}
        return cls(settings, machine, specs, sizes)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.sizes)

    @property
    def served(self) -> ServedTeacherSettings | None:
        """The teacher, if it is one behind a URL: what it takes there is not known here."""
        return self.settings.models.served

    @property
    def loaded(self) -> tuple[str, ...]:
        """The roles whose models are loaded here."""
        return self.settings.students if self.served else self.settings.roles

    @property
    def names(self) -> dict[str, str]:
        """The names of the models that are loaded here, each with a role that it has."""
        return {self.model(role).name: role for role in self.loaded}

    @property
    def dtype(self) -> str:
        return self.machine.dtype if self.settings.dtype == "auto" else self.settings.dtype

    def model(self, role: str) -> ModelSettings | ServedTeacherSettings:
        """That of a student; the teacher, or its fallback where its weights alone are more than the memory."""
        if role != TEACHER:
            return self.settings.models.students[role]
        teacher = self.settings.models.teacher
        if not isinstance(teacher, TeacherSettings):
            return teacher
        shape = shape_once(teacher.name, teacher.revision)
        room = self.machine.memory * (self.machine.speeds.split(shape) if shape else 1)
        if teacher.fallback and shape and weight_bytes(shape, self.dtype) > room:
            return ModelSettings(name=teacher.fallback)
        return teacher

    def shape(self, role: str) -> Shape:
        """The shape of a role's model. UnknownShape if that is not known."""
        for shape in self.shapes([role]):
            return shape
        raise UnknownShape(role)

    def shapes(self, roles: Iterable[str]) -> list[Shape]:
        """The shapes of those roles' models that are known."""
        here = [model for model in map(self.model, roles) if isinstance(model, ModelSettings)]
        shapes = [shape_once(model.name, model.revision) for model in here]
        return [shape for shape in shapes if shape]

    def training(self, role: str, task: str) -> TrainingSettings:
        """How a role's model is trained on a task."""
        section = self.settings.tasks[task]
        return section.teacher_training if role == TEACHER else section.training

    def training_load(self, role: str, task: str) -> Load:
        """What a forward and backward pass of a role's model is given."""
        training, size = self.training(role, task), self.sizes[task]
        micro = training.micro_batch_size or training.batch_size
        steps = micro / training.batch_size
        return Load(micro, round(size.tokens), size.positions, self.settings.models.lora, steps)

    def answer_load(self, role: str, task: str, sequences: int) -> Load:
        """What a role's model is given when it answers."""
        size, labels = self.sizes[task], self.labels(task)
        trained = role != TEACHER or self.settings.tasks[task].teacher_training.enabled
        lora = self.settings.models.lora if trained else None
        return Load(sequences, round(size.reported_tokens), labels * size.positions or 1.0, lora)

    def labels(self, task: str) -> int:
        """How many label words of a task are scored; 0 where answers are generated."""
        return len(task_of(task, self.settings.tasks[task]).labels or ())

    def new_tokens(self, task: str) -> int:
        """The most tokens of a generated answer."""
        return 0 if self.labels(task) else self.settings.tasks[task].max_new_tokens

    def answer_batch(self, role: str) -> int:
        """Examples per forward pass when a model answers."""
        models = self.settings.models
        return models.teacher.batch_size if role == TEACHER else self.settings.evaluation.batch_size

    def trains(self, spec: RunSpec) -> bool:
        """Whether a run trains a model, be it the teacher, rather than evaluating it only."""
        return spec.trained or (spec.method == TEACHER and self.settings.tasks[spec.task].teacher_training.enabled)

    # --- what the planned methods ask of the teacher

    @property
    def methods(self) -> list[Method]:
        return [method(name) for name in dict.fromkeys(spec.method for spec in self.specs if spec.trained)]

    def wants_outputs(self, task: str) -> bool:
        """Whether the teacher's outputs on the training targets are kept."""
        reading = [one for one in self.methods if one.lesson == "teacher" or one.kept(self.settings)]
        return bool(needed(reading, labelled=bool(self.labels(task))) - {ANSWERS})

    def wants_answers(self, task: str) -> bool:
        """Whether the teacher has to generate answers to the training examples."""
        return not self.labels(task) and any(one.lesson == "teacher" for one in self.methods)

    @property
    def requests(self) -> list[Request]:
        """What the teacher is asked for beside its answers to the training examples: reasons."""
        asked = [spec.recipe.request(self.settings, spec.point) for spec in self.specs if spec.recipe]
        return list(dict.fromkeys(filter(None, asked)))

    def explained(self, task: str, request: Request) -> TaskSize:
        """Tokens and positions of a task's examples where the answer is the reason for it, as long as it may get."""
        size, most = self.sizes[task], self.settings.tasks[task].max_length
        more = len(request.text) / CHARACTERS_PER_TOKEN + request.max_new_tokens
        tokens, longest = min(size.tokens + more, most), min(round(size.longest + more), most)
        return replace(size, tokens=tokens, longest=longest, positions=request.max_new_tokens)

    @property
    def asks_in_training(self) -> bool:
        """Whether the teacher is asked in every step: for states that are not on disk, for what a student wrote."""
        kept = {one: one.kept(self.settings) for one in self.methods if STATES in one.needs}
        written = any(LIVE in one.needs for one in self.methods) and not all(map(self.labels, self.tasks))
        return written or any(stored is None or not stored.states for stored in kept.values())


def is_downloaded(name: str) -> bool:
    """Whether a model comes from the hub: it is neither a folder nor built on the spot."""
    return not (name in (OFFLINE_TEACHER, OFFLINE_STUDENT) or looks_local(name) or Path(name).is_dir())

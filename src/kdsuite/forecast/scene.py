"""Everything that a forecast looks up: settings, machine, sizes of the tasks, shapes and speeds of the models.

Nothing is loaded or downloaded for it. A model whose configuration is not on this machine has no shape, and
what depends on it no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

from kdsuite.config import OFFLINE_STUDENT, OFFLINE_TEACHER, ModelSettings, Settings, looks_local
from kdsuite.forecast.calibration import Rates
from kdsuite.methods.base import ANSWERS, STATES, Method, method, needed
from kdsuite.models.architectures import shape_of
from kdsuite.models.costs import Shape, weight_bytes
from kdsuite.plan import TEACHER, RunSpec
from kdsuite.tasks.example import task_of
from kdsuite.tasks.sizes import TaskSize, task_size


@dataclass(frozen=True)
class Machine:
    """What a plan is held against; `memory` is what the device has, in bytes."""

    device: str
    dtype: str
    memory: int
    rates: Callable[
        [Shape, int, int], Rates
    ]  # of a model's shape, on a batch of so many sequences and tokens


@dataclass(frozen=True)
class Scene:
    """A configuration on a machine; tasks, with their sizes, and methods are those of the plan."""

    settings: Settings
    machine: Machine
    sizes: Mapping[str, TaskSize]
    methods: tuple[str, ...]

    @classmethod
    def of(cls, settings: Settings, specs: Sequence[RunSpec], machine: Machine) -> Scene:
        sizes = {task: task_size(task, settings.tasks[task]) for task in dict.fromkeys(s.task for s in specs)}
        return cls(settings, machine, sizes, tuple(dict.fromkeys(s.method for s in specs if s.trained)))

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.sizes)

    @property
    def dtype(self) -> str:
        return self.machine.dtype if self.settings.dtype == "auto" else self.settings.dtype

    @property
    def lora(self) -> bool:
        return self.settings.models.lora.enabled

    @property
    def students(self) -> tuple[str, ...]:
        return self.settings.students

    def model(self, role: str) -> ModelSettings:
        return (
            teacher_taken(self.settings, self.machine)
            if role == TEACHER
            else self.settings.models.students[role]
        )

    def shape(self, role: str) -> Shape | None:
        """The shape of the model of a role: `teacher`, `S1`, `S2`."""
        model = self.model(role)
        return _shape(model.name, model.revision)

    def size(self, task: str) -> TaskSize:
        return self.sizes[task]

    def generates(self, task: str) -> bool:
        """Whether the task's answers are generated, rather than its labels scored."""
        return task_of(task, self.settings.tasks[task]).labels is None

    def new_tokens(self, task: str) -> int:
        return self.settings.tasks[task].max_new_tokens if self.generates(task) else 0

    def rates(self, role: str) -> Rates:
        """Speeds of a role's model on its batches, of sequences of these tasks' mean length. It has a shape."""
        shape = self.shape(role)
        assert shape is not None
        length = round(fmean(self.size(task).tokens for task in self.tasks))
        return self.machine.rates(shape, self._batch_size(role), length)

    def answer_batch(self, role: str) -> int:
        """Examples per forward pass when a model answers."""
        models = self.settings.models
        return models.teacher.batch_size if role == TEACHER else self.settings.evaluation.batch_size

    def _batch_size(self, role: str) -> int:
        """Examples per forward pass in training, or of the teacher that is not trained."""
        section = self.settings.tasks[self.tasks[0]]
        training = section.teacher_training if role == TEACHER else section.training
        if role == TEACHER and not section.teacher_training.enabled:
            return self.settings.models.teacher.batch_size
        return training.micro_batch_size or training.batch_size

    def wants_outputs(self, task: str) -> bool:
        """Whether the teacher's outputs on the training targets are asked for."""
        stored = [one for one in self.recipes if one.lesson == "teacher" or one.kept(self.settings)]
        return bool(needed(stored, labelled=not self.generates(task)) - {ANSWERS})

    @property
    def recipes(self) -> list[Method]:
        return [method(name) for name in self.methods]

    @property
    def teacher_beside(self) -> bool:
        """Whether the teacher's hidden states are computed in every step, rather than kept on disk."""
        states = [one for one in self.recipes if STATES in one.needs]
        return any(not ((stored := one.kept(self.settings)) and stored.states) for one in states)

    def wants_answers(self, task: str) -> bool:
        """Whether the teacher has to generate answers to the training examples."""
        return self.generates(task) and any(one.lesson == "teacher" for one in self.recipes)


def is_downloaded(name: str) -> bool:
    """Whether a model comes from the hub: it is neither a folder nor built on the spot."""
    return not (name in (OFFLINE_TEACHER, OFFLINE_STUDENT) or looks_local(name) or Path(name).is_dir())


def teacher_taken(settings: Settings, machine: Machine) -> ModelSettings:
    """The teacher, or its fallback where the teacher's weights alone are more than the device's memory."""
    teacher = settings.models.teacher
    shape = _shape(teacher.name, teacher.revision)
    dtype = machine.dtype if settings.dtype == "auto" else settings.dtype
    if teacher.fallback and shape and weight_bytes(shape, dtype) > machine.memory:
        return ModelSettings(name=teacher.fallback)
    return teacher


@cache
def _shape(name: str, revision: str | None) -> Shape | None:
    return shape_of(name, revision)

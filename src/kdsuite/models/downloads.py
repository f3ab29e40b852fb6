"""What a configuration takes from the hub."""

from __future__ import annotations

from pathlib import Path

from kdsuite.config import GENERATED, OFFLINE_STUDENT, OFFLINE_TEACHER, ModelSettings, Settings, TaskSettings
from kdsuite.errors import ModelError
from kdsuite.models.source import base_of

OFFLINE_MODELS = (OFFLINE_TEACHER, OFFLINE_STUDENT)


def hub_models(settings: Settings) -> list[ModelSettings]:
    """The models that a configuration takes from the hub, the teacher first, its fallback second."""
    teacher = settings.models.teacher
    fallback = [ModelSettings(name=teacher.fallback)] if teacher.fallback else []
    students = [settings.models.students[name] for name in settings.students]
    models = {model.name: model for model in map(_whole, [teacher, *fallback, *students])}
    return [model for name, model in models.items() if name not in OFFLINE_MODELS and not Path(name).exists()]


def _whole(model: ModelSettings) -> ModelSettings:
    """What an adapter in a folder belongs to, if that is known; else the model itself."""
    try:
        base = base_of(Path(model.name))
    except ModelError:
        return model
    return ModelSettings(name=base.whole.where, revision=base.whole.revision) if base else model


def hub_data(settings: Settings) -> dict[str, TaskSettings]:
    """The tasks of a configuration whose data come from the hub."""
    tasks = settings.tasks.items()
    return {name: task for name, task in tasks if task.source != GENERATED and not Path(task.source).exists()}

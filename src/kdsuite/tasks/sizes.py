"""How much a task has to read, before it is loaded: examples, and tokens per example.

Generated data and files on disk are counted. Data sets on the hub are taken to have the official sizes: a plan needs no
network. Tokens are counted as characters: both tokenizers of the default pair need about a token per four characters
and twenty more for the chat template (measured on both official training sets: within a quarter of it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from kdsuite.config import GENERATED, Settings, TaskSettings
from kdsuite.errors import DataError
from kdsuite.tasks.example import UNLABELED, Example, Task, task_of
from kdsuite.tasks.sources import is_local
from kdsuite.tasks.splits import default_dev_size, default_validation_size

CHARACTERS_PER_TOKEN = 4
TEMPLATE_TOKENS = 20
LABEL_POSITIONS = 2.5  # a label word of one or two tokens, and the end of turn


@dataclass(frozen=True)
class _Counted:
    """Examples of a split, the mean characters of their prompts and targets, and those of the longest prompt."""

    examples: int
    prompt: float
    target: float
    longest: int


@dataclass(frozen=True)
class TaskSize:
    """Examples per split; tokens of a training and of a reported example; supervised positions of a target."""

    train: int
    dev: int
    validation: int
    teacher_train: int
    tokens: float
    reported_tokens: float
    positions: float
    longest: int
    basis: str
    unlabeled: int = 0  # inputs that only a teacher can answer


def task_size(name: str, settings: TaskSettings) -> TaskSize:
    """What a task has to read under its settings. DataError if its files are not what the task needs."""
    task = task_of(name, settings)
    here = is_here(settings) and (
        settings.sizes is None or settings.source == GENERATED or Path(settings.source).exists()
    )
    if here:
        loaded = [task.load(split) for split in ("train", "validation")]
        pool, reported = (_counted(task, examples) for examples in loaded)
        if not reported.examples:  # it is carved out of train
            kept = settings.validation_size or default_validation_size(pool.examples)
            pool, reported = replace(pool, examples=pool.examples - kept), replace(pool, examples=kept)
    elif settings.sizes is None:
        raise DataError(f"how large {name} is on the hub is not known; give its task `sizes`, or point it at files")
    else:
        pool, reported = (_Counted(**part.model_dump()) for _, part in settings.sizes)
    dev = settings.dev_size or default_dev_size(pool.examples)
    rest = max(pool.examples - dev - settings.examples, 0)
    shown = settings.examples * (pool.prompt + pool.target) + len(settings.system or "")  # before every question
    longest = max(pool.longest, reported.longest) + shown
    return TaskSize(
        train=min(settings.train_size or rest, rest),
        dev=dev,
        validation=min(settings.validation_size or reported.examples, reported.examples),
        teacher_train=min(settings.teacher_training.train_size or rest, rest),
        tokens=min(TEMPLATE_TOKENS + (shown + pool.prompt) / CHARACTERS_PER_TOKEN, settings.max_length),
        reported_tokens=TEMPLATE_TOKENS + (shown + reported.prompt) / CHARACTERS_PER_TOKEN,
        positions=LABEL_POSITIONS if task.labels else 1.5 + pool.target / CHARACTERS_PER_TOKEN,
        longest=min(settings.max_length, TEMPLATE_TOKENS + round(longest) // CHARACTERS_PER_TOKEN),
        unlabeled=len(task.load(UNLABELED)) if settings.transfers else 0,
        basis="counted"
        if here
        else f"of the official size, as {settings.source} is {'not here' if is_here(settings) else 'on the hub'}",
    )


def is_here(settings: TaskSettings) -> bool:
    """Whether a task's data can be had without the hub: they are generated, or files."""
    return settings.source == GENERATED or is_local(settings)


def hub_data(settings: Settings) -> dict[str, TaskSettings]:
    """The tasks of a configuration whose data come from the hub."""
    return {name: task for name, task in settings.tasks.items() if not is_here(task)}


def _counted(task: Task, examples: Sequence[Example]) -> _Counted:
    prompts = [sum(len(turn["content"]) for turn in task.messages(example)) for example in examples]
    targets = [len(example.target) for example in examples]
    return _Counted(len(examples), fmean(prompts or [0]), fmean(targets or [0]), max(prompts, default=0))

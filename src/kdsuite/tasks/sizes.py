"""How much a task has to read, before it is loaded: examples, and tokens per example.

Generated data and files on disk are split, and counted. Data sets on the hub are taken to have the official sizes: a
plan needs no network. Tokens are counted as characters: both tokenizers of the default pair need about a token per four
characters and twenty more for the chat template (measured on both official training sets: within a quarter of it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from kdsuite.config import GENERATED, Settings, SplitSize, TaskSettings
from kdsuite.errors import DataError
from kdsuite.tasks.example import UNLABELED, Example, Task, task_of
from kdsuite.tasks.sources import is_local, matching
from kdsuite.tasks.splits import default_dev_size, make_splits

CHARACTERS_PER_TOKEN = 4
TEMPLATE_TOKENS = 20
SPLITS = ("train", "dev", "validation", "teacher_train", UNLABELED)
LABEL_POSITIONS = 2.5  # a label word of one or two tokens, and the end of turn


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
    unlabeled: int  # inputs that only a teacher can answer


def task_size(name: str, settings: TaskSettings) -> TaskSize:
    """What a task has to read under its settings. DataError if its files are not what the task needs, or
    have fewer examples than its settings ask for."""
    task = task_of(name, settings)
    if is_here(settings) and (
        settings.sizes is None or settings.source == GENERATED or matching(Path(settings.source))
    ):
        splits, basis = make_splits(task), "counted"
        pool, reported = (_counted(task, splits[split]) for split in ("train", "validation"))
        counts = {split: len(splits.get(split, ())) for split in SPLITS}
    elif settings.sizes is None:
        raise DataError(f"how large {name} is on the hub is not known; give its task `sizes`, or point it at files")
    else:
        basis = f"of the official size, as {settings.source} is {'not here' if is_here(settings) else 'on the hub'}"
        pool, reported = settings.sizes.train, settings.sizes.validation
        dev = settings.dev_size or default_dev_size(pool.examples)
        rest = max(pool.examples - dev - settings.examples, 0)
        asked = {"train": settings.train_size, "teacher_train": settings.teacher_training.train_size}
        counts = {"dev": dev, "validation": min(settings.validation_size or reported.examples, reported.examples)}
        counts |= {split: min(size or rest, rest) for split, size in asked.items()}
        counts[UNLABELED] = len(task.load(UNLABELED)) if settings.transfers else 0
    shown = settings.examples * (pool.prompt + pool.target) + len(settings.system or "")  # before every question
    longest = max(pool.longest, reported.longest) + shown
    return TaskSize(
        **counts,
        tokens=min(TEMPLATE_TOKENS + (shown + pool.prompt) / CHARACTERS_PER_TOKEN, settings.max_length),
        reported_tokens=TEMPLATE_TOKENS + (shown + reported.prompt) / CHARACTERS_PER_TOKEN,
        positions=LABEL_POSITIONS if task.labels else 1.5 + pool.target / CHARACTERS_PER_TOKEN,
        longest=min(settings.max_length, TEMPLATE_TOKENS + round(longest) // CHARACTERS_PER_TOKEN),
        basis=basis,
    )


def is_here(settings: TaskSettings) -> bool:
    """Whether a task's data can be had without the hub: they are generated, or files."""
    return settings.source == GENERATED or is_local(settings)


def hub_data(settings: Settings) -> dict[str, TaskSettings]:
    """The tasks of a configuration whose data come from the hub."""
    return {name: task for name, task in settings.tasks.items() if not is_here(task)}


def _counted(task: Task, examples: Sequence[Example]) -> SplitSize:
    """The size of a split; the task's own system message is no part of its prompts."""
    system = len(task.settings.system or "")
    prompts = [sum(len(turn["content"]) for turn in task.messages(example)) - system for example in examples]
    target = fmean(len(example.target) for example in examples)
    return SplitSize(examples=len(examples), prompt=fmean(prompts), target=target, longest=max(prompts))

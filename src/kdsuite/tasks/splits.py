"""Splits: the reported split is the official one; dev is carved from train, by group; all by seed."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

from kdsuite.config import GENERATED, TaskSettings
from kdsuite.errors import DataError
from kdsuite.store.files import fingerprint
from kdsuite.tasks.example import Example, Task, read_bytes

Splits = dict[str, list[Example]]

GENERATOR_VERSION = 2  # raise it when the generated corpora change


def make_splits(task: Task, settings: TaskSettings) -> Splits:
    """`train`, `dev`, `validation` and, if the teacher is fine-tuned, `teacher_train` (which holds `train`).

    Raises DataError when ids repeat, a split would be empty, or more is asked for than there is.
    """
    pool, reported = task.load(settings, "train"), task.load(settings, "validation")
    for split, examples in (("train", pool), ("validation", reported)):
        if repeated := [id for id, count in Counter(e.id for e in examples).items() if count > 1]:
            raise DataError(
                f"task {task.name}: {split} has {len(repeated)} repeated ids, e.g. {repeated[0]!r}; ids must be unique"
            )
    rng = random.Random(settings.sample_seed)
    dev, rest = _carve(pool, settings.dev_size or default_dev_size(len(pool)), rng)
    rng.shuffle(rest)
    splits = {
        "train": _first(task, "train_size", rest, settings.train_size),
        "dev": dev,
        "validation": _sample(task, reported, settings.validation_size, settings.sample_seed),
    }
    if settings.teacher_training.enabled:
        size = settings.teacher_training.train_size
        if size is not None and size < len(splits["train"]):
            raise DataError(f"task {task.name}: teacher_training.train_size {size} is below the students' train_size")
        splits["teacher_train"] = [_checked(e) for e in _first(task, "teacher_training.train_size", rest, size)]
    for name, examples in splits.items():
        if not examples:
            raise DataError(f"task {task.name}: split {name!r} is empty; give the task more data")
    return splits


def _checked(example: Example) -> Example:
    """As the teacher learns it: where what an annotator said is no reference, the first of these."""
    if example.target in example.references:
        return example
    right = example.references[0]
    start = example.inputs.get("context", "").find(right)
    return replace(example, target=right, answer_start=start if start >= 0 else None)


def source_fingerprint(settings: TaskSettings) -> str:
    """Identifies where a task's examples come from: the files' contents, or the hub id and revision."""
    folder = Path(settings.source)
    if settings.source == GENERATED:
        return fingerprint([GENERATED, GENERATOR_VERSION])
    if folder.is_dir():
        names = (settings.train_file, settings.validation_file)
        return fingerprint([hashlib.sha256(read_bytes(folder / name)).hexdigest() for name in names])
    return fingerprint([settings.source, settings.revision])


def default_dev_size(examples: int) -> int:
    """How many of the training examples are held out where the settings do not say."""
    return min(2000, examples // 20)


def _carve(pool: list[Example], size: int, rng: random.Random) -> tuple[list[Example], list[Example]]:
    """Whole groups, drawn by seed, until `size` examples are held out (the last group may exceed it)."""
    groups: dict[str, list[Example]] = {}
    for example in pool:
        groups.setdefault(example.group, []).append(example)
    names = sorted(groups)
    rng.shuffle(names)
    dev: list[Example] = []
    while names and len(dev) < size:
        dev += groups[names.pop()]
    held_out = {example.group for example in dev}
    return dev, [example for example in pool if example.group not in held_out]


def _first(task: Task, setting: str, examples: list[Example], size: int | None) -> list[Example]:
    if size is not None and size > len(examples):
        raise DataError(
            f"task {task.name}: {setting} is {size}, but after the dev split only {len(examples)} examples are left; "
            f"lower it, or leave it out to take all"
        )
    return examples[:size]


def _sample(task: Task, examples: list[Example], size: int | None, seed: int) -> list[Example]:
    if size is None:
        return examples
    if size > len(examples):
        raise DataError(f"task {task.name}: validation_size is {size}, but there are only {len(examples)} examples")
    chosen = set(random.Random(seed).sample(range(len(examples)), size))
    return [example for i, example in enumerate(examples) if i in chosen]

"""Splits: the reported split is the official one; dev is carved from train, by origin; all by seed.

Dev chooses between configurations, so it has to be held out as the reported split is. Examples of one origin (an
article; else their group: a passage, a sentence that repeats) are never on both sides, and dev is drawn from several.

Where training holds parts of its own texts (`fragments`; GLUE's SST-2: 67,349 phrases of 6,885 sentences), dev
takes whole texts only, those that are part of no other, as the reported split does. Training then keeps what stands in
some whole text that is not held out, except parts of `LONG` words and more that stand in a held-out one too. So what is
left of dev in training is what is left of the reported split there: short phrases that other sentences have as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from kdsuite.config import GENERATED, TaskSettings
from kdsuite.errors import DataError
from kdsuite.store.files import fingerprint
from kdsuite.tasks.example import UNLABELED, Example, Task, canonical
from kdsuite.tasks.overlap import LONG, Standing, Words
from kdsuite.tasks.sources import content_fingerprints, is_local, rows

Splits = dict[str, list[Example]]
T = TypeVar("T")

GENERATOR_VERSION = 4  # raise it when the generated corpora change
SPLITS_VERSION = 2  # raise it when other examples come into a split
ORIGINS = 10  # that dev is drawn from at least, where there are ten times as many


def make_splits(task: Task) -> Splits:
    """`train`, `dev`, `validation` and, if they are asked for, `teacher_train` (which holds `train`) and `shots`.

    Raises DataError when a split would be empty, or more is asked for than there is.
    """
    settings = task.settings
    pool, reported = task.load("train"), task.load("validation")
    rng = random.Random(settings.sample_seed)
    if not reported:
        reported, pool = _carve(
            pool, settings.validation_size or default_validation_size(len(pool)), rng, settings.fragments
        )
    else:
        reported = _sample(task, reported, settings.validation_size, settings.sample_seed)
    dev, rest = _carve(pool, settings.dev_size or default_dev_size(len(pool)), rng, settings.fragments)
    if settings.source == GENERATED:  # the annotator of training is that of dev: nobody else knows what is right
        dev = [replace(example, references=(example.target,)) for example in dev]
    rng.shuffle(rest)
    shots, rest = rest[: settings.examples], rest[settings.examples :]
    splits = {"train": _first(task, "train_size", rest, settings.train_size), "dev": dev, "validation": reported}
    if settings.teacher_training.enabled:
        size = settings.teacher_training.train_size
        if size is not None and size < len(splits["train"]):
            raise DataError(f"task {task.name}: teacher_training.train_size {size} is below the students' train_size")
        splits["teacher_train"] = [_checked(task, e) for e in _first(task, "teacher_training.train_size", rest, size)]
    if settings.examples:
        splits["shots"] = [_checked(task, e) for e in shots]
    if settings.transfers:
        known = {tuple(e.inputs.values()) for examples in splits.values() for e in examples}
        asked = [e for e in task.load(UNLABELED) if tuple(e.inputs.values()) not in known]
        taken = {e.id for examples in splits.values() for e in examples}  # another file counts from 0, too
        splits[UNLABELED] = [replace(e, id=f"{UNLABELED}-{e.id}") if e.id in taken else e for e in asked]
    for name, examples in splits.items():
        if not examples:
            raise DataError(f"task {task.name}: split {name!r} is empty; give the task more data")
    return splits


def _checked(task: Task, example: Example) -> Example:
    """As the teacher learns it: where what an annotator said is no reference, the first of these."""
    right = [text if task.labels else canonical(text.strip()) for text in example.references]
    if example.target in right:
        return example
    start = example.inputs.get("context", "").find(example.references[0].strip())
    return replace(example, target=right[0], answer_start=start if start >= 0 else None)


def fraction_of(examples: Sequence[T], fraction: float) -> Sequence[T]:
    """The first ones of the training split, whose order is drawn by seed: a smaller fraction lies in a larger one."""
    return examples[: max(1, round(fraction * len(examples)))]


def fraction_sizes(task: Task, train: Sequence[Example]) -> dict[float, int]:
    """How many training examples a task's fractions have, ascending.

    DataError where that is less than a batch, or without any example of a label that the whole has.
    """
    settings, smallest = task.settings, min(task.settings.fractions)
    if smallest < 1:
        few = fraction_of(train, smallest)
        told = f"task {task.name}: fractions: {smallest:g} of {len(train)} training examples are {len(few)}"
        if len(few) < settings.training.batch_size:
            raise DataError(f"{told}, less than a batch of {settings.training.batch_size}; take a larger one")
        if task.labels and (absent := {e.target for e in train} - {e.target for e in few}):
            raise DataError(f"{told}, none of them {' or '.join(sorted(map(repr, absent)))}; take a larger one")
    return {fraction: len(fraction_of(train, fraction)) for fraction in sorted(settings.fractions)}


def source_fingerprint(settings: TaskSettings) -> str:
    """Identifies where a task's examples come from, and the rule that splits them.

    They come from files, known by their contents, or from the hub, known by id and revision.
    """
    if settings.source == GENERATED:
        place: list[Any] = [GENERATED, GENERATOR_VERSION]
    elif is_local(settings):
        place = content_fingerprints(settings)
    else:
        place = [settings.source, settings.revision]
    return fingerprint([*place, SPLITS_VERSION])


def unlabeled_fingerprint(settings: TaskSettings) -> str:
    """Identifies the inputs without targets, by their content."""
    return fingerprint(
        [[str(key), str(value)] for row in rows(settings, UNLABELED) for key, value in row.cells.items()]
    )


def default_dev_size(examples: int) -> int:
    """How many of the training examples are held out where the settings do not say."""
    return max(1, min(2000, examples // 20))


def default_validation_size(examples: int) -> int:
    """How many of the training examples are the reported split where there is none of its own."""
    return min(2000, -(-examples // 5))


def _carve(pool: list[Example], size: int, rng: random.Random, fragments: bool) -> tuple[list[Example], list[Example]]:
    """Dev, whole groups drawn by seed until it has `size` examples (the last may exceed it); what training may have."""
    texts = {e.id: tuple(" ".join(e.inputs.values()).casefold().split()) if fragments else () for e in pool}
    parts = Standing(set(texts.values()))
    whole = _whole(parts) if fragments else parts.texts
    one = len({e.origin or e.group for e in pool}) == 1  # then there is nothing else to train on
    origin = {e.id: e.group if one else e.origin or e.group for e in pool}
    origins = _by(lambda e: origin[e.id], [e for e in pool if texts[e.id] in whole], rng)
    drawn: list[Example] = []
    for number, some in enumerate(origins):
        if len(drawn) >= size and number >= min(ORIGINS, len(origins) // 10):
            break
        drawn += some
    dev: list[Example] = []
    for some in _by(lambda e: e.group, drawn, rng):
        if len(dev) >= size:
            break
        dev += some
    held = {origin[e.id] for e in dev}
    rest = [e for e in pool if origin[e.id] not in held]
    if not fragments:
        return dev, rest
    gone = {texts[e.id] for e in dev}
    out = gone | {part for text in gone for part in parts.inside(text) if len(part) >= LONG}
    stay = {part for text in whole - gone for part in parts.inside(text)} - out
    return dev, [e for e in rest if texts[e.id] in stay]


def _by(key: Callable[[Example], str], examples: list[Example], rng: random.Random) -> list[list[Example]]:
    """Examples by a key, in an order drawn by seed: the more examples, the earlier, so that all are as likely."""
    groups: dict[str, list[Example]] = {}
    for example in rng.sample(examples, len(examples)):
        groups.setdefault(key(example), []).append(example)
    return list(groups.values())


def _whole(parts: Standing) -> set[Words]:
    """The texts that stand in no other."""
    inside: set[Words] = set()
    for text in sorted(parts.texts, key=len, reverse=True):
        if text not in inside:
            inside.update(part for part in parts.inside(text) if part != text)
    return set(parts.texts) - inside


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

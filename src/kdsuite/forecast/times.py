"""How long: the arithmetic's operations at the machine's speed.

N weights cost 2·N operations per token forward (a multiplication and an addition are two) and 4·N backward, of
which a frozen weight's gradient is half and is not computed: 6·N for full training, 4·N with adapters, 2·N more
where activations are recomputed (Kaplan et al. 2020, arXiv:2001.08361, section 2.1). Attention's own products are
left out: a few percent at these lengths. Answers are taken to be as long as they may get. What is there already is
not subtracted, the report's seconds are left out.
"""

import math
from dataclasses import replace
from itertools import groupby
from statistics import fmean
from typing import Any

from kdsuite.config import OFFLINE_STUDENT, OFFLINE_TEACHER
from kdsuite.forecast.rows import PassRow, RunRow
from kdsuite.forecast.scene import TEACHER, Scene, if_known
from kdsuite.forecast.speeds import Load
from kdsuite.methods.base import OnPolicy
from kdsuite.models.costs import Shape
from kdsuite.plan import RunSpec
from kdsuite.tasks.sizes import TEMPLATE_TOKENS

PADDING = 1.02  # padded by real tokens, in batches of similar length
GENERATION_OVERHEAD = 5e-3  # seconds per generated token in transformers' own loop, on one CPU core
PRETRAINING = {OFFLINE_TEACHER: 1.5, OFFLINE_STUDENT: 1.0}  # in models.offline.pretraining_steps
PRETRAINING_BATCH = 16, 70, 10.0  # texts, their tokens, and positions of each that are learned


def forward_operations(shape: Shape, tokens: float, positions: float = 0.0) -> float:
    """Operations of a forward pass over `tokens`, with the LM head on `positions` of them."""
    return 2 * (shape.body_parameters * tokens + shape.vocabulary * shape.width * positions)


def training_operations(shape: Shape, tokens: float, positions: float, lora: bool, recomputed: bool) -> float:
    """Operations of training on `tokens`, with the LM head on `positions` of them."""
    return ((2 if lora else 3) + recomputed) * forward_operations(shape, tokens, positions)


def run_rows(scene: Scene) -> list[RunRow]:
    """The runs by task, method, student and fraction, in the plan's order."""
    methods = list(dict.fromkeys(spec.method for spec in scene.specs))
    ordered = sorted(
        scene.specs, key=lambda s: (scene.tasks.index(s.task), methods.index(s.method), str(s.student), -s.fraction)
    )
    rows = []
    for kind, group in groupby(ordered, key=lambda s: (s.task, s.method, s.student, s.fraction)):
        task, method, student, fraction = kind
        specs = list(group)
        seeds = sorted({s.seed for s in specs if s.seed is not None})
        each = if_known(lambda: fmean(run_seconds(scene, spec) for spec in specs))  # noqa: B023  called at once
        per_seed = len(specs) // max(len(seeds), 1)
        rows.append(RunRow(task, method, student, per_seed, seeds, each, [s.run_id for s in specs], fraction))
    return rows


def run_seconds(scene: Scene, spec: RunSpec) -> float:
    """Training, the dev split after every epoch, dev and reported split at the end."""
    size, training = scene.sizes[spec.task], scene.training(spec.role, spec.task)
    final = answer_seconds(scene, spec.role, spec.task, size.dev + size.validation)
    if not scene.trains(spec):
        return final
    choosing = answer_seconds(scene, spec.role, spec.task, size.dev) * math.ceil(training.epochs)
    return learning_seconds(scene, spec) + choosing + final


def learning_seconds(scene: Scene, spec: RunSpec) -> float:
    """The steps of a training."""
    role, size, training = spec.role, scene.sizes[spec.task], scene.training(spec.role, spec.task)
    seen = _seen(scene, spec)
    tokens, positions = seen * size.tokens * PADDING, seen * size.positions
    if request := spec.recipe and spec.recipe.request(scene.settings, spec.point):
        beside = scene.explained(spec.task, request)
        tokens, positions = tokens + seen * beside.tokens * PADDING, positions + seen * beside.positions
    load = scene.training_load(role, spec.task)
    seconds = _train(scene, role, load, tokens, positions, training.gradient_checkpointing)
    if how := _on_policy(scene, spec):
        written = how.share * seen  # by the student, and read by the teacher
        seconds += answer_seconds(scene, role, spec.task, written, training.batch_size) * how.first_tokens
        seconds += _teacher_reads(scene, spec.task, written)
    return seconds


def _seen(scene: Scene, spec: RunSpec) -> float:
    """Examples that a training learns from, in all its epochs."""
    size, training = scene.sizes[spec.task], scene.training(spec.role, spec.task)
    learned = size.train + size.unlabeled * (spec.recipe is not None and bool(spec.recipe.needs))
    return training.epochs * (size.teacher_train if spec.role == TEACHER else learned * spec.fraction)


def _on_policy(scene: Scene, spec: RunSpec) -> OnPolicy | None:
    """How the student of a run writes what it learns from; None if it does not."""
    if spec.recipe is None or scene.labels(spec.task):
        return None
    return spec.recipe.on_policy(scene.settings, spec.point)


def _train(scene: Scene, role: str, load: Load, tokens: float, positions: float, recomputed: bool = False) -> float:
    """Seconds of learning so many tokens in passes of this load."""
    shape, adapters = scene.shape(role), load.lora is not None and load.lora.enabled
    operations = training_operations(shape, tokens, positions, adapters, recomputed)
    return operations / scene.machine.speeds.training(shape, load)


def _teacher_reads(scene: Scene, task: str, examples: float) -> float:
    """Seconds in which the teacher says what it thinks of so many targets."""
    size, batch_size = scene.sizes[task], scene.answer_batch(TEACHER)
    tokens = _own_tokens(scene, task, size.tokens)
    load = replace(scene.answer_load(TEACHER, task, batch_size), tokens=round(tokens), positions=size.positions)
    return read_seconds(scene, TEACHER, load, examples * tokens * PADDING)


def answer_seconds(
    scene: Scene, role: str, task: str, examples: float, batch_size: int | None = None, **model: Any
) -> float:
    """Seconds to score the labels of so many examples, or to generate their answers.

    `model` has the fields of its `Load` that are otherwise than where it is trained.
    """
    load = scene.answer_load(role, task, batch_size or scene.answer_batch(role))
    asked = _own_tokens(scene, task, scene.sizes[task].reported_tokens)
    load = replace(load, tokens=round(asked), **model)
    return _write(scene, role, load, examples, asked, scene.new_tokens(task))


def _own_tokens(scene: Scene, task: str, tokens: float) -> float:
    """Without those that all examples of a task with labels begin with: they are read once."""
    return max(tokens - TEMPLATE_TOKENS, 1.0) if scene.labels(task) else tokens


def _write(scene: Scene, role: str, load: Load, examples: float, asked: float, new_tokens: int) -> float:
    """Seconds to read so many prompts, of `asked` tokens each, and to generate what follows them."""
    generation = generate_seconds(scene, role, load, new_tokens)
    return (
        read_seconds(scene, role, load, examples * asked * PADDING) + math.ceil(examples / load.sequences) * generation
    )


def read_seconds(scene: Scene, role: str, load: Load, tokens: float) -> float:
    shape = scene.shape(role)
    operations = forward_operations(shape, tokens, tokens / load.tokens * load.positions)
    return operations / scene.machine.speeds.reading(shape, load)


def generate_seconds(scene: Scene, role: str, load: Load, new_tokens: int) -> float:
    """Seconds for the new tokens of a batch, half of which are there on average."""
    if not new_tokens:
        return 0.0
    there = replace(load, tokens=load.tokens + new_tokens // 2)
    return new_tokens * (scene.machine.speeds.writing(scene.shape(role), there) + GENERATION_OVERHEAD)


def pass_rows(scene: Scene) -> list[PassRow]:
    """The models that are built here, and what the teacher is asked, in the order in which it is done."""
    rows, whole = [], scene.settings.models.lora.model_copy(update={"enabled": False})
    for name, role in scene.names.items():
        if name in PRETRAINING:
            steps = round(PRETRAINING[name] * scene.settings.models.offline.pretraining_steps)
            texts, each, positions = PRETRAINING_BATCH
            tokens, load = steps * texts * each, Load(*PRETRAINING_BATCH, whole, steps=1.0)
            seconds = if_known(_train, scene, role, load, tokens, steps * texts * positions)
            rows.append(PassRow(f"pretraining, {name}", tokens, seconds))
    return [*rows, *(row for task in scene.tasks for row in teacher_rows(scene, task))]


def teacher_rows(scene: Scene, task: str) -> list[PassRow]:
    """What the teacher is asked about the training examples of a task."""
    size, rows = scene.sizes[task], []
    taught = size.train + size.unlabeled
    tokens, what = round(taught * size.tokens), f"{task}, {taught:,} examples"
    if scene.wants_outputs(task):
        seconds = if_known(_teacher_reads, scene, task, taught)
        rows.append(PassRow(f"teacher outputs, {what}", tokens, seconds))
    if scene.wants_answers(task):
        seconds = if_known(answer_seconds, scene, TEACHER, task, taught)
        rows.append(PassRow(f"teacher answers, {what}", tokens + taught * scene.new_tokens(task), seconds))
    for request in scene.requests:
        each, new = scene.explained(task, request).tokens, request.max_new_tokens
        load = replace(scene.answer_load(TEACHER, task, scene.answer_batch(TEACHER)), positions=1.0)
        asked = max(each - new, 1.0)
        about = scene, TEACHER, replace(load, tokens=round(asked)), taught, asked, new
        rows.append(PassRow(f"teacher rationales, {what}", round(taught * each), if_known(_write, *about)))
    return rows


def teacher_tokens(scene: Scene) -> int:
    """Tokens that a teacher behind a URL reads and writes: a prompt with each label or the target, answers as long as
    they may get, reasons, what students write in training, its own evaluation."""
    count = 0.0
    for task, size in scene.sizes.items():
        taught, texts, new = size.train + size.unlabeled, max(scene.labels(task), 1), scene.new_tokens(task)
        count += (size.dev + size.validation) * (size.reported_tokens * texts + new)
        count += taught * size.tokens * texts * scene.wants_outputs(task)
        count += taught * (size.tokens + new) * scene.wants_answers(task)
        count += sum(taught * scene.explained(task, request).tokens for request in scene.requests)
    for spec in scene.specs:
        if how := _on_policy(scene, spec):
            count += how.share * _seen(scene, spec) * scene.sizes[spec.task].tokens
    return round(count)

"""How long: the arithmetic's operations at the measured speed.

Answers are taken to be as long as they may get. What is there already is not subtracted, the report's seconds
are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, product

from kdsuite.config import OFFLINE_STUDENT, OFFLINE_TEACHER, TrainingSettings
from kdsuite.forecast.rows import PassRow, RunRow
from kdsuite.forecast.scene import TEACHER, Scene
from kdsuite.models.costs import Shape, forward_operations, training_operations
from kdsuite.plan import ZERO_SHOT, RunSpec

PADDING = 1.02  # padded by real tokens, in batches of similar length
GENERATION_OVERHEAD = 5e-3  # seconds per generated token in transformers' own loop, on one CPU core
PRETRAINING = {OFFLINE_TEACHER: 1.5, OFFLINE_STUDENT: 1.0}  # in models.offline.pretraining_steps
PRETRAINING_TOKENS, PRETRAINING_POSITIONS = 16 * 70, 16 * 10  # per step


def run_rows(scene: Scene, specs: Sequence[RunSpec]) -> list[RunRow]:
    """The runs by task, method and student, in the plan's order."""
    methods = list(dict.fromkeys(spec.method for spec in specs))
    ordered = sorted(
        specs, key=lambda s: (scene.tasks.index(s.task), methods.index(s.method), str(s.student))
    )
    rows = []
    for (task, method, student), group in groupby(ordered, key=lambda s: (s.task, s.method, s.student)):
        members = list(group)
        seeds = sorted({s.seed for s in members if s.seed is not None})
        points = len(members) // max(len(seeds), 1)
        ids = [s.run_id for s in members]
        rows.append(RunRow(task, method, student, points, seeds, run_seconds(scene, members[0]), ids))
    return rows


def run_seconds(scene: Scene, spec: RunSpec) -> float | None:
    """Training, the dev split after every epoch, dev and reported split at the end."""
    role = spec.student or TEACHER
    if scene.shape(role) is None:
        return None
    size, section = scene.size(spec.task), scene.settings.tasks[spec.task]
    final = _answer(scene, role, spec.task, size.dev + size.validation)
    is_teacher = spec.method == TEACHER
    if spec.method == ZERO_SHOT or (is_teacher and not section.teacher_training.enabled):
        return final
    training = section.teacher_training if is_teacher else section.training
    examples = size.teacher_train if is_teacher else size.train
    dev = _answer(scene, role, spec.task, size.dev) * math.ceil(training.epochs)
    return _train(scene, role, spec.task, training, examples) + dev + final


def pass_rows(scene: Scene, specs: Sequence[RunSpec]) -> list[PassRow]:
    """Everything but the runs, in the order in which it is done."""
    passes = [row for task in scene.tasks for row in _teacher_passes(scene, task)]
    return [*_pretraining(scene), *passes, *(_benchmark(scene, task, specs) for task in scene.tasks)]


def _train(scene: Scene, role: str, task: str, training: TrainingSettings, examples: int) -> float:
    size, seen = scene.size(task), training.epochs * examples
    operations = training_operations(
        _shape(scene, role),
        seen * size.tokens * PADDING,
        seen * size.positions,
        scene.lora,
        training.gradient_checkpointing,
    )
    return operations / scene.rates(role).training


def _answer(scene: Scene, role: str, task: str, examples: int, batch_size: int | None = None) -> float:
    """Seconds to score the labels of so many examples, or to generate their answers."""
    tokens = examples * scene.size(task).reported_tokens * PADDING
    batch_size = batch_size or scene.answer_batch(role)
    batches = math.ceil(examples / batch_size)
    return _read(scene, role, tokens) + batches * _generate(scene, role, scene.new_tokens(task), batch_size)


def _read(scene: Scene, role: str, tokens: float, positions: float = 0.0) -> float:
    return forward_operations(_shape(scene, role), tokens, positions) / scene.rates(role).forward


def _generate(scene: Scene, role: str, new_tokens: int, batch_size: int) -> float:
    """Seconds for the new tokens of a batch: each step reads all weights, and computes with them."""
    shape, rates = _shape(scene, role), scene.rates(role)
    weights = shape.body_parameters + shape.width * shape.vocabulary
    step = max(rates.token * weights, 2 * weights * batch_size / rates.forward)
    return new_tokens * (step + GENERATION_OVERHEAD)


def _shape(scene: Scene, role: str) -> Shape:
    shape = scene.shape(role)
    assert shape is not None  # its seconds would not be asked for
    return shape


def _teacher_passes(scene: Scene, task: str) -> list[PassRow]:
    size, known = scene.size(task), scene.shape(TEACHER) is not None
    tokens, rows = round(size.train * size.tokens), []
    if scene.wants_outputs(task):
        seconds = _read(scene, TEACHER, tokens * PADDING, size.train * size.positions) if known else None
        rows.append(PassRow(f"teacher outputs, {task}, {size.train:,} examples", tokens, seconds))
    if scene.wants_answers(task):
        seconds = _answer(scene, TEACHER, task, size.train) if known else None
        tokens += size.train * scene.new_tokens(task)
        rows.append(PassRow(f"teacher answers, {task}, {size.train:,} examples", tokens, seconds))
    return rows


def _pretraining(scene: Scene) -> list[PassRow]:
    """The offline models' own."""
    names = {scene.model(role).name: role for role in (TEACHER, *scene.students)}
    rows = []
    for name, role in names.items():
        shape = scene.shape(role)
        if name in PRETRAINING and shape is not None:
            steps = round(PRETRAINING[name] * scene.settings.models.offline.pretraining_steps)
            tokens, positions = steps * PRETRAINING_TOKENS, steps * PRETRAINING_POSITIONS
            operations = training_operations(shape, tokens, positions, lora=False, recomputed=False)
            rows.append(PassRow(f"pretraining, {name}", tokens, operations / scene.rates(role).training))
    return rows


def _benchmark(scene: Scene, task: str, specs: Sequence[RunSpec]) -> PassRow:
    """Every variant in turn: warm-up and timed generation at every size, then answers to real examples."""
    settings, size = scene.settings.benchmark, scene.size(task)
    roles = [student or TEACHER for student, _ in {(s.student, s.method) for s in specs if s.task == task}]
    roles += [scene.students[0]] * len(settings.quantize) * settings.quantize_top_k
    steps, prompts = settings.new_tokens + 3 * settings.warmup, 1 + settings.warmup
    threads = len(settings.threads or (0,))
    known = all(scene.shape(role) for role in roles)
    tokens = seconds = 0.0
    for role, batch_size in product(roles, settings.batch_sizes):
        read = prompts * batch_size * (size.tokens + size.longest)
        tokens += threads * settings.blocks * (read + 2 * steps * batch_size)
        if known:
            once = _read(scene, role, read) + 2 * _generate(scene, role, steps, batch_size)
            seconds += threads * settings.blocks * once
    tokens += (
        len(roles) * settings.blocks * settings.answers * (size.reported_tokens + scene.new_tokens(task))
    )
    if known:
        answers = [_answer(scene, role, task, settings.answers, batch_size=1) for role in roles]
        seconds += settings.blocks * sum(answers)
    return PassRow(f"benchmark, {task}", round(tokens), seconds if known else None)

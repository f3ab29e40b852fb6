"""How much disk and memory: downloads, teacher outputs, what runs leave, and the peak of every stage.

A stage is taken to hold its own models only: the pipeline lets go of the teacher before it trains (unless its
hidden states are computed meanwhile), and of the students before it benchmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from kdsuite.config import TrainingSettings
from kdsuite.forecast.rows import DiskRow, MemoryRow
from kdsuite.forecast.scene import TEACHER, Scene, is_downloaded
from kdsuite.methods.base import Kept, method
from kdsuite.models.costs import (
    DTYPE_BYTES,
    Shape,
    cache_bytes,
    checkpoint_bytes,
    inference_bytes,
    saved_bytes,
    training_bytes,
    weight_bytes,
)
from kdsuite.plan import RunSpec
from kdsuite.tasks.example import task_of

PROCESS_BYTES = 700_000_000  # interpreter and libraries, where models share the memory with them
TOKENIZER_MEMORY = 900  # bytes of a loaded tokenizer, per token of its vocabulary
TOKENIZER_BYTES = 110  # of tokenizer files, per token of the vocabulary
PREDICTION_BYTES = 300  # of predictions.jsonl, per example
QUANTIZED_BYTES = {"int8": 1.0, "int4": 0.5625}  # per weight of a linear map, scales included


def disk_rows(scene: Scene, specs: Sequence[RunSpec]) -> list[DiskRow]:
    """What is downloaded, and what is written below the results folder."""
    names = {scene.model(role).name: role for role in (TEACHER, *scene.students)}
    downloads = [
        DiskRow("download", name, _download(scene, role))
        for name, role in names.items()
        if is_downloaded(name)
    ]
    wanted = [task for task in scene.tasks if scene.wants_outputs(task)]
    caches = [DiskRow("cache", f"teacher outputs, {task}", teacher_outputs(scene, task)) for task in wanted]
    left = [_left_by_runs(scene, role, specs) for role in (TEACHER, *scene.students)]
    return [*downloads, *caches, *left, _checkpoints(scene, specs)]


def _checkpoints(scene: Scene, specs: Sequence[RunSpec]) -> DiskRow:
    """Of the largest model that is trained; one at a time, removed when its run is completed."""
    roles = {spec.student or TEACHER for spec in specs if _trains(scene, spec)}
    shapes = [scene.shape(role) for role in roles]
    saved = [saved_bytes(shape, scene.settings.models.lora) for shape in shapes if shape]
    size = checkpoint_bytes(max(saved, default=0)) if len(saved) == len(shapes) else None
    return DiskRow("results", "checkpoints of the run that is being trained", size)


def _trains(scene: Scene, spec: RunSpec) -> bool:
    return spec.trained or (
        spec.method == TEACHER and scene.settings.tasks[spec.task].teacher_training.enabled
    )


def teacher_outputs(scene: Scene, task: str) -> int | None:
    """Bytes of a task's cache; None if a model is unknown that decides how much is kept."""
    teacher, students = scene.shape(TEACHER), [scene.shape(s) for s in scene.students]
    if teacher is None or None in students:
        return None
    size, methods = scene.size(task), [method(name) for name in scene.settings.methods]
    kept = reduce(Kept.__or__, filter(None, (one.kept(scene.settings) for one in methods)), Kept())
    depths = [shape.layers for shape in students if shape]
    pairs = [
        pair for one in methods for d in depths for pair in one.layers(scene.settings, d, teacher.layers)
    ]
    layers = {layer for _, layer in pairs} if kept.states else ()
    return cache_bytes(
        size.train,
        size.positions,
        min(kept.top_k, teacher.vocabulary),
        kept.dtype,
        temperatures=len(kept.temperatures - {1.0}),
        states=len(layers) * teacher.width * DTYPE_BYTES[scene.dtype],
        labels=len(task_of(task, scene.settings.tasks[task]).labels or ()),
    )


def memory_rows(scene: Scene) -> list[MemoryRow]:
    """The peak of every stage and model."""
    peaks = [("cache", TEACHER, _caching_peak(scene))]
    peaks += [("train", role, _training_peak(scene, role)) for role in scene.students]
    peaks += [("evaluate", role, _evaluation_peak(scene, role)) for role in scene.students]
    peaks += [("benchmark", role, _benchmark_peak(scene, role)) for role in (TEACHER, *scene.students)]
    return [_memory_row(scene, *peak) for peak in peaks]


def _memory_row(scene: Scene, stage: str, role: str, peak: int | None) -> MemoryRow:
    if peak is not None and not scene.machine.device.startswith("cuda"):
        shapes = [scene.shape(role) for role in (TEACHER, *scene.students)]
        peak += PROCESS_BYTES + TOKENIZER_MEMORY * sum(shape.vocabulary for shape in shapes if shape)
    fits = None if peak is None else peak <= scene.machine.memory
    return MemoryRow(stage, scene.model(role).name, peak, fits)


def _download(scene: Scene, role: str) -> int | None:
    shape = scene.shape(role)
    return shape and weight_bytes(shape, shape.stored) + TOKENIZER_BYTES * shape.vocabulary


def _left_by_runs(scene: Scene, role: str, specs: Sequence[RunSpec]) -> DiskRow:
    """Adapters or weights with their tokenizers, predictions, and what the benchmark quantizes."""
    runs = [s for s in specs if (s.student or TEACHER) == role]
    what = f"{len(runs)} runs of {role}: what was trained, predictions"
    shape = scene.shape(role)
    if shape is None:
        return DiskRow("results", what, None)
    kept = [spec for spec in runs if _trains(scene, spec)]
    each = saved_bytes(shape, scene.settings.models.lora) + TOKENIZER_BYTES * shape.vocabulary
    predictions = PREDICTION_BYTES * sum(scene.size(s.task).validation for s in runs)
    return DiskRow("results", what, len(kept) * each + predictions + _quantized(scene, role, shape))


def _quantized(scene: Scene, role: str, shape: Shape) -> int:
    settings = scene.settings.benchmark
    if role != scene.students[0]:
        return 0
    per_weight = sum(QUANTIZED_BYTES[scheme] for scheme in settings.quantize)
    return round(len(scene.tasks) * settings.quantize_top_k * per_weight * shape.body_parameters)


def _caching_peak(scene: Scene) -> int | None:
    shape = scene.shape(TEACHER)
    if shape is None:
        return None
    peaks = [_answering(scene, TEACHER, shape, task) for task in scene.tasks]
    sections = {task: scene.settings.tasks[task].teacher_training for task in scene.tasks}
    tuned = {task: section for task, section in sections.items() if section.enabled}
    return max([*peaks, *(_training(scene, shape, task, section) for task, section in tuned.items())])


def _training_peak(scene: Scene, role: str) -> int | None:
    shape = scene.shape(role)
    if shape is None:
        return None
    sections = {task: scene.settings.tasks[task].training for task in scene.tasks}
    peaks = [_training(scene, shape, task, section) for task, section in sections.items()]
    return max(peaks) + _other_students(scene, role) + _teacher_beside(scene)


def _evaluation_peak(scene: Scene, role: str) -> int | None:
    shape = scene.shape(role)
    if shape is None:
        return None
    peaks = [_answering(scene, role, shape, task) for task in scene.tasks]
    return max(peaks) + _other_students(scene, role)


def _benchmark_peak(scene: Scene, role: str) -> int | None:
    shape, settings = scene.shape(role), scene.settings.benchmark
    longest = max(scene.size(task).longest for task in scene.tasks)
    return shape and inference_bytes(
        shape, max(settings.batch_sizes), longest, settings.new_tokens, scene.dtype
    )


def _answering(scene: Scene, role: str, shape: Shape, task: str) -> int:
    """Of labels that are scored, of answers that are generated, or of the teacher's outputs on its targets."""
    size, batch_size, new_tokens = scene.size(task), scene.answer_batch(role), scene.new_tokens(task)
    scored = not scene.generates(task) or (role == TEACHER and scene.wants_outputs(task))
    positions = size.positions if scored else 1.0
    return inference_bytes(shape, batch_size, size.longest, new_tokens, scene.dtype, positions)


def _training(scene: Scene, shape: Shape, task: str, training: TrainingSettings) -> int:
    size = scene.size(task)
    return training_bytes(
        shape, training, scene.settings.models.lora, size.longest, size.positions, scene.dtype
    )


def _teacher_beside(scene: Scene) -> int:
    """Weights of a teacher whose hidden states are computed while a student is trained."""
    shape = scene.shape(TEACHER)
    return weight_bytes(shape, scene.dtype) if shape and scene.teacher_beside else 0


def _other_students(scene: Scene, role: str) -> int:
    """Weights of the other students, which stay loaded for their next run."""
    dtype = scene.dtype if scene.lora else "float32"
    shapes = [scene.shape(other) for other in scene.students if other != role]
    return sum(weight_bytes(shape, dtype) for shape in shapes if shape)

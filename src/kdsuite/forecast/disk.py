"""How much disk: downloads, teacher outputs, what runs leave."""

from __future__ import annotations

from kdsuite.config import LoraSettings
from kdsuite.forecast.rows import DiskRow
from kdsuite.forecast.scene import TEACHER, Scene, if_known, is_downloaded
from kdsuite.methods.base import kept_by, method
from kdsuite.models.costs import DTYPE_BYTES, Shape, cache_bytes, checkpoint_bytes, weight_bytes

TOKENIZER_BYTES = 110  # of tokenizer files, per token of the vocabulary
PREDICTION_BYTES = 300  # of predictions.jsonl, per example
QUANTIZED_BYTES = {"int8": 1.0, "int4": 0.5625}  # per weight of a linear map, scales included


def adapter_parameters(shape: Shape, r: int) -> int:
    """Parameters of LoRA adapters of rank `r` on all linear layers but the LM head."""
    return shape.layers * sum(r * (i + o) for i, o in shape.linears)


def saved_bytes(shape: Shape, lora: LoraSettings) -> int:
    """Bytes on disk of what one run saves: the adapter, or all weights; both in float32."""
    return DTYPE_BYTES["float32"] * (adapter_parameters(shape, lora.r) if lora.enabled else shape.parameters)


def disk_rows(scene: Scene) -> list[DiskRow]:
    """What is downloaded, and what is written below the results folder."""
    names = {scene.model(role).name: role for role in scene.roles}
    downloaded = {name: role for name, role in names.items() if is_downloaded(name)}
    caches = [task for task in scene.tasks if scene.wants_outputs(task)]
    return [
        *(DiskRow("download", name, if_known(_download, scene, role)) for name, role in downloaded.items()),
        *(
            DiskRow("cache", f"teacher outputs, {task}", if_known(teacher_outputs, scene, task))
            for task in caches
        ),
        *(_left_by_runs(scene, role) for role in scene.roles),
        DiskRow("results", "checkpoints of the run that is being trained", if_known(_checkpoints, scene)),
    ]


def _download(scene: Scene, role: str) -> int:
    shape = scene.shape(role)
    return weight_bytes(shape, shape.stored) + TOKENIZER_BYTES * shape.vocabulary


def teacher_outputs(scene: Scene, task: str) -> int:
    """Bytes of a task's cache. UnknownShape of any model: all decide how much is kept."""
    teacher, students = scene.shape(TEACHER), [scene.shape(student) for student in scene.students]
    settings, size = scene.settings, scene.sizes[task]
    methods = [method(name) for name in settings.methods]
    kept = kept_by(methods, settings)
    depths = [(student.layers, teacher.layers) for student in students]
    pairs = {pair for one in methods for depth in depths for pair in one.layers(settings, *depth)}
    layers = {layer for _, layer in pairs} if kept.states else set()
    return cache_bytes(
        size.train,
        size.positions,
        min(kept.top_k, teacher.vocabulary),
        kept.dtype,
        temperatures=len(kept.temperatures - {1.0}),
        states=len(layers) * teacher.width * DTYPE_BYTES[scene.dtype],
        labels=scene.labels(task),
    )


def _left_by_runs(scene: Scene, role: str) -> DiskRow:
    """Adapters or weights with their tokenizers, predictions, and what the benchmark quantizes."""
    specs, benchmark = [s for s in scene.specs if (s.student or TEACHER) == role], scene.settings.benchmark
    copies = len(scene.tasks) * benchmark.quantize_top_k if role == scene.students[0] else 0

    def left() -> int:
        shape = scene.shape(role)
        each = saved_bytes(shape, scene.settings.models.lora) + TOKENIZER_BYTES * shape.vocabulary
        predictions = PREDICTION_BYTES * sum(scene.sizes[s.task].validation for s in specs)
        quantized = copies * sum(QUANTIZED_BYTES[scheme] for scheme in benchmark.quantize)  # per weight
        return sum(map(scene.trains, specs)) * each + predictions + round(quantized * shape.body_parameters)

    return DiskRow("results", f"{len(specs)} runs of {role}: what was trained, predictions", if_known(left))


def _checkpoints(scene: Scene) -> int:
    """Of the largest model that is trained; one at a time, removed when its run is completed."""
    roles = {spec.student or TEACHER for spec in scene.specs if scene.trains(spec)}
    saved = [saved_bytes(scene.shape(role), scene.settings.models.lora) for role in roles]
    return checkpoint_bytes(max(saved, default=0))

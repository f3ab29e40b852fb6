"""How much disk and memory: downloads, teacher outputs, what runs leave, and the peak of every stage.

A stage is taken to hold its own models only: the pipeline lets go of the teacher before it trains (unless its
hidden states are computed meanwhile), and of the students before it benchmarks.
"""

from collections.abc import Sequence

from kdsuite.config import LoraSettings, TrainingSettings
from kdsuite.forecast.proportion import contestants
from kdsuite.forecast.rows import DiskRow, MemoryRow
from kdsuite.forecast.scene import TEACHER, Scene, if_known, is_downloaded
from kdsuite.methods.base import kept_by, method
from kdsuite.models.costs import DTYPE_BYTES, Shape, checkpoint_bytes, weight_bytes
from kdsuite.plan import RunSpec
from kdsuite.tasks.sizes import TaskSize

FLOAT = DTYPE_BYTES["float32"]
TOKENIZER_BYTES = 110  # of tokenizer files, per token of the vocabulary
TOKENIZER_MEMORY = 900  # of a loaded tokenizer
PREDICTION_BYTES = 300  # of predictions.jsonl, per example
QUANTIZED_BYTES = {"int8": 1.0, "int4": 0.5625}  # per weight of a linear map, scales included
PROCESS_BYTES = 700_000_000  # interpreter and libraries, where models share the memory with them
SPARE = 1.3  # memory that the allocator holds, relative to what is in use: the tensors of a step are of many sizes
LOGIT_COPIES = 5  # of a supervised position's, in float32: themselves, log-softmax, gradients on the way back
ANSWER_COPIES = 3  # without a way back


def adapter_parameters(shape: Shape, r: int) -> int:
    """Parameters of LoRA adapters of rank `r` on all linear layers but the LM head."""
    return shape.layers * sum(r * (i + o) for i, o in shape.linears)


def saved_bytes(shape: Shape, lora: LoraSettings) -> int:
    """Bytes on disk of what one run saves: the adapter, or all weights; both in float32."""
    return FLOAT * (adapter_parameters(shape, lora.r) if lora.enabled else shape.parameters)


def activation_bytes(shape: Shape, tokens: int, length: int, lora: LoraSettings, recomputed: bool, dtype: str) -> int:
    """Bytes that a forward pass of `tokens` tokens, in sequences of `length`, keeps for the backward pass.

    Per token and layer, products being taken in `dtype`: float32 inputs of all norms (a frozen weight's output is not
    kept, one that is trained doubles them); queries, keys and values after rotation, and what attention gives; three
    vectors of the feed-forward layer. With adapters, of every map's input its dropout's mask and what that leaves;
    else the inputs, which several maps share. `recomputed` (gradient checkpointing): the layers' inputs, and all of one
    layer.
    """
    each, queries, keys = DTYPE_BYTES[dtype], shape.queries, shape.keys
    normed = shape.norms * shape.width + (queries + keys) * shape.normed_heads
    inputs = 2 * shape.width + queries + shape.inner
    if lora.enabled and lora.dropout:
        inputs = 2 * sum(i for i, _ in shape.linears)
    one_layer = normed * FLOAT * (1 if lora.enabled else 2)
    one_layer += (2 * queries + 2 * keys + 3 * shape.inner) * each + inputs * each
    scores = 2 * shape.heads * length * each  # of attention, where the device has no kernel that avoids them
    kept = shape.layers * shape.width * each + one_layer if recomputed else shape.layers * one_layer
    return round(tokens * (kept + scores))


def training_bytes(
    shape: Shape, settings: TrainingSettings, lora: LoraSettings, length: int, positions: float, dtype: str
) -> int:
    """Peak bytes of training on sequences of `length` tokens with `positions` supervised ones each.

    With adapters: frozen weights in `dtype`; gradients, two AdamW moments and weights of the adapters in
    float32. Without: the shared base beside a copy that is trained, all in float32, and the copy in `dtype` that
    is computed with. Logits exist on supervised positions only.
    """
    micro = settings.micro_batch_size or settings.batch_size
    if lora.enabled:
        weights = weight_bytes(shape, dtype) + 4 * FLOAT * adapter_parameters(shape, lora.r)
    else:
        weights = 5 * FLOAT * shape.parameters + (weight_bytes(shape, dtype) if dtype != "float32" else 0)
    activations = activation_bytes(shape, micro * length, length, lora, settings.gradient_checkpointing, dtype)
    logits = LOGIT_COPIES * FLOAT * micro * positions * shape.vocabulary
    return weights + round(SPARE * (activations + logits))


def inference_bytes(
    shape: Shape, batch_size: int, length: int, new_tokens: int, dtype: str, positions: float = 1.0
) -> int:
    """Peak bytes of a batch through the model, or of loading it where that is more: weights, one layer's activations,
    the key-value cache if there are new tokens, and logits of `positions` of each sequence at once."""
    tokens = batch_size * (length + new_tokens)
    layer = tokens * (6 * shape.width + 3 * shape.inner) * DTYPE_BYTES[dtype]
    cache = 2 * tokens * shape.layers * shape.keys * DTYPE_BYTES[dtype] if new_tokens else 0
    logits = round(ANSWER_COPIES * FLOAT * batch_size * positions * shape.vocabulary)
    mapped = weight_bytes(shape, shape.stored) if dtype != shape.stored else 0  # files, beside the weights
    return weight_bytes(shape, dtype) + max(round(SPARE * (layer + cache + logits)), mapped)


def disk_rows(scene: Scene) -> list[DiskRow]:
    """What is downloaded, and what is written below the results folder."""
    rows = []
    for name, role in scene.names.items():
        if is_downloaded(name):
            rows.append(DiskRow("download", name, if_known(_download, scene, role)))
    for task in filter(scene.wants_outputs, scene.tasks):
        rows.append(DiskRow("cache", f"teacher outputs, {task}", if_known(teacher_outputs, scene, task)))
    for role in scene.settings.roles:
        specs = [spec for spec in scene.specs if spec.role == role]
        what = f"{len(specs)} runs of {role}: what was trained, predictions"
        rows.append(DiskRow("results", what, if_known(_left_by_runs, scene, role, specs)))
    what = "checkpoints of the run that is being trained"
    return [*rows, DiskRow("results", what, if_known(_checkpoints, scene))]


def _download(scene: Scene, role: str) -> int:
    shape = scene.shape(role)
    return weight_bytes(shape, shape.stored) + TOKENIZER_BYTES * shape.vocabulary


def teacher_outputs(scene: Scene, task: str) -> int:
    """Bytes of a task's cache. UnknownShape of any model: all decide how much is kept."""
    students = [scene.shape(student) for student in scene.settings.students]
    teacher = None if scene.served else scene.shape(TEACHER)
    settings, size = scene.settings, scene.sizes[task]
    methods = [method(name) for name in settings.methods]
    depths = [(student.layers, teacher.layers) for student in students if teacher]
    pairs = [pair for one in methods for depth in depths for pair in one.layers(settings, *depth)]
    keep = kept_by(methods, settings).outputs({layer for _, layer in pairs}, scene.labels(task))
    width, vocabulary = (teacher.width, teacher.vocabulary) if teacher else (0, None)
    return keep.disk_bytes(size.train + size.unlabeled, size.positions, width, scene.dtype, vocabulary)


def _left_by_runs(scene: Scene, role: str, specs: Sequence[RunSpec]) -> int:
    """Adapters or weights with their tokenizers, predictions, and what the benchmark quantizes."""
    shape = scene.shape(role)
    each = saved_bytes(shape, scene.settings.models.lora) + TOKENIZER_BYTES * shape.vocabulary
    predictions = PREDICTION_BYTES * sum(scene.sizes[spec.task].validation for spec in specs)
    embedding = (shape.parameters - shape.body_parameters) * DTYPE_BYTES[scene.dtype]  # and the head, as they are
    measured = [scheme for task in scene.tasks for owner, scheme in contestants(scene, task) if owner == role]
    quantized = [round(QUANTIZED_BYTES[scheme] * shape.body_parameters) + embedding for scheme in measured if scheme]
    return sum(map(scene.trains, specs)) * each + predictions + sum(quantized)


def _checkpoints(scene: Scene) -> int:
    """Of the largest model that is trained; one at a time, removed when its run is completed."""
    roles = {spec.role for spec in scene.specs if scene.trains(spec)}
    saved = [saved_bytes(scene.shape(role), scene.settings.models.lora) for role in roles]
    return checkpoint_bytes(max(saved, default=0))


def memory_rows(scene: Scene) -> list[MemoryRow]:
    """The peak of every stage and model."""
    students = scene.settings.students
    stages = [("cache", role) for role in scene.loaded if role == TEACHER]
    stages += [(stage, student) for stage in ("train", "evaluate") for student in students]
    stages += [("benchmark", role) for role in scene.loaded]
    process = 0
    if not scene.machine.device.startswith("cuda"):
        process = PROCESS_BYTES + TOKENIZER_MEMORY * sum(s.vocabulary for s in scene.shapes(scene.settings.roles))
    rows = []
    for stage, role in stages:
        split = if_known(lambda of: scene.machine.speeds.split(scene.shape(of)), role) or 1
        peak = if_known(lambda *which: (_peak(scene, *which) + process) // split, stage, role)  # noqa: B023
        fits = None if peak is None else peak <= scene.machine.memory
        rows.append(MemoryRow(stage, scene.model(role).name, peak, fits, split))
    return rows


def _peak(scene: Scene, stage: str, role: str) -> int:
    """Of what a stage does with a role's model, that which takes the most, with the models beside it."""
    shape, benchmark, sections = scene.shape(role), scene.settings.benchmark, scene.settings.tasks
    dtype = scene.dtype if scene.settings.models.lora.enabled else "float32"
    staying = scene.shapes(set(scene.settings.students) - {role})  # loaded, for their next run
    others = sum(weight_bytes(student, dtype) for student in staying)
    if stage == "benchmark":
        longest = max(size.longest for size in scene.sizes.values())
        return inference_bytes(shape, max(benchmark.batch_sizes), longest, benchmark.new_tokens, scene.dtype)

    def training(size: TaskSize, settings: TrainingSettings) -> int:
        return training_bytes(shape, settings, scene.settings.models.lora, size.longest, size.positions, scene.dtype)

    explained = [(task, scene.explained(task, one), one) for task in scene.tasks for one in scene.requests]
    if stage == "train":
        learned = [*scene.sizes.items(), *((task, size) for task, size, _ in explained)]  # in passes of their own
        peaks = [training(size, sections[task].training) for task, size in learned]
        beside = scene.shapes([TEACHER]) if scene.asks_in_training else []
        return max(peaks) + others + sum(weight_bytes(teacher, scene.dtype) for teacher in beside)
    peaks = [_answering(scene, role, shape, task) for task in scene.tasks]
    if stage == "evaluate":
        return max(peaks) + others
    written = [(size.longest - one.max_new_tokens, one.max_new_tokens) for _, size, one in explained]
    peaks += [inference_bytes(shape, scene.answer_batch(role), *lengths, scene.dtype) for lengths in written]
    tuned = [(size, sections[task].teacher_training) for task, size in scene.sizes.items()]
    return max(peaks + [training(size, settings) for size, settings in tuned if settings.enabled])


def _answering(scene: Scene, role: str, shape: Shape, task: str) -> int:
    """Of labels that are scored, of answers that are generated, or of the teacher's outputs on its targets."""
    size, scored = scene.sizes[task], scene.labels(task) or (role == TEACHER and scene.wants_outputs(task))
    batch = scene.answer_batch(role), size.longest, scene.new_tokens(task)
    return inference_bytes(shape, *batch, scene.dtype, size.positions if scored else 1.0)

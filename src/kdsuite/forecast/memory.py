"""How much memory: the peak of every stage.

A stage is taken to hold its own models only: the pipeline lets go of the teacher before it trains (unless its
hidden states are computed meanwhile), and of the students before it benchmarks.
"""

from __future__ import annotations

from kdsuite.config import LoraSettings, TrainingSettings
from kdsuite.forecast.disk import adapter_parameters
from kdsuite.forecast.rows import MemoryRow
from kdsuite.forecast.scene import TEACHER, Scene, if_known
from kdsuite.models.costs import DTYPE_BYTES, Shape, weight_bytes

FLOAT = DTYPE_BYTES["float32"]
PROCESS_BYTES = 700_000_000  # interpreter and libraries, where models share the memory with them
TOKENIZER_MEMORY = 900  # bytes of a loaded tokenizer, per token of its vocabulary
SPARE = 1.3  # memory that the allocator holds, relative to what is in use: the tensors of a step are of many sizes
LOGIT_COPIES = 5  # of a supervised position's, in float32: themselves, log-softmax, gradients on the way back
ANSWER_COPIES = 3  # without a way back


def activation_bytes(
    shape: Shape, tokens: int, length: int, lora: LoraSettings, recomputed: bool, dtype: str
) -> int:
    """Bytes that a forward pass of `tokens` tokens, in sequences of `length`, keeps for the backward pass.

    Per token and layer, products being taken in `dtype`: float32 inputs of all norms (a frozen weight's output is not
    kept, one that is trained doubles them); queries, keys and values after rotation, and what attention gives; three
    vectors of the feed-forward layer. With adapters, of every map's input its dropout's mask in float32 and what that
    leaves; else the input in `dtype`. `recomputed` (gradient checkpointing): the layers' inputs, and all of one layer.
    """
    each, queries, keys = DTYPE_BYTES[dtype], shape.queries, shape.keys
    normed = shape.norms * shape.width + (queries + keys) * shape.normed_heads
    masks = FLOAT if lora.enabled and lora.dropout else 0
    inputs = sum(i for i, _ in shape.linears)
    if not masks and dtype == "float32":  # maps with one input share it
        inputs = 2 * shape.width + queries + shape.inner
    one_layer = normed * FLOAT * (1 if lora.enabled else 2)
    one_layer += (2 * queries + 2 * keys + 3 * shape.inner) * each + inputs * (masks + each)
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
    activations = activation_bytes(
        shape, micro * length, length, lora, settings.gradient_checkpointing, dtype
    )
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
    mapped = (
        weight_bytes(shape, shape.stored) if dtype != shape.stored else 0
    )  # files beside what is made of them
    return weight_bytes(shape, dtype) + max(round(SPARE * (layer + cache + logits)), mapped)


def memory_rows(scene: Scene) -> list[MemoryRow]:
    """The peak of every stage and model."""
    stages = {
        "cache": [TEACHER],
        "train": scene.students,
        "evaluate": scene.students,
        "benchmark": scene.roles,
    }
    process = 0
    if not scene.machine.device.startswith("cuda"):
        process = PROCESS_BYTES + TOKENIZER_MEMORY * sum(s.vocabulary for s in scene.shapes(scene.roles))
    rows = []
    for stage, role in ((stage, role) for stage, roles in stages.items() for role in roles):
        if (peak := if_known(_peak, scene, stage, role)) is not None:
            peak += process
        fits = None if peak is None else peak <= scene.machine.memory
        rows.append(MemoryRow(stage, scene.model(role).name, peak, fits))
    return rows


def _peak(scene: Scene, stage: str, role: str) -> int:
    """Of what a stage does with a role's model, that which takes the most, with the models beside it."""
    shape, benchmark, sections = scene.shape(role), scene.settings.benchmark, scene.settings.tasks
    if stage == "benchmark":
        longest = max(size.longest for size in scene.sizes.values())
        return inference_bytes(shape, max(benchmark.batch_sizes), longest, benchmark.new_tokens, scene.dtype)

    def training(task: str, settings: TrainingSettings) -> int:
        size, lora = scene.sizes[task], scene.settings.models.lora
        return training_bytes(shape, settings, lora, size.longest, size.positions, scene.dtype)

    if stage == "train":
        peaks = [training(task, sections[task].training) for task in scene.tasks]
        return max(peaks) + _other_students(scene, role) + _teacher_beside(scene)
    peaks = [_answering(scene, role, shape, task) for task in scene.tasks]
    if stage == "evaluate":
        return max(peaks) + _other_students(scene, role)
    tuned = {task: sections[task].teacher_training for task in scene.tasks}
    return max(peaks + [training(task, settings) for task, settings in tuned.items() if settings.enabled])


def _answering(scene: Scene, role: str, shape: Shape, task: str) -> int:
    """Of labels that are scored, of answers that are generated, or of the teacher's outputs on its targets."""
    size, scored = scene.sizes[task], scene.labels(task) or (role == TEACHER and scene.wants_outputs(task))
    batch = scene.answer_batch(role), size.longest, scene.new_tokens(task)
    return inference_bytes(shape, *batch, scene.dtype, size.positions if scored else 1.0)


def _other_students(scene: Scene, role: str) -> int:
    """Weights of the other students, which stay loaded for their next run."""
    dtype = scene.dtype if scene.settings.models.lora.enabled else "float32"
    return sum(weight_bytes(shape, dtype) for shape in scene.shapes(set(scene.students) - {role}))


def _teacher_beside(scene: Scene) -> int:
    """Weights of a teacher whose hidden states are computed while a student is trained."""
    return sum(
        weight_bytes(shape, scene.dtype) for shape in scene.shapes([TEACHER]) if scene.asks_in_training
    )

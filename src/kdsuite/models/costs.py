"""What models, teacher outputs and training cost, by arithmetic: no weights, no device, no network.

Bytes are bytes, times are left to whoever knows the device's speed: here costs are floating-point operations
(a multiplication and an addition are two). N weights cost 2·N operations per token forward and 4·N backward,
of which a frozen weight's gradient is half and is not computed: 6·N for full training, 4·N with adapters,
2·N more where activations are recomputed (Kaplan et al. 2020, arXiv:2001.08361, section 2.1). Attention's own
products are left out: a few percent at these lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdsuite.config import LoraSettings, TrainingSettings

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOAT = DTYPE_BYTES["float32"]
CHECKPOINT_ROOM = 1.2  # on disk, relative to the bare tensors
FAMILIES = (  # architectures with these linear maps, norms and biases; others have other sizes
    "llama", "mistral", "qwen2", "qwen3", "phi3", "granite", "smollm3", "gemma", "gemma2", "gemma3_text",
)  # fmt: skip
BIASED = ("qwen2",)  # … whose query, key and value projections have biases
NORMED_HEADS = ("qwen3", "gemma3_text")  # … whose queries and keys are normalised per head
NORMED_TWICE = ("gemma2", "gemma3_text")  # … with norms before and behind attention and feed-forward layers
SPARE = 1.3  # memory that the allocator holds, relative to what is in use: the tensors of a step are of many sizes
LOGIT_COPIES = (
    5  # of a supervised position's logits, in float32: themselves, log-softmax, gradients on the way back
)
ANSWER_COPIES = 3  # without a way back


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-like decoder (one of FAMILIES), as its config.json gives them."""

    vocabulary: int
    width: int
    inner: int  # of the feed-forward layers
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    tied: bool  # the LM head is the embedding
    biased: bool
    normed_heads: bool
    norms: int  # of a layer, as wide as it
    stored: str  # dtype of the weight files

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From the content of a config.json. KeyError if it is not that of such a decoder."""
        kind = config.get("model_type")
        if kind not in FAMILIES:
            raise KeyError(f"model_type {kind}")
        heads, width = config["num_attention_heads"], config["hidden_size"]
        stored = config.get("dtype") or config.get("torch_dtype") or "float32"
        return cls(
            vocabulary=config["vocab_size"],
            width=width,
            inner=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_width=config.get("head_dim") or width // heads,
            tied=config.get("tie_word_embeddings", kind.startswith("gemma")),
            biased=kind in BIASED,
            normed_heads=kind in NORMED_HEADS,
            norms=4 if kind in NORMED_TWICE else 2,
            stored=stored,
        )

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a layer's linear maps."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        attention = [(self.width, queries), (self.width, keys), (self.width, keys), (queries, self.width)]
        return [*attention, (self.width, self.inner), (self.width, self.inner), (self.inner, self.width)]

    @property
    def layer_parameters(self) -> int:
        """All of one layer's."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        biases = (queries + 2 * keys) * self.biased
        norms = self.norms * self.width + 2 * self.head_width * self.normed_heads
        return sum(i * o for i, o in self.linears) + biases + norms

    @property
    def body_parameters(self) -> int:
        """Those that every token passes through: all but the embedding and the LM head."""
        return self.layers * self.layer_parameters + self.width

    @property
    def parameters(self) -> int:
        """All of them, a tied head once."""
        return self.body_parameters + self.vocabulary * self.width * (1 if self.tied else 2)


def adapter_parameters(shape: Shape, r: int) -> int:
    """Parameters of LoRA adapters of rank `r` on all linear layers but the LM head."""
    return shape.layers * sum(r * (i + o) for i, o in shape.linears)


def weight_bytes(shape: Shape, dtype: str) -> int:
    return shape.parameters * DTYPE_BYTES[dtype]


def saved_bytes(shape: Shape, lora: LoraSettings) -> int:
    """Bytes on disk of what one run saves: the adapter, or all weights; both in float32."""
    return FLOAT * (adapter_parameters(shape, lora.r) if lora.enabled else shape.parameters)


def checkpoint_bytes(saved: int) -> int:
    """Bytes on disk that one training takes for a moment, of whose weights `saved` bytes are kept in the end.

    Two checkpoints, each the weights and Adam's two moments, and two copies of the best weights.
    """
    return round(2 * (3 + 1) * CHECKPOINT_ROOM * saved)


def cache_bytes(
    examples: int,
    positions: float,
    top_k: int,
    dtype: str,
    temperatures: int,
    states: int,
    labels: int,
) -> int:
    """Bytes of a task's teacher outputs on disk (see docs/cache.md), but for headers and the manifest.

    `positions`: supervised ones per example; `dtype`: of the log-probabilities; `temperatures`: of the grid
    without 1; `states`: bytes of a position's hidden states, of all kept layers; `labels`: scored words.
    """
    per_position = top_k * (4 + DTYPE_BYTES[dtype]) + 2 * 4 * (1 + temperatures) + 2 * 4 + states
    per_example = 8 + 4 * labels
    return round(examples * (positions * per_position + per_example))


def activation_bytes(
    shape: Shape, tokens: int, length: int, lora: LoraSettings, recomputed: bool, dtype: str
) -> int:
    """Bytes that a forward pass of `tokens` tokens, in sequences of `length`, keeps for the backward pass.

    Per token and layer, products being taken in `dtype`: float32 inputs of all norms (a frozen weight's output is not
    kept, one that is trained doubles them); queries, keys and values after rotation, and what attention gives; three
    vectors of the feed-forward layer. With adapters, of every map's input its dropout's mask in float32 and what that
    leaves; else the input in `dtype`. `recomputed` (gradient checkpointing): the layers' inputs, and all of one layer.
    """
    each = DTYPE_BYTES[dtype]
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
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
    cache = 2 * tokens * shape.layers * shape.kv_heads * shape.head_width * DTYPE_BYTES[dtype]
    logits = round(ANSWER_COPIES * FLOAT * batch_size * positions * shape.vocabulary)
    work = layer + (cache if new_tokens else 0) + logits
    return weight_bytes(shape, dtype) + max(round(SPARE * work), _copied_when_loaded(shape, dtype))


def _copied_when_loaded(shape: Shape, dtype: str) -> int:
    """Bytes of the weight files, which are mapped into memory beside the weights unless these are them."""
    return weight_bytes(shape, shape.stored) if dtype != shape.stored else 0


def forward_operations(shape: Shape, tokens: float, positions: float = 0.0) -> float:
    """Operations of a forward pass over `tokens`, with the LM head on `positions` of them."""
    return 2 * (shape.body_parameters * tokens + shape.vocabulary * shape.width * positions)


def training_operations(shape: Shape, tokens: float, positions: float, lora: bool, recomputed: bool) -> float:
    """Operations of training on `tokens`, with the LM head on `positions` of them."""
    factor = (2 if lora else 3) + recomputed
    return factor * forward_operations(shape, tokens, positions)

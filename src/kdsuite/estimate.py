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
BIASED = ("qwen2",)  # architectures whose query, key and value projections have biases
NORMED_HEADS = ("qwen3",)  # … whose queries and keys are normalised per head


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-like decoder (Llama, Mistral, Qwen2, Qwen3), as its config.json gives them."""

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
    stored: str  # dtype of the weight files

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From the content of a config.json. KeyError if it is not that of such a decoder."""
        heads, width = config["num_attention_heads"], config["hidden_size"]
        if not all(isinstance(size, int) for size in (heads, width, config["intermediate_size"])):
            raise KeyError("sizes that differ from layer to layer")
        kind = config.get("model_type", "")
        stored = config.get("dtype") or config.get("torch_dtype") or "float32"
        return cls(
            vocabulary=config["vocab_size"],
            width=width,
            inner=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_width=config.get("head_dim") or width // heads,
            tied=config.get("tie_word_embeddings", False),
            biased=kind in BIASED,
            normed_heads=kind in NORMED_HEADS,
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
        norms = 2 * self.width + 2 * self.head_width * self.normed_heads
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


def activation_bytes(shape: Shape, tokens: int, length: int, lora: bool, recomputed: bool, dtype: str) -> int:
    """Bytes that a forward pass of `tokens` tokens, in sequences of `length`, keeps for the backward pass.

    Per token and layer: the inputs of all maps and of both norms, queries, keys and values before and after
    rotation; with adapters also the maps' inputs once more, after the adapter's dropout. `recomputed`
    (gradient checkpointing): the layers' inputs, and all of one layer.
    """
    keys = shape.kv_heads * shape.head_width
    one_layer = 10 * shape.width + 3 * keys + 4 * shape.inner
    if lora:
        one_layer += 7 * shape.width + 2 * shape.inner
    scores = 2 * shape.heads * length  # of attention, where the device has no kernel that avoids them
    kept = shape.layers * shape.width + one_layer if recomputed else shape.layers * one_layer
    return round(tokens * (kept + scores) * DTYPE_BYTES[dtype])


def training_bytes(
    shape: Shape, settings: TrainingSettings, lora: LoraSettings, length: int, positions: float, dtype: str
) -> int:
    """Peak bytes of training on sequences of `length` tokens with `positions` supervised ones each.

    With adapters: frozen weights in `dtype`; gradients, two AdamW moments and weights of the adapters in
    float32. Without: the shared base beside a copy that is trained, all in float32. Logits, their softmax
    and their gradient exist on supervised positions only.
    """
    micro = settings.micro_batch_size or settings.batch_size
    if lora.enabled:
        weights = weight_bytes(shape, dtype) + 4 * FLOAT * adapter_parameters(shape, lora.r)
    else:
        weights = 5 * FLOAT * shape.parameters
    activations = activation_bytes(
        shape, micro * length, length, lora.enabled, settings.gradient_checkpointing, dtype
    )
    logits = 3 * FLOAT * round(micro * positions * shape.vocabulary)
    return weights + activations + logits


def inference_bytes(
    shape: Shape, batch_size: int, length: int, new_tokens: int, dtype: str, steps_kept: int
) -> int:
    """Peak bytes of a batch through the model: weights, one layer's activations, the key-value cache if there
    are new tokens, and the logits of `steps_kept` of them (float32; themselves, their softmax, its choice)."""
    tokens = batch_size * (length + new_tokens)
    layer = tokens * (6 * shape.width + 3 * shape.inner) * DTYPE_BYTES[dtype]
    cache = 2 * tokens * shape.layers * shape.kv_heads * shape.head_width * DTYPE_BYTES[dtype]
    logits = 3 * FLOAT * batch_size * max(steps_kept, 1) * shape.vocabulary
    return weight_bytes(shape, dtype) + layer + (cache if new_tokens else 0) + logits


def forward_operations(shape: Shape, tokens: float, positions: float = 0.0) -> float:
    """Operations of a forward pass over `tokens`, with the LM head on `positions` of them."""
    return 2 * (shape.body_parameters * tokens + shape.vocabulary * shape.width * positions)


def training_operations(shape: Shape, tokens: float, positions: float, lora: bool, recomputed: bool) -> float:
    """Operations of training on `tokens`, with the LM head on `positions` of them."""
    factor = (2 if lora else 3) + recomputed
    return factor * forward_operations(shape, tokens, positions)

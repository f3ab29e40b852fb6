"""What is known of a model before anything of it is loaded: its shape, and the bytes that follow from it.

Only `config.json` is read, with neither network nor torch nor transformers (whose import takes longer than a plan
should): in the model's folder, in the package or in the hub's cache. `architectures.json` holds what the
configurations of the thesis' and of the offline models say.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kdsuite.errors import ModelError

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
KNOWN = Path(__file__).with_name("architectures.json")

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CHECKPOINT_ROOM = 1.2  # on disk, relative to the bare tensors
FAMILIES = (  # architectures with these linear maps, norms and biases; others have other sizes
    "llama", "mistral", "qwen2", "qwen3", "phi3", "granite", "smollm3", "gemma", "gemma2", "gemma3_text",
)  # fmt: skip
BIASED = ("qwen2",)  # … whose query, key and value projections have biases
NORMED_HEADS = ("qwen3", "gemma3_text")  # … whose queries and keys are normalised per head
NORMED_TWICE = ("gemma2", "gemma3_text")  # … with norms before and behind attention and feed-forward layers
TIED = ("smollm3", "gemma", "gemma2", "gemma3_text")  # … whose head is the embedding where a configuration is silent


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
    def of(cls, config: Mapping[str, Any]) -> Self:
        """From the content of a config.json. KeyError if it is not that of such a decoder, or of one in fewer bits."""
        kind = config.get("model_type")
        if kind not in FAMILIES or config.get("quantization_config"):
            raise KeyError(f"model_type {kind}")
        heads, width = config["num_attention_heads"], config["hidden_size"]
        return cls(
            vocabulary=config["vocab_size"],
            width=width,
            inner=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_width=config.get("head_dim") or width // heads,
            tied=config.get("tie_word_embeddings", kind in TIED),
            biased=kind in BIASED,
            normed_heads=kind in NORMED_HEADS,
            norms=4 if kind in NORMED_TWICE else 2,
            stored=config.get("dtype") or config.get("torch_dtype") or "float32",
        )

    @property
    def queries(self) -> int:
        """Width of a token's queries."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of a token's keys, or of its values."""
        return self.kv_heads * self.head_width

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a layer's linear maps."""
        attention = [(self.width, self.queries), *[(self.width, self.keys)] * 2, (self.queries, self.width)]
        return [*attention, *[(self.width, self.inner)] * 2, (self.inner, self.width)]

    @property
    def body_parameters(self) -> int:
        """Those that every token passes through: all but the embedding and the LM head."""
        biases = (self.queries + 2 * self.keys) * self.biased
        norms = self.norms * self.width + 2 * self.head_width * self.normed_heads
        return self.layers * (sum(i * o for i, o in self.linears) + biases + norms) + self.width

    @property
    def parameters(self) -> int:
        """All of them, a tied head once."""
        return self.body_parameters + self.vocabulary * self.width * (1 if self.tied else 2)


def shape_of(name: str, revision: str | None = None) -> Shape | None:
    """The shape of a model by folder or hub id, of an adapter that of its base.

    None where the configuration is not on this machine, or not that of a Llama-like decoder in 16 or 32 bits.
    """
    folder, known = Path(name), json.loads(KNOWN.read_text(encoding="utf-8"))
    try:
        if (folder / CONFIG).exists():
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        elif name in known:
            config = known[name]
        else:  # imports the hub: a moment which known models need not wait for
            from kdsuite.models.source import base_of
            from kdsuite.runtime import hub

            if base := base_of(folder):
                return shape_of(base.where, base.revision)
            cached = hub.cached(name, CONFIG, revision)
            config = json.loads(cached.read_text(encoding="utf-8")) if cached else {}
        return Shape.of(config)
    except (ModelError, KeyError, TypeError, ValueError):
        return None


def weight_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of all weights in a dtype."""
    return shape.parameters * DTYPE_BYTES[dtype]


def checkpoint_bytes(saved: int) -> int:
    """Bytes on disk that one training takes for a moment, of whose weights `saved` bytes are kept in the end.

    Two checkpoints, each the weights and Adam's two moments, and two copies of the best weights.
    """
    return round(2 * (3 + 1) * CHECKPOINT_ROOM * saved)

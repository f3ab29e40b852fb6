"""How large a model is: parameters counted once, bytes counted as they are stored.

A tied LM head is the embedding itself and counts once. Adapters are apart from the model they adapt. A 4-bit
weight packs two parameters into a byte, and its scales are bytes without being parameters.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict


@dataclass(frozen=True)
class ParameterCount:
    """Parameters without the adapter, those of them in embeddings and LM head, those of the adapter."""

    parameters: int
    embedding_parameters: int
    adapter_parameters: int


def count_parameters(model: Any) -> ParameterCount:
    """Count the parameters of a causal language model, quantized or not, with or without an adapter."""
    adapter = _adapter_parameters(model)
    return ParameterCount(_total(model.parameters()) - adapter, _total(_embeddings(model)), adapter)


def weight_bytes(model: Any) -> int:
    """Bytes of all stored tensors: weights, quantization scales and buffers, shared ones once."""
    stored = {(t.data_ptr(), t.shape): t for t in _stored_tensors(model)}
    return sum(t.numel() * t.element_size() for t in stored.values())


def trained_fingerprint(model: Any) -> str:
    """Identifies the weights that are being trained, by every bit of them."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _adapter_parameters(model: Any) -> int:
    if not isinstance(model, PeftModel):
        return 0
    return _total(get_peft_model_state_dict(model, save_embedding_layers=False).values())


def _embeddings(model: Any) -> list[torch.Tensor]:
    """The weights of the input embedding and, unless tied to it, of the LM head."""
    return list(
        {
            id(e.weight): e.weight for e in (model.get_input_embeddings(), model.get_output_embeddings())
        }.values()
    )


def _total(tensors: Any) -> int:
    return sum(_logical_size(t) for t in tensors)


def _logical_size(tensor: torch.Tensor) -> int:
    """The number of parameters that a tensor stands for; bitsandbytes packs two into each byte."""
    state = getattr(tensor, "quant_state", None)
    return tensor.numel() if state is None else math.prod(state.shape)


def _stored_tensors(model: Any) -> Iterator[torch.Tensor]:
    for tensor in [*model.parameters(), *model.buffers()]:
        yield from _plain_tensors(tensor)


def _plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that a parameter is made of: torchao wraps several, bitsandbytes adds a state."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()  # pyright: ignore[reportAttributeAccessIssue]
        yield from (getattr(tensor, name) for name in names)
        return
    yield tensor
    if (state := getattr(tensor, "quant_state", None)) is not None:
        yield from state.as_dict(packed=True).values()

"""How large a model is: parameters counted once, bytes counted as they are stored.

A tied LM head is the embedding itself and counts once. Adapters are apart from the model they adapt. A 4-bit
weight packs two parameters into a byte, and its scales are bytes without being parameters.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict

from kdsuite.runtime.ranks import together, whole


def count_parameters(model: Any) -> dict[str, int]:
    """Parameters without the adapter, those of them in embeddings and LM head, those of the adapter.

    Of a causal language model, quantized or not, with or without an adapter.
    """
    adapter = 0
    if isinstance(model, PeftModel):
        adapter = _count(get_peft_model_state_dict(model, save_embedding_layers=False).values())
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    return {
        "parameters": _count(model.parameters()) - adapter,
        "embedding_parameters": _count({id(end.weight): end.weight for end in ends}.values()),
        "adapter_parameters": adapter,
    }


def _count(tensors: Iterable[torch.Tensor]) -> int:
    """The parameters that tensors stand for; bitsandbytes packs two into each byte."""
    states = ((tensor, getattr(tensor, "quant_state", None)) for tensor in tensors)
    return sum(tensor.numel() if state is None else math.prod(state.shape) for tensor, state in states)


def weight_bytes(model: Any) -> int:
    """Bytes of all stored tensors: weights, quantization scales and buffers, shared ones once."""
    tensors = [plain for each in (*model.parameters(), *model.buffers()) for plain in _plain_tensors(each)]
    stored = {(t.data_ptr(), t.shape): t for t in tensors}
    return sum(t.numel() * t.element_size() for t in stored.values())


def _plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that a parameter is made of: torchao wraps several, bitsandbytes adds a state."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()  # pyright: ignore[reportAttributeAccessIssue]
        yield from (getattr(tensor, name) for name in names)
        return
    yield tensor
    if (state := getattr(tensor, "quant_state", None)) is not None:
        yield from state.as_dict(packed=True).values()


@together
def trained_fingerprint(model: Any) -> str:
    """Identifies the weights that are being trained, by every bit of them."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            digest.update(name.encode())
            digest.update(whole(weight.detach()).cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()

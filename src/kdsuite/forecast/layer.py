"""Decoder layers to be timed: Llama's, of any shape, with adapters or without, in plain torch.

Importing transformers and peft takes longer than a plan does; what these layers compute is what theirs do.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from torch.nn import functional as F

from kdsuite.config import LoraSettings
from kdsuite.config.benchmark import Scheme
from kdsuite.models.costs import Shape
from kdsuite.models.thinning import thinned


class Map(nn.Module):
    """A linear map, with an adapter where `lora` has one."""

    def __init__(self, wide: int, out: int, lora: LoraSettings | None):
        super().__init__()
        self.base = nn.Linear(wide, out, bias=False)
        self.dropout = lora.dropout if lora and lora.enabled else 0.0
        if lora and lora.enabled:
            self.down, self.up = nn.Linear(wide, lora.r, bias=False), nn.Linear(lora.r, out, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "down"):
            return self.base(x)
        kept = thinned(x, self.dropout)[0] if self.training and self.dropout else x
        return torch.addmm(self.base(x).flatten(0, -2), self.down(kept).flatten(0, -2), self.up.weight.t()).view(
            *x.shape[:-1], -1
        )


class Norm(nn.Module):
    """Root mean square, computed in float32."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class Layer(nn.Module):
    """Causal attention and a gated feed-forward part, each added to its input."""

    def __init__(self, shape: Shape, lora: LoraSettings | None):
        super().__init__()
        self.shape = shape
        self.norms = nn.ModuleList([Norm(shape.width), Norm(shape.width)])
        widths = (shape.queries, shape.keys, shape.keys)
        self.attended = nn.ModuleList([Map(shape.width, width, lora) for width in widths])
        self.out = Map(shape.queries, shape.width, lora)
        self.gate, self.up = Map(shape.width, shape.inner, lora), Map(shape.width, shape.inner, lora)
        self.down = Map(shape.inner, shape.width, lora)

    def forward(self, x: torch.Tensor, past: torch.Tensor | None = None) -> torch.Tensor:
        """x [B, S, width] → the same shape; `past` [B, kv heads, P, head width]: keys, and values, that are there."""
        normed = self.norms[0](x)
        heads = [each(normed).unflatten(-1, (-1, self.shape.head_width)).transpose(1, 2) for each in self.attended]
        q, k, v = _turned(heads[0]), _turned(heads[1]), heads[2]
        if past is not None:
            k, v = torch.cat([past, k], 2), torch.cat([past, v], 2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=past is None, enable_gqa=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        normed = self.norms[1](x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


def _turned(heads: torch.Tensor) -> torch.Tensor:
    """With rotary positions: the operations, by angles that are all alike."""
    first, second = heads.chunk(2, dim=-1)
    return heads * 0.9 + torch.cat([-second, first], dim=-1) * 0.1


class Layers(nn.Module):
    """`count` of them; their weights are in `dtype` and frozen but for adapters, which are float32 and learn.

    Without adapters (`lora` says so) all of them learn.
    """

    def __init__(self, shape: Shape, lora: LoraSettings | None, count: int, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.width, self.dtype = shape.width, dtype
        with torch.device("meta"):
            self.layers = nn.ModuleList([Layer(shape, lora) for _ in range(count)])
        self.to_empty(device=device)
        for name, weight in self.named_parameters():
            adapter = name.split(".")[-2] in ("down", "up") and "base" not in name
            weight.data = weight.data.to(torch.float32 if adapter else dtype)
            weight.requires_grad_(adapter or (lora is not None and not lora.enabled))

    def forward(self, x: torch.Tensor, past: torch.Tensor | None = None) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, past)
        return x

    def quantize(self, scheme: Scheme, device: torch.device) -> None:
        """The linear maps, as `models.quantization` has them; ImportError, RuntimeError, AssertionError where a library
        or its kernel for this device or shape is missing, which a token finds out.

        Quantizing takes longer than what is timed: the first layer is, the others are copies of it.
        """
        first = self.layers[0]
        if scheme == "int8":
            from torchao.quantization import Int8WeightOnlyConfig, quantize_

            quantize_(first, Int8WeightOnlyConfig())
        else:
            from bitsandbytes.nn.modules import Linear4bit

            for each in [module for module in first.modules() if isinstance(module, Map)]:
                wide = each.base
                out, width = wide.weight.shape
                each.base = Linear4bit(width, out, bias=False, compute_dtype=self.dtype, quant_type="nf4")
                each.base.load_state_dict(wide.state_dict())
                each.base.to(device)  # where it is quantized
        with torch.inference_mode():
            first.eval()(torch.zeros(1, 1, self.width, dtype=self.dtype, device=device))
        self.layers = nn.ModuleList([first, *(deepcopy(first) for _ in self.layers[1:])])

"""How fast this device is at what training does: a few real steps of a decoder layer with random weights.

The layer has the model's own width where a step of it is quick, and is narrower otherwise: widths are doubled
until a step takes `LONG_ENOUGH`. It takes a fraction of a second on a CPU; on a busy machine fewer steps are
timed. The first use of a device (kernels are compiled or loaded) is not timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from kdsuite.runtime.device import now

if TYPE_CHECKING:
    from kdsuite.models.costs import Shape
    from kdsuite.runtime.device import DeviceChoice

LONG_ENOUGH = 0.02  # seconds of a forward and backward pass
NARROWEST = 256
MOST_TOKENS = 256
REPETITIONS = 3  # at most; the fastest counts: what else the machine does only slows down
BUDGET = 0.03  # seconds, after which nothing is repeated


@dataclass(frozen=True)
class Rates:
    """Measured speeds. A layer of another size is taken to run at the same."""

    training: float  # operations per second, forward and backward
    forward: float  # operations per second
    token: float  # seconds per weight of a decoding step, in which every sequence has one token
    width: int  # of the layer that was measured
    tokens: int  # per step


class Layer(nn.Module):
    """A decoder layer: normalised causal attention and a gated feed-forward part, each added to its input."""

    def __init__(self, width: int, inner: int, heads: int, head_width: int):
        super().__init__()
        self.head_width = head_width
        self.norms = nn.ModuleList([nn.RMSNorm(width), nn.RMSNorm(width)])
        self.attention = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, S, width] → the same shape."""
        heads = self.attention(self.norms[0](x)).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        q, k, v = heads.chunk(3, dim=1)  # [B, heads, S, head width]
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norms[1](x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def calibrate(shape: Shape, batch_size: int, length: int, choice: DeviceChoice) -> Rates:
    """Time a layer of (or like) `shape` on `batch_size` sequences of `length` tokens, on the chosen device."""
    length = min(length, MOST_TOKENS)
    batch_size = max(1, min(batch_size, MOST_TOKENS // length))
    width, place = min(shape.width, NARROWEST), {"device": choice.device, "dtype": choice.dtype}
    while True:
        inner, heads = (max(1, round(size * width / shape.width)) for size in (shape.inner, shape.heads))
        layer = Layer(width, inner, heads, shape.head_width).to(**place)
        batch = torch.randn(batch_size, length, width, **place)
        _train(layer, batch)
        seconds = _fastest(_train, layer, batch)
        if seconds >= LONG_ENOUGH or width == shape.width:
            break
        width = min(shape.width, 2 * width)
    weights = sum(p.numel() for p in layer.parameters())
    operations = 2 * weights * batch_size * length
    return Rates(
        training=3 * operations / seconds,
        forward=operations / _fastest(_infer, layer, batch),
        token=_fastest(_infer, layer, batch[:, :1]) / weights,
        width=width,
        tokens=batch_size * length,
    )


def _train(layer: Layer, batch: torch.Tensor) -> None:
    layer.zero_grad()
    layer(batch).sum().backward()


@torch.inference_mode()
def _infer(layer: Layer, batch: torch.Tensor) -> None:
    layer(batch)


def _fastest(work: Callable[[Layer, torch.Tensor], None], layer: Layer, batch: torch.Tensor) -> float:
    """Seconds of the quickest of some calls."""
    times: list[float] = []
    while len(times) < REPETITIONS and sum(times) < BUDGET:
        started = now(batch.device)
        work(layer, batch)
        times.append(now(batch.device) - started)
    return min(times)

"""Low-rank adapters (LoRA, Hu et al. 2022, arXiv:2106.09685) as they are trained: peft's sums in fewer passes.

Adapters are kept in float32 and multiplied in the dtype of autocast. peft widens each layer's input for that, draws
its dropout and narrows it again, scales the product and adds it: at a rank of 16 those passes cost more than the
adapters' own products. Here the scale is applied to the [·, r] values and the sum is part of the second product.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import nn

from kdsuite.models.thinning import thinned


class Adapted(Linear):
    """A linear layer with an adapter: base(x) + scale·B·A·dropout(x); what is not training is left to peft."""

    def forward(self, x: torch.Tensor, *args: Any, **others: Any) -> torch.Tensor:
        """x [..., in] → [..., out], in the dtype of the base layer's output."""
        name = self.active_adapters[0]
        alike = torch.is_autocast_enabled(x.device.type) or x.dtype == self.lora_A[name].weight.dtype
        if not (self.training and alike) or self.disable_adapters or self.merged:
            return super().forward(x, *args, **others)
        layer, down, up = cast(
            tuple[nn.Module, nn.Module, nn.Linear], (self.base_layer, self.lora_A[name], self.lora_B[name])
        )
        base = layer(x, *args, **others)
        dropout = self.lora_dropout[name]
        kept, share = thinned(x, dropout.p) if isinstance(dropout, nn.Dropout) else (x, 1.0)
        low = down(kept) * (self.scaling[name] / share)
        sums = torch.addmm(base.flatten(0, -2), low.flatten(0, -2), up.weight.t())
        return sums.view_as(base).to(base.dtype)


def quick(model: Any) -> Any:
    """The peft model with its plain adapters computed as above; it saves, loads and merges as before."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = Adapted
    return model

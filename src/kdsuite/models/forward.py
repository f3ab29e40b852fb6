"""The backbone once, the LM head only where something is predicted.

2.8 % of SQuAD's and 5 % of SST-2's positions are supervised: hidden states are gathered first and projected
to the vocabulary afterwards, so nothing of shape [batch, sequence, vocabulary] is ever built.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as F
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from kdsuite.tasks.batching import Batch

LOG_NOTHING = -100.0  # log of a share of probability that is not there; e^-100 is nothing in float32


def causal_lm(model: Any) -> Any:
    """The transformers model, with adapter layers in place if there are any."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def supervised_states(
    model: Any, batch: Batch, layers: Sequence[int] = ()
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Final hidden states [n, H] from which the supervised tokens are predicted, and those of `layers`.

    Layers count from 1; the last one is taken behind the final norm, as the head sees it.
    """
    return _gathered(causal_lm(model).base_model, batch, layers)


class Trunk:
    """A model's backbone up to its layer `top`, for hidden states of lower layers without the rest's cost."""

    def __init__(self, model: Any, top: int):
        whole = causal_lm(model).base_model
        maybe_install_capturing_hooks(whole)  # each copy would install its own on the shared layers
        self.backbone, self.device = copy.copy(whole), model.device
        if top < len(whole.layers):
            self.backbone._modules = whole._modules | {"layers": whole.layers[:top], "norm": nn.Identity()}

    def states(self, batch: Batch, layers: Sequence[int]) -> list[torch.Tensor]:
        """Hidden states [n, H] of `layers` at the supervised positions, as `supervised_states` gives them."""
        return _gathered(self.backbone, batch, layers)[1]


def _gathered(backbone: Any, batch: Batch, layers: Sequence[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    outputs = backbone(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
        output_hidden_states=bool(layers),
    )
    where = batch.rows, batch.columns
    return outputs.last_hidden_state[where], [outputs.hidden_states[layer][where] for layer in layers]


def head(model: Any, states: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Logits [n, vocabulary] of hidden states [n, H]; embedding rows padded beyond the vocabulary are cut off."""
    return causal_lm(model).get_output_embeddings()(states)[:, :vocabulary]


def class_log_probs(logits: torch.Tensor, batch: Batch, labels: int) -> torch.Tensor:
    """Log-probability of each label word with its end of turn, all labels of all examples at once.

    logits [u, V] of the batch's distinct states → [B, labels]: sums of token log-probabilities, not normalised
    over the labels.
    """
    tokens = F.log_softmax(logits.float(), dim=-1)[batch.shared, batch.targets]  # [n]
    flat = torch.zeros(len(batch.ids) * labels, device=logits.device)
    return flat.index_add(0, batch.rows * labels + batch.choices, tokens).view(len(batch.ids), labels)


def check_head(model: Any, vocabulary: int) -> None:
    """ValueError if the model does more to its logits than apply the head (scaling, soft caps)."""
    ids = torch.arange(4, device=model.device)[None] % vocabulary
    with torch.no_grad():
        whole = causal_lm(model)(input_ids=ids, use_cache=False).logits[0, :, :vocabulary]
        states = causal_lm(model).base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        if not torch.allclose(head(model, states, vocabulary), whole, atol=1e-2, rtol=1e-2, equal_nan=True):
            raise ValueError(
                f"{type(model).__name__} post-processes its logits, which this suite does not support"
            )

"""A model's own logits, at the supervised positions only.

2.8 % of SQuAD's and 5 % of SST-2's positions are supervised: hidden states are picked on their way into the LM
head, so nothing of shape [batch, sequence, vocabulary] is ever built. It is the model itself that runs, from
its input to its logits: whatever it does behind the head (Gemma 2's soft caps, Cohere's and Granite's scales) is
done, and a model whose head is not a module of its own is run whole and picked from afterwards. `models.check`
compares the two ways for every model that is loaded.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as F

from kdsuite.tasks.batching import Batch, collate
from kdsuite.tasks.encoding import Encoded

LOG_NOTHING = -100.0  # log of a share of probability that is not there; e^-100 is nothing in float32


def compact(module: nn.Module, inputs: Any) -> Any:
    """A forward pre-hook for heads: the last column of longer sequences is copied before the product.

    For a bfloat16 slice whose rows are far apart a CPU takes a way that is hundreds of times slower.
    """
    states = inputs[0]
    if states.dim() == 3 and states.stride(0) != states.shape[1] * states.shape[2]:
        return (states.clone(memory_format=torch.contiguous_format), *inputs[1:])
    return None


@dataclass(frozen=True)
class Traits:
    """What was found out about a model by trying it (see `models.check`)."""

    split: bool = True  # states may be picked in front of the head
    side_by_side: bool = True  # continuations of one prompt in one row: positions and masks are obeyed
    left_padding: bool = True  # prompts of several lengths in one batch to generate from
    gaps: bool = True  # padding between a shared beginning and the rest: positions count, not columns
    layers: bool = True  # the hidden states of every layer can be read
    beginning: bool = True  # what all texts begin with may be read before them, once
    window: int | None = None  # tokens that attention looks back; None: all

    def sees(self, length: int) -> bool:
        """Whether the last of so many columns sees the first."""
        return self.window is None or length <= self.window


def causal_lm(model: Any) -> Any:
    """The transformers model, with adapter layers in place if there are any."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def traits_of(model: Any) -> Traits:
    """What the trial found out about a model; of one that was not loaded by `models.loading`, the usual."""
    return getattr(causal_lm(model), "kdsuite_traits", Traits())


def collate_for(model: Any, examples: Sequence[Encoded], pad_id: int, multiple: int = 1) -> Batch:
    """A batch laid out as the model can read it: continuations side by side, or in rows of their own."""
    traits, longest = traits_of(model), max(len(example) for example in examples)
    return collate(examples, pad_id, multiple, traits.side_by_side and traits.sees(longest))


class _Enough(Exception):
    """All that was asked for is known; what lies above need not be computed."""


def supervised_states(model: Any, batch: Batch, positions: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
    """Hidden states [m, H] of `layers` as `supervised_logits` gives them, without the cost of what lies above."""
    return supervised_logits(model, batch, positions, None, layers, stop=True)[1]


def supervised_logits(
    model: Any,
    batch: Batch,
    positions: torch.Tensor,
    vocabulary: int | None,
    layers: Sequence[int] = (),
    stop: bool = False,
) -> tuple[Any, list[torch.Tensor]]:
    """Logits [m, vocabulary] at m of the batch's supervised positions, and hidden states [m, H] of `layers` there.

    `positions`: [m] long, or [n] bool. Embedding rows padded beyond the vocabulary, if one is given, are cut off.
    Layers count from 1; the last one's states are those that enter the head. `stop`: break the pass off as soon as the
    highest of `layers` is known; there are no logits then.
    """
    lm, heard, logits = causal_lm(model), {}, None
    pick = traits_of(lm).split and not stop
    inputs, read = _inputs(lm, batch)
    rows, columns = batch.rows[positions], batch.columns[positions] - read
    depth, top = lm.config.get_text_config().num_hidden_layers, max(layers, default=0)

    def hear(layer: int, states: torch.Tensor) -> torch.Tensor:  # [R, S, H] → [m, H]
        heard[layer] = states[rows, columns]
        if stop and layer == top:
            raise _Enough
        return heard[layer]

    def listen(layer: int, module: nn.Module, inputs: Any, output: Any) -> None:
        hear(layer, output[0] if isinstance(output, tuple) else output)

    def before_head(module: nn.Module, inputs: Any) -> Any:
        picked = hear(depth, inputs[0])
        return (picked, *inputs[1:]) if pick else None

    with ExitStack() as hooks, suppress(_Enough):
        for layer in (layer for layer in layers if layer < depth):
            hooks.callback(decoder_layers(lm)[layer - 1].register_forward_hook(partial(listen, layer)).remove)
        if pick or depth in layers:
            hooks.callback(lm.get_output_embeddings().register_forward_pre_hook(before_head).remove)
        logits = lm(**inputs, use_cache=False).logits
        logits = (logits if pick else logits[rows, columns])[:, :vocabulary]
    return logits, [heard[layer] for layer in layers]


def decoder_layers(lm: Any) -> nn.ModuleList:
    """The layers of a decoder, the lowest first. LookupError if they are not found."""
    depth = lm.config.get_text_config().num_hidden_layers
    for module in lm.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise LookupError(f"{type(lm).__name__} has no list of {depth} layers")


def state_width(config: Any, layer: int) -> int:
    """Width of a layer's states as `supervised_logits` gives them; OPT-350M's head is narrower than its layers."""
    text = config.get_text_config()
    narrow = getattr(text, "word_embed_proj_dim", None) if layer == text.num_hidden_layers else None
    return narrow or text.hidden_size


def _inputs(lm: Any, batch: Batch) -> tuple[dict[str, Any], int]:
    """What a model is called with, and how many columns it has read before (see `models.beginning`).

    Plain causal text needs neither mask nor positions, which not every model takes.
    """
    beginning, mask = getattr(lm, "kdsuite_beginning", None), batch.attention_mask
    read = len(beginning.ids) if beginning else 0
    inputs = {"input_ids": batch.input_ids[:, read:]}
    if beginning:
        inputs["past_key_values"] = beginning.before(lm, batch)
    if mask is None:
        return inputs, read
    if lm.config._attn_implementation == "eager":  # adds its mask to the scores
        least = torch.finfo(lm.dtype).min
        mask = torch.zeros(mask.shape, dtype=lm.dtype, device=mask.device).masked_fill(~mask, least)
    assert batch.position_ids is not None
    return inputs | {"attention_mask": mask[:, :, read:], "position_ids": batch.position_ids[:, read:]}, read


def token_log_probs(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Log-probability of every supervised token, [n], by logits [u, V] of the batch's distinct states."""
    return F.log_softmax(logits.float(), dim=-1)[batch.shared, batch.targets]


def class_log_probs(tokens: torch.Tensor, batch: Batch, labels: int) -> torch.Tensor:
    """Log-probability of each label word with its end of turn, all labels of all examples at once.

    By the tokens' own [n] → [B, labels]: sums, not normalised over the labels.
    """
    flat = torch.zeros(len(batch.ids) * labels, device=tokens.device)
    return flat.index_add(0, batch.owners * labels + batch.choices, tokens).view(len(batch.ids), labels)

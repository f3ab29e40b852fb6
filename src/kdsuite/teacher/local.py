"""A teacher that is loaded here: one forward pass per example, over target positions only."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from kdsuite.errors import RunError
from kdsuite.models.beginning import read_once
from kdsuite.models.forward import (
    LOG_NOTHING,
    class_log_probs,
    collate_for,
    supervised_logits,
    supervised_states,
    token_log_probs,
)
from kdsuite.models.generation import generate, prompt_batches, written
from kdsuite.runtime.device import bucket
from kdsuite.runtime.ranks import together
from kdsuite.tasks.encoding import ChatTokenizer, Encoded
from kdsuite.teacher.base import HERE, OutputSettings, Record, Teacher, drawn_entries


@dataclass(frozen=True, eq=False)
class LocalTeacher(Teacher):
    """A model, asked for what `keep` says, under `precision`; its answers are of at most `max_new_tokens`.

    `known` are examples in its tokens, by id, for whoever asks by those of another tokenizer.
    """

    model: Any
    chat: ChatTokenizer
    keep: OutputSettings
    max_new_tokens: int = 0
    known: Mapping[str, Encoded] = field(default_factory=dict)
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def offers(self) -> frozenset[str]:
        return HERE

    @property
    def temperatures(self) -> tuple[float, ...]:
        return (1.0, *self.keep.temperatures) if self.keep.top_k else ()

    def outputs(self, examples: Sequence[Encoded]) -> list[Record]:
        return self.score([self.known[e.id] for e in examples] if self.known else examples)

    def answers(self, examples: Sequence[Encoded]) -> list[tuple[str, float]]:
        prompts = [e.prompt for e in examples]
        with self.precision():
            said = generate(self.model, self.chat, prompts, self.max_new_tokens, len(prompts))
        return [(text, math.exp(confidence)) for text, confidence in said]

    def rationales(self, prompts: Sequence[list[int]]) -> list[tuple[str, bool]]:
        with self.precision():
            said = written(self.model, self.chat, prompts, self.max_new_tokens, len(prompts))
        return [(text, whole) for text, _, whole in said]

    def prompt_batches(self, prompts: Sequence[list[int]], new_tokens: int, size: int) -> list[list[int]]:
        return prompt_batches(self.model, prompts, new_tokens, size)

    def reading(self, examples: Sequence[Encoded]) -> AbstractContextManager[None]:
        """Inside, no other examples are scored: what all of them begin with is read once."""
        return read_once(self.model, examples)

    def score(self, sequences: Sequence[Encoded]) -> list[Record]:
        with self.precision():
            return ask(self.model, self.chat, sequences, self.keep)


@together
@torch.inference_mode()
def ask(model: Any, chat: ChatTokenizer, examples: Sequence[Encoded], keep: OutputSettings) -> list[Record]:
    """Teacher outputs of a batch, one record per example. RunError if hidden states are not finite."""
    batch = collate_for(model, examples, chat.pad_id, bucket(model.device)).to(model.device)
    rows = batch.owners[batch.on_target]
    if not keep.top_k:
        hidden = supervised_states(model, batch, batch.on_target, keep.layers)
        return _split(_named(keep.layers, hidden), rows, examples)
    logits, hidden = supervised_logits(model, batch, batch.distinct, len(chat.token_bytes), keep.layers)
    logits, on_target = logits.float(), batch.shared[batch.on_target]  # [u, V]; [p] index into the distinct
    outputs = _distribution(logits[on_target], keep)
    for kind in keep.draws:
        outputs |= _drawn(kind, logits[on_target], rows, examples, outputs, (1.0, *keep.temperatures))
    outputs |= _named(keep.layers, [states[on_target] for states in hidden])
    records = _split(outputs, rows, examples)
    if keep.labels:
        scores = class_log_probs(token_log_probs(logits, batch), batch, keep.labels).cpu().numpy()
        records = [record | {"class_scores": row} for record, row in zip(records, scores, strict=True)]
    return records


def _distribution(logits: torch.Tensor, keep: OutputSettings) -> dict[str, torch.Tensor]:
    top, ids = logits.topk(min(keep.top_k, logits.shape[-1]), dim=-1)  # [n, k]
    others = logits.scatter(-1, ids, float("-inf"))
    temperatures = (1.0, *keep.temperatures)
    logsumexp = torch.stack([(logits / t).logsumexp(-1) for t in temperatures], dim=-1)
    rest = torch.stack([(others / t).logsumexp(-1) for t in temperatures], dim=-1)
    dtype = torch.float16 if keep.dtype == "float16" else torch.float32
    more = {}
    if keep.standardised:
        deviation = logits.std(-1, keepdim=True)  # [n, 1]
        whole = [(logits / (t * deviation)).logsumexp(-1, keepdim=True) for t in temperatures]
        tail = [(others / (t * deviation)).logsumexp(-1, keepdim=True) for t in temperatures]
        shares = [(a - b).clamp_min(LOG_NOTHING) for a, b in zip(tail, whole, strict=True)]
        more = {"standardised": torch.cat([deviation, *whole, *shares], -1)}
    return more | {
        "topk_ids": ids.int(),
        "topk_logprobs": (top - logsumexp[:, :1]).to(dtype),
        "logsumexp": logsumexp,  # [n, 1 + temperatures]
        "log_tail": (rest - logsumexp).clamp_min(LOG_NOTHING),  # [n, 1 + temperatures]
    }


def _drawn(
    kind: str,
    logits: torch.Tensor,
    rows: torch.Tensor,
    examples: Sequence[Encoded],
    outputs: dict[str, torch.Tensor],
    temperatures: Sequence[float],
) -> dict[str, torch.Tensor]:
    """Drawn entries at all positions; the random numbers depend on an example's id alone, not on its batch."""
    kept = outputs["topk_ids"].long()
    count = drawn_entries(kind, kept.shape[-1])
    sizes = torch.bincount(rows, minlength=len(examples)).tolist()
    exact, drawn = kept[:, : kept.shape[-1] - count].split(sizes), []
    for example, own, without in zip(examples, logits.split(sizes), exact, strict=True):
        uniform = torch.from_numpy(np.random.default_rng(list(example.id.encode())).random((len(own), count)))
        drawn.append(torch.stack([draw(own / t, without, uniform) for t in temperatures], dim=1))
    ids = torch.cat(drawn)  # [n, temperatures, s]
    log_probs = logits.gather(-1, ids.flatten(1)).view(ids.shape) - outputs["logsumexp"][:, :1, None]
    return {f"{kind}_ids": ids.int(), f"{kind}_logprobs": log_probs.to(outputs["topk_logprobs"].dtype)}


def draw(logits: torch.Tensor, exact: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Tokens drawn from softmax(z) without some: logits [n, V], ids of these [n, h], s uniform numbers [n, s] → [n, s].

    One from each s-th part of the distribution, its tokens in the order of their ids: a token is expected as often as
    in s independent draws (Anshumann et al. 2025, arXiv:2503.16870), with less variance (stratified sampling).
    """
    there = logits.cpu() if logits.device.type == "mps" else logits  # which has no float64
    shares = there.double().scatter(-1, exact.to(there.device), float("-inf")).softmax(-1).cumsum(-1)
    count = uniform.shape[-1]
    places = ((torch.arange(count) + uniform) / count).to(there.device) * shares[:, -1:]
    return torch.searchsorted(shares, places, right=True).clamp_max(logits.shape[-1] - 1).to(logits.device)


def _named(layers: Sequence[int], hidden: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    for layer, states in zip(layers, hidden, strict=True):
        if not states.isfinite().all():
            raise RunError(
                f"the teacher's hidden states of layer {layer} are not finite as {states.dtype}; "
                "set dtype to float32 or bfloat16"
            )
    return {f"hidden_{layer}": kept_states(states) for layer, states in zip(layers, hidden, strict=True)}


def kept_states(states: torch.Tensor) -> torch.Tensor:
    """Hidden states as they are kept: float32 as it is; 16 bits as bfloat16, whose bits pass for int16 in numpy.

    Never float16, which ends at 65,504: some residual streams reach 100,000 (Gemma's).
    """
    return states if states.dtype == torch.float32 else states.to(torch.bfloat16).view(torch.int16)


def read_states(kept: np.ndarray) -> torch.Tensor:
    """What `kept_states` kept, as float32 or bfloat16."""
    states = torch.from_numpy(kept)
    return states.view(torch.bfloat16) if states.dtype == torch.int16 else states


def _split(outputs: dict[str, torch.Tensor], rows: torch.Tensor, examples: Sequence[Encoded]) -> list[Record]:
    """Flat outputs over a batch → a record per example (rows are sorted), with the spans of its positions."""
    ends = torch.bincount(rows, minlength=len(examples)).cumsum(0).tolist()
    arrays = {name: values.cpu().numpy() for name, values in outputs.items()}
    return [
        {name: values[start:end] for name, values in arrays.items()}
        | {"spans": np.array(example.spans[example.gold_slice], dtype=np.int32)}
        for start, end, example in zip([0, *ends], ends, examples, strict=False)
    ]


def join(records: Sequence[Record], name: str) -> np.ndarray:
    """One array of a name over several records, end to end."""
    return np.concatenate([record[name] for record in records])

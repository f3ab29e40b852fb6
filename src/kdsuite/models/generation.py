"""Greedy answers in batches: the one way in which teacher and students write text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from kdsuite.errors import RunError
from kdsuite.models.forward import causal_lm
from kdsuite.tasks.batching import batches_by_length
from kdsuite.tasks.encoding import ChatTokenizer

STOP_STRINGS = ("\nHuman:", "\nContext:", "\nQuestion:", "\n\n")  # nothing useful follows them


@torch.inference_mode()
def generate(
    model: Any,
    chat: ChatTokenizer,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda count: None,
) -> list[tuple[str, float]]:
    """Greedy continuations up to the end of turn or a stop string, each with its mean log-probability.

    Batches of similar length, padded on the left; the order of the result is that of `prompts`.
    """
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=chat.end_id,
        pad_token_id=chat.pad_id,
        stop_strings=list(STOP_STRINGS),
        return_dict_in_generate=True,
        output_logits=True,
    )
    answers: list[tuple[str, float]] = [("", 0.0)] * len(prompts)
    for indices in batches_by_length([len(p) for p in prompts], batch_size):
        ids, mask = _left_padded([prompts[i] for i in indices], chat.pad_id)
        output = causal_lm(model).generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            tokenizer=chat.tokenizer,
        )
        new = output.sequences[:, ids.shape[1] :]
        for index, tokens, confidence in zip(
            indices, new.tolist(), _confidence(new, output.logits, chat), strict=True
        ):
            kept = tokens[: tokens.index(chat.end_id)] if chat.end_id in tokens else tokens
            answers[index] = chat.decode([t for t in kept if t != chat.pad_id]), confidence
        advance(len(indices))
    return answers


def _left_padded(prompts: Sequence[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(p) for p in prompts)
    ids = torch.tensor([[pad_id] * (length - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def _confidence(tokens: torch.Tensor, logits: Sequence[torch.Tensor], chat: ChatTokenizer) -> list[float]:
    """Mean log-probability of the generated tokens up to and with the end of turn."""
    scores = torch.stack([step.float().log_softmax(-1) for step in logits], dim=1)  # [B, new, V]
    chosen = scores.gather(-1, tokens[:, : scores.shape[1], None])[..., 0]
    if not chosen.isfinite().all():
        raise RunError("the model's probabilities are not finite while it generates")
    ended = (tokens[:, : scores.shape[1]] == chat.end_id).cumsum(-1)
    counts = (ended == 0) | ((ended == 1) & (tokens[:, : scores.shape[1]] == chat.end_id))
    return ((chosen * counts).sum(-1) / counts.sum(-1).clamp_min(1)).tolist()

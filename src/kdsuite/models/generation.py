"""Greedy answers in batches: the one way in which teacher and students write text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig

from kdsuite.errors import RunError
from kdsuite.models.forward import causal_lm
from kdsuite.runtime.device import bucket
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

    Prompts that begin alike (questions about one passage) share the keys and values of what they have in
    common. Batches of similar length, padded on the left; the order of the result is that of `prompts`.
    """
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(chat.end_ids),
        pad_token_id=chat.pad_id,
        stop_strings=list(STOP_STRINGS),
        return_dict_in_generate=True,
        output_logits=True,
    )
    answers: list[tuple[str, float]] = [("", 0.0)] * len(prompts)
    for families in _batches(families_of(prompts), batch_size):
        indices = [i for family in families for i in family.members]
        past, ids, mask = _read_shared(model, chat, prompts, families)
        output = causal_lm(model).generate(
            input_ids=ids, attention_mask=mask, past_key_values=past, generation_config=config,
            tokenizer=chat.tokenizer,
        )  # fmt: skip
        new = output.sequences[:, ids.shape[1] :]
        for index, tokens, confidence in zip(
            indices, new.tolist(), _confidence(new, output.logits, chat), strict=True
        ):
            answers[index] = chat.decode(chat.cut(tokens)), confidence
        advance(len(indices))
    return answers


@dataclass(frozen=True)
class Family:
    """Prompts (by index) whose first `shared` tokens are the same; all tokens but the last of one that is alone."""

    shared: int
    members: tuple[int, ...]


def families_of(prompts: Sequence[list[int]]) -> list[Family]:
    """Group prompts that have at least half of their tokens in common at the beginning, longest prompts first."""
    families: list[Family] = []
    for index in sorted(range(len(prompts)), key=lambda i: prompts[i]):  # relatives become neighbours
        last = families[-1] if families else None
        if last is not None:
            first = prompts[last.members[0]]
            common = _common(first, prompts[index], last.shared)
            if 2 * common >= max(len(prompts[index]), len(first)):
                families[-1] = Family(common, (*last.members, index))
                continue
        families.append(Family(len(prompts[index]) - 1, (index,)))
    return sorted(families, key=lambda family: -len(prompts[family.members[0]]))


def _common(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """Length of the common beginning, at most `most` and short of `other`'s last token."""
    most = min(most, len(other) - 1)
    return next((i for i in range(most) if one[i] != other[i]), most)


def _batches(families: Sequence[Family], batch_size: int) -> Iterator[list[Family]]:
    """Families packed into batches of at most `batch_size` prompts; larger ones are cut."""
    batch: list[Family] = []
    for family in families:
        for at in range(0, len(family.members), batch_size):
            part = Family(family.shared, family.members[at : at + batch_size])
            if sum(len(f.members) for f in batch) + len(part.members) > batch_size:
                yield batch
                batch = []
            batch.append(part)
    if batch:
        yield batch


def _read_shared(
    model: Any, chat: ChatTokenizer, prompts: Sequence[list[int]], families: Sequence[Family]
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Read what families share once per family; the cache, ids [B, S] and mask [B, S] to generate from.

    A row is [padding, shared beginning, padding, own rest]; positions are counted by the mask.
    """
    multiple = bucket(model.device)
    if all(len(family.members) == 1 for family in families):
        ids, mask = _left_padded([prompts[i] for f in families for i in f.members], chat.pad_id, multiple)
        return None, ids.to(model.device), mask.to(model.device)
    shared = [prompts[family.members[0]][: family.shared] for family in families]
    own = [prompts[i][family.shared :] for family in families for i in family.members]
    head_ids, head_mask = (t.to(model.device) for t in _left_padded(shared, chat.pad_id, multiple))
    ids, mask = (t.to(model.device) for t in _left_padded(own, chat.pad_id, multiple))
    past = DynamicCache(config=causal_lm(model).config)
    causal_lm(model).base_model(
        input_ids=head_ids,
        attention_mask=head_mask,
        position_ids=(head_mask.cumsum(-1) - 1).clamp_min(0),
        past_key_values=past,
        use_cache=True,
    )
    sizes = torch.tensor([len(family.members) for family in families])
    rows = torch.arange(len(families)).repeat_interleave(sizes).to(model.device)
    past.batch_select_indices(rows)
    return past, torch.cat([head_ids[rows], ids], dim=1), torch.cat([head_mask[rows], mask], dim=1)


def _left_padded(
    prompts: Sequence[list[int]], pad_id: int, multiple: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B, S] and mask [B, S], S being the longest prompt's length rounded up to `multiple`."""
    length = -(-max(len(p) for p in prompts) // multiple) * multiple
    ids = torch.tensor([[pad_id] * (length - len(p)) + p for p in prompts], dtype=torch.long)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def _confidence(tokens: torch.Tensor, logits: Sequence[torch.Tensor], chat: ChatTokenizer) -> list[float]:
    """Mean log-probability of the generated tokens before the end; of the end itself where there is no other."""
    scores = torch.stack([step.float().log_softmax(-1) for step in logits], dim=1)  # [B, new, V]
    chosen = scores.gather(-1, tokens[:, :, None])[..., 0]
    if not chosen.isfinite().all():
        raise RunError("the model's probabilities are not finite while it generates")
    final = torch.tensor(list(chat.final_ids), device=tokens.device)  # among them padding
    ended = torch.isin(tokens, final).cumsum(-1) > 0
    ended[:, 0] = False
    return (chosen.masked_fill(ended, 0.0).sum(-1) / (~ended).sum(-1)).tolist()

"""Greedy answers in batches: the one way in which teacher and students write text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from kdsuite.errors import RunError
from kdsuite.models.forward import causal_lm, traits_of
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

    Any special token ends an answer. Prompts that begin alike (questions about one passage) share the keys and
    values of what they have in common, where the model allows it. Batches of similar length, padded on the left;
    the order of the result is that of `prompts`. RunError if the model's probabilities are not finite.
    """
    answers: list[tuple[str, float]] = [("", 0.0)] * len(prompts)
    for families in _groups(model, prompts, max_new_tokens, batch_size):
        indices = [i for family in families for i in family.members]
        past, ids, mask = read_shared(model, chat.pad_id, prompts, families)
        new, log_probs = continuations(model, chat, ids, mask, past, max_new_tokens)
        for index, tokens, scores in zip(indices, new, log_probs, strict=True):
            kept = chat.cut(tokens)  # of the end itself there is a probability where there is nothing else
            counted = max(len(kept), 1)
            answers[index] = chat.decode(kept), sum(scores[:counted]) / counted
        advance(len(indices))
    return answers


def continuations(
    model: Any,
    chat: ChatTokenizer,
    ids: torch.Tensor,
    mask: torch.Tensor,
    past: Any,
    max_new_tokens: int,
) -> tuple[list[list[int]], list[list[float]]]:
    """Greedy tokens behind ids [B, S] (mask [B, S]; `past`: keys and values of their beginnings), with their
    log-probabilities: per row at most `max_new_tokens`, filled up with the pad id behind the end."""
    lm, record = causal_lm(model), _Greedy(len(chat.token_bytes))
    with no_settings_of_its_own(lm):
        sequences = lm.generate(
            input_ids=ids,
            attention_mask=mask,
            **({} if past is None else {"past_key_values": past}),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=sorted(chat.final_ids),
                pad_token_id=chat.pad_id,
            ),
            logits_processor=LogitsProcessorList([record]),
            stopping_criteria=StoppingCriteriaList([_StopStrings(chat, ids.shape[1])]),
        )
    log_probs = torch.stack(record.log_probs, dim=1)  # [B, new]
    if not log_probs.isfinite().all():
        raise RunError("the model's probabilities are not finite while it generates")
    return sequences[:, ids.shape[1] :].tolist(), log_probs.tolist()


class _Greedy(LogitsProcessor):
    """Notes the log-probability of each greedy choice among the real tokens; padded embedding rows are none."""

    def __init__(self, vocabulary: int):
        self.vocabulary, self.log_probs = vocabulary, []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.vocabulary :] = float("-inf")
        self.log_probs.append(scores.amax(-1) - scores.logsumexp(-1))
        return scores


class _StopStrings(StoppingCriteria):
    """Ends a row whose new text has a stop string in it; the library's own looks through the whole vocabulary."""

    def __init__(self, chat: ChatTokenizer, prompt: int):
        self.chat, self.prompt = chat, prompt

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        texts = [self.chat.decode(row) for row in input_ids[:, self.prompt :].tolist()]
        ended = [any(stop in text for stop in STOP_STRINGS) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


@contextmanager
def no_settings_of_its_own(lm: Any) -> Iterator[None]:
    """Without the generation settings that came with the model (penalties, sampling, minimum lengths, bad words):
    transformers takes from them whatever a call leaves open."""
    own, lm.generation_config = lm.generation_config, GenerationConfig()
    try:
        yield
    finally:
        lm.generation_config = own


@dataclass(frozen=True)
class Family:
    """Prompts (by index) whose first `shared` tokens are the same; all tokens but the last of one that is alone."""

    shared: int
    members: tuple[int, ...]


def prompt_batches(
    model: Any, prompts: Sequence[list[int]], max_new_tokens: int, batch_size: int
) -> list[list[int]]:
    """The prompts, by index, that `generate` reads together."""
    groups = _groups(model, prompts, max_new_tokens, batch_size)
    return [[i for family in families for i in family.members] for families in groups]


def _groups(
    model: Any, prompts: Sequence[list[int]], max_new_tokens: int, batch_size: int
) -> Iterator[list[Family]]:
    """Batches of families as the model can read them."""
    traits, families = traits_of(model), families_of(prompts)
    shared = max((family.shared for family in families), default=0)
    own = max((len(prompts[i]) - family.shared for family in families for i in family.members), default=0)
    if traits.gaps and traits.sees(shared + own + max_new_tokens + 2 * bucket(model.device)):
        yield from _batches(families, batch_size)
        return
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    alone = [Family(len(prompts[i]) - 1, (i,)) for i in order]
    if traits.left_padding:
        yield from _batches(alone, batch_size)
        return
    for _, same in groupby(alone, key=lambda family: family.shared):
        yield from _batches(list(same), batch_size)


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


def read_shared(
    model: Any, pad_id: int, prompts: Sequence[list[int]], families: Sequence[Family]
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Read what families share once per family; the cache, ids [B, S] and mask [B, S] to generate from.

    A row is [padding, shared beginning, padding, own rest]; positions are counted by the mask.
    """
    multiple = bucket(model.device)
    if all(len(family.members) == 1 for family in families):
        ids, mask = _left_padded([prompts[i] for f in families for i in f.members], pad_id, multiple)
        return None, ids.to(model.device), mask.to(model.device)
    shared = [prompts[family.members[0]][: family.shared] for family in families]
    own = [prompts[i][family.shared :] for family in families for i in family.members]
    head_ids, head_mask = (t.to(model.device) for t in _left_padded(shared, pad_id, multiple))
    ids, mask = (t.to(model.device) for t in _left_padded(own, pad_id, multiple))
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

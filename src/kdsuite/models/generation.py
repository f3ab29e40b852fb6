"""Answers in batches, greedy or sampled: the one way in which teacher and students write text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, StoppingCriteria

from kdsuite.errors import RunError
from kdsuite.models.forward import causal_lm, traits_of
from kdsuite.runtime.device import bucket
from kdsuite.runtime.process import own_random
from kdsuite.runtime.ranks import together
from kdsuite.tasks.encoding import ChatTokenizer

STOP = re.compile(r"\n(?:Human:|Context:|Question:|\n)")  # stop strings: nothing useful follows them


@dataclass(frozen=True)
class Family:
    """Prompts (by index) whose first `shared` tokens are the same; all tokens but the last of one that is alone."""

    shared: int
    members: tuple[int, ...]


def generate(
    model: Any, chat: ChatTokenizer, prompts: Sequence[list[int]], max_new_tokens: int, batch_size: int
) -> list[tuple[str, float]]:
    """Greedy continuations before the end of turn or a stop string, each with its mean log-probability.

    The mean is over all tokens before the end of turn, those of a stop string too; where there is none, it is that
    of the end of turn. So answers of different lengths can be compared.

    Any special token ends an answer. Prompts that begin alike (questions about one passage) share the keys and
    values of what they have in common, where the model allows it. Batches of similar length, padded on the left;
    the order of the result is that of `prompts`. RunError if the model's probabilities are not finite.
    """
    return [(text, score) for text, score, _ in written(model, chat, prompts, max_new_tokens, batch_size)]


@together
@torch.inference_mode()
def written(
    model: Any, chat: ChatTokenizer, prompts: Sequence[list[int]], max_new_tokens: int, batch_size: int
) -> list[tuple[str, float, bool]]:
    """What `generate` gives, and with each whether it ended there; else it was cut at `max_new_tokens`."""
    answers: list[tuple[str, float, bool]] = [("", 0.0, True)] * len(prompts)
    settings = {"max_new_tokens": max_new_tokens, "eos_token_id": sorted(chat.final_ids)}
    for families in _batches(model, prompts, max_new_tokens, batch_size):
        record = _Greedy(len(chat.token_bytes))
        watched = {"logits_processor": [record], "stopping_criteria": [_StopStrings(chat, record)]}
        sequences = decode(model, prompts, families, chat.pad_id, settings, **watched)
        log_probs = torch.stack(record.log_probs, dim=1)  # [B, new]
        if not log_probs.isfinite().all():
            raise RunError("the model's probabilities are not finite while it generates")
        new, indices = sequences[:, -log_probs.shape[1] :].tolist(), _members(families)
        for index, tokens, scores in zip(indices, new, log_probs.tolist(), strict=True):
            kept = chat.cut(tokens)  # of the end itself there is a probability where there is nothing else
            counted, (text, *rest) = max(len(kept), 1), STOP.split(chat.decode(kept), maxsplit=1)
            answers[index] = text, sum(scores[:counted]) / counted, bool(rest) or len(kept) < len(tokens)
    return answers


@torch.inference_mode()
def sample(
    model: Any,
    chat: ChatTokenizer,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int | None = None,
) -> list[list[int]]:
    """Sampled continuations, in ids, the token that ended it with each; of all tokens at a temperature, from a seed.

    What is drawn depends on how many prompts are read together, by default all of them. The generators of random
    numbers are afterwards as they were.
    """
    settings = {"max_new_tokens": max_new_tokens, "eos_token_id": sorted(chat.final_ids)}
    settings |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    said: list[list[int]] = [[] for _ in prompts]
    with own_random(model.device, seed):
        for families in _batches(model, prompts, max_new_tokens, batch_size or len(prompts)):
            real = _Real(len(chat.token_bytes))
            sequences = decode(model, prompts, families, chat.pad_id, settings, logits_processor=[real])
            for index, tokens in zip(_members(families), sequences[:, -real.steps :].tolist(), strict=True):
                kept = chat.cut(tokens)
                said[index] = tokens[: len(kept) + 1]
    return said


def decode(
    model: Any,
    prompts: Sequence[list[int]],
    families: Sequence[Family],
    pad_id: int,
    settings: dict[str, Any],
    **options: Any,
) -> Any:
    """What transformers generates from the families' prompts, in their order, [B, prompt + new]; greedily, unless the
    settings say otherwise.

    By these settings only: what a call leaves open transformers takes from those that came with the model
    (penalties, sampling, minimum lengths, bad words).
    """
    lm = causal_lm(model)
    past, ids, mask = _read_shared(model, prompts, families, pad_id)
    own, lm.generation_config = lm.generation_config, GenerationConfig()
    try:
        return lm.generate(
            input_ids=ids,
            attention_mask=mask,
            **({} if past is None else {"past_key_values": past}),
            generation_config=GenerationConfig(**{"do_sample": False, "pad_token_id": pad_id} | settings),
            **options,
        )
    finally:
        lm.generation_config = own


class _Greedy(LogitsProcessor):
    """Notes the log-probability of each greedy choice among the real tokens; padded embedding rows are none."""

    def __init__(self, vocabulary: int):
        self.vocabulary, self.log_probs = vocabulary, []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.vocabulary :] = float("-inf")
        self.log_probs.append(scores.amax(-1) - scores.logsumexp(-1))
        return scores


class _Real(LogitsProcessor):
    """Counts the steps; padded embedding rows are no tokens."""

    def __init__(self, vocabulary: int):
        self.vocabulary, self.steps = vocabulary, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        scores[:, self.vocabulary :] = float("-inf")
        return scores


class _StopStrings(StoppingCriteria):
    """Ends a row whose new text has a stop string in it; the library's own looks through the whole vocabulary."""

    def __init__(self, chat: ChatTokenizer, record: _Greedy):
        self.chat, self.record = chat, record

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        texts = map(self.chat.decode, input_ids[:, -len(self.record.log_probs) :].tolist())
        ended = [bool(STOP.search(text)) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


def families_of(prompts: Sequence[list[int]]) -> list[Family]:
    """Group prompts that have at least half of their tokens in common at the beginning, longest prompts first."""
    families: list[Family] = []
    for index in sorted(range(len(prompts)), key=lambda i: prompts[i]):  # relatives become neighbours
        prompt = prompts[index]
        if families:
            last = families[-1]
            first, most = prompts[last.members[0]], min(last.shared, len(prompt) - 1)
            common = next((i for i in range(most) if first[i] != prompt[i]), most)
            if 2 * common >= max(len(prompt), len(first)):
                families[-1] = Family(common, (*last.members, index))
                continue
        families.append(Family(len(prompt) - 1, (index,)))
    return sorted(families, key=lambda family: -len(prompts[family.members[0]]))


def _members(families: Sequence[Family]) -> list[int]:
    return [i for family in families for i in family.members]


def prompt_batches(model: Any, prompts: Sequence[list[int]], max_new_tokens: int, batch_size: int) -> list[list[int]]:
    """The prompts, by index, that `generate` reads together."""
    return [_members(families) for families in _batches(model, prompts, max_new_tokens, batch_size)]


def _batches(model: Any, prompts: Sequence[list[int]], max_new_tokens: int, batch_size: int) -> list[list[Family]]:
    """Families as the model can read them, packed into batches of at most `batch_size` prompts; larger ones are cut."""
    traits, families = traits_of(model), families_of(prompts)
    shared = max((family.shared for family in families), default=0)
    own = max((len(prompts[i]) - family.shared for family in families for i in family.members), default=0)
    groups = [families]
    if not (traits.gaps and traits.sees(shared + own + max_new_tokens + 2 * bucket(model.device))):
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        alone = [Family(len(prompts[i]) - 1, (i,)) for i in order]
        lengths = groupby(alone, key=lambda family: family.shared)
        groups = [alone] if traits.left_padding else [list(same) for _, same in lengths]
    batches: list[list[Family]] = []
    for group in groups:
        room = 0
        for family in group:
            for at in range(0, len(family.members), batch_size):
                part = Family(family.shared, family.members[at : at + batch_size])
                if len(part.members) > room:
                    batches.append([])
                    room = batch_size
                batches[-1].append(part)
                room -= len(part.members)
    return batches


def _read_shared(
    model: Any, prompts: Sequence[list[int]], families: Sequence[Family], pad_id: int
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Read what families share once per family; the cache, ids [B, S] and mask [B, S] to generate from.

    A row is [padding, shared beginning, padding, own rest]; positions are counted by the mask.
    """

    def left_padded(texts: Sequence[list[int]]) -> tuple[torch.Tensor, ...]:
        multiple = bucket(model.device)
        length = -(-max(map(len, texts)) // multiple) * multiple
        ids = [[pad_id] * (length - len(text)) + text for text in texts]
        mask = [[0] * (length - len(text)) + [1] * len(text) for text in texts]
        return tuple(torch.tensor(t, dtype=torch.long, device=model.device) for t in (ids, mask))

    if all(len(family.members) == 1 for family in families):
        ids, mask = left_padded([prompts[i] for i in _members(families)])
        return None, ids, mask
    head_ids, head_mask = left_padded([prompts[f.members[0]][: f.shared] for f in families])
    ids, mask = left_padded([prompts[i][f.shared :] for f in families for i in f.members])
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

"""Padding, masks and batch order change no result; batches waste little."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsuite.config import TaskSettings, task_section
from kdsuite.models.forward import class_log_probs, supervised_logits, supervised_states, token_log_probs
from kdsuite.tasks.batching import LengthGroupedSampler, batches_by_length, collate
from kdsuite.tasks.encoding import ChatTokenizer, encode
from kdsuite.tasks.example import task_of

TASKS = {"sst2": task_of("sst2", task_section("sst2")), "squad": task_of("squad", task_section("squad"))}


def reviews(chat: ChatTokenizer, settings: TaskSettings):
    task = TASKS["sst2"]
    return encode(task_of(task.name, settings), chat, task_of(task.name, settings).load("validation"))


def scores(model, chat: ChatTokenizer, examples, side_by_side: bool = True) -> torch.Tensor:
    batch = collate(examples, chat.pad_id, side_by_side=side_by_side)
    with torch.no_grad():
        logits, _ = supervised_logits(model, batch, batch.distinct, len(chat.token_bytes))
    return class_log_probs(token_log_probs(logits, batch), batch, 2)


def test_continuations_do_not_see_each_other(llama_chat, llama_model, sst2_settings) -> None:
    """The packed form scores each label exactly as prompt + label alone does."""
    [example] = reviews(llama_chat, sst2_settings)[:1]
    packed = scores(llama_model, llama_chat, [example])[0]
    prompt = example.input_ids[: example.segments.count(0)]
    for choice, label in enumerate(TASKS["sst2"].labels or ()):
        ids = [*llama_chat.answer(label).target_ids, llama_chat.end_id]
        with torch.no_grad():
            logits = llama_model(input_ids=torch.tensor([prompt + ids[:-1]])).logits[0]
        alone = logits[len(prompt) - 1 :].log_softmax(-1)[range(len(ids)), ids].sum()
        torch.testing.assert_close(packed[choice], alone, atol=1e-4, rtol=1e-4)


def test_what_the_labels_have_in_common_is_predicted_once(llama_chat, llama_model, sst2_settings) -> None:
    """Two labels of an example begin at the same state; everything else has one of its own."""
    examples = reviews(llama_chat, sst2_settings)[:3]
    batch = collate(examples, llama_chat.pad_id)
    [states] = supervised_states(llama_model, batch, torch.arange(len(batch.targets)), (2,))
    assert len(batch.distinct) == len(states) - len(examples)
    assert torch.equal(states[batch.distinct][batch.shared], states)
    places = torch.stack([batch.rows, batch.columns])[:, batch.distinct]
    assert places.unique(dim=1).shape == places.shape


def test_a_row_for_each_continuation_gives_the_same_scores(llama_chat, llama_model, sst2_settings) -> None:
    examples = reviews(llama_chat, sst2_settings)[:6]
    apart = collate(examples, llama_chat.pad_id, side_by_side=False)
    assert apart.attention_mask is None
    assert apart.position_ids is None
    assert len(apart.input_ids) == 2 * len(examples)
    together = scores(llama_model, llama_chat, examples)
    torch.testing.assert_close(
        scores(llama_model, llama_chat, examples, side_by_side=False), together, atol=1e-4, rtol=1e-4
    )
    assert torch.equal(apart.on_target, collate(examples, llama_chat.pad_id).on_target)


def test_padding_and_batch_order_do_not_change_scores(llama_chat, llama_model, sst2_settings) -> None:
    examples = reviews(llama_chat, sst2_settings)[:6]
    together = scores(llama_model, llama_chat, examples)
    alone = torch.cat([scores(llama_model, llama_chat, [e]) for e in examples])
    backwards = scores(llama_model, llama_chat, examples[::-1]).flip(0)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together, backwards, atol=1e-4, rtol=1e-4)


def test_every_example_comes_once_per_epoch_and_seeds_and_epochs_change_the_order() -> None:
    lengths = [(i * 37) % 50 + 10 for i in range(103)]
    sampler = LengthGroupedSampler(lengths, 8, seed=1)
    first = list(sampler)
    assert sorted(i for batch in first for i in batch) == list(range(103)) and len(first) == len(sampler)
    assert first == list(sampler) != list(LengthGroupedSampler(lengths, 8, seed=2))
    sampler.set_epoch(1)
    assert first != list(sampler)


@settings(max_examples=100, deadline=None)
@given(some=st.sets(st.integers(0, 102), min_size=1), epoch=st.integers(0, 3))
def test_batches_of_some_examples_are_those_of_all_without_the_others_and_as_many(some: set[int], epoch: int) -> None:
    lengths = [(i * 37) % 50 + 10 for i in range(103)]
    whole, part = LengthGroupedSampler(lengths, 8, 1), LengthGroupedSampler(lengths, 8, 1, some)
    whole.set_epoch(epoch)
    part.set_epoch(epoch)
    found, expected = list(part), [[i for i in batch if i in some] for batch in whole]
    assert sorted(i for batch in found for i in batch) == sorted(some)
    assert len(found) == len(part) == min(len(whole), len(some)) and all(found)
    if all(expected):
        assert found == expected


def test_grouping_by_length_pads_at_most_five_percent() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = (torch.rand(2000, generator=generator) * 60 + 20).long().tolist()
    for batches in (LengthGroupedSampler(lengths, 16, 0), batches_by_length(lengths, 16)):
        padded = sum(max(lengths[i] for i in b) * len(b) for b in batches)
        assert padded / sum(lengths) <= 1.05

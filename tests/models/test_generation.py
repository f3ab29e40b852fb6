"""Answers do not depend on how prompts are batched, and what prompts have in common is read once."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsuite.config import task_section
from kdsuite.models import generation
from kdsuite.models.generation import families_of, generate, sample, written
from kdsuite.tasks.encoding import ChatTokenizer, encode_prompts
from kdsuite.tasks.example import task_of

TASKS = {"sst2": task_of("sst2", task_section("sst2")), "squad": task_of("squad", task_section("squad"))}

SQUAD = TASKS["squad"]


@pytest.fixture
def prompts(qwen_chat, squad_settings):
    """Questions on passages (four each), with two passages asked about only once."""
    examples = task_of("squad", squad_settings).load("train")[:22]
    return [w for windows in encode_prompts(task_of("squad", squad_settings), qwen_chat, examples) for w in windows][
        :21
    ]


@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_shared_reading_changes_no_answer_and_no_order(qwen_model, qwen_chat, prompts, batch_size) -> None:
    together = generate(qwen_model, qwen_chat, prompts, 6, batch_size)
    alone = [generate(qwen_model, qwen_chat, [prompt], 6, 1)[0] for prompt in prompts]
    assert [text for text, _ in together] == [text for text, _ in alone]
    assert [c for _, c in together] == pytest.approx([c for _, c in alone], abs=1e-4)


def test_lengths_rounded_up_for_devices_that_dislike_new_shapes_change_no_answer(
    qwen_model, qwen_chat, prompts, monkeypatch
) -> None:
    plain = generate(qwen_model, qwen_chat, prompts, 6, 5)
    lengths = []
    whole = qwen_model.model.forward

    def watching(*args, **kwargs):
        lengths.append(kwargs["input_ids"].shape[1])
        return whole(*args, **kwargs)

    monkeypatch.setattr(generation, "bucket", lambda device: 32)
    monkeypatch.setattr(qwen_model.model, "forward", watching)
    rounded = generate(qwen_model, qwen_chat, prompts, 6, 5)
    assert [text for text, _ in rounded] == [text for text, _ in plain]
    assert [c for _, c in rounded] == pytest.approx([c for _, c in plain], abs=1e-4)
    assert all(length % 32 == 0 for length in lengths if length > 1)


def test_questions_on_a_passage_are_one_family_and_read_it_once(qwen_model, qwen_chat, prompts, monkeypatch) -> None:
    families = families_of(prompts)
    assert sorted(len(f.members) for f in families)[-4:] == [3, 3, 3, 3]
    read: list[int] = []
    whole = qwen_model.model.forward

    def counting(*args, **kwargs):
        read.append(kwargs["input_ids"].numel())
        return whole(*args, **kwargs)

    monkeypatch.setattr(qwen_model.model, "forward", counting)
    generate(qwen_model, qwen_chat, prompts, 1, 64)
    assert sum(read) < 0.75 * sum(len(p) for p in prompts)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12))
def test_every_prompt_is_in_one_family_and_keeps_a_token_of_its_own(prompts: list[list[int]]) -> None:
    families = families_of(prompts)
    assert sorted(i for f in families for i in f.members) == list(range(len(prompts)))
    for family in families:
        shared = [prompts[i][: family.shared] for i in family.members]
        assert all(s == shared[0] for s in shared)
        assert all(len(prompts[i]) > family.shared for i in family.members)
        if len(family.members) == 1:
            assert family.shared == len(prompts[family.members[0]]) - 1


def test_it_is_known_whether_an_answer_came_to_its_end(qwen_model, qwen_chat, prompts, monkeypatch) -> None:
    """By a token that ends a turn, be it the last one that is allowed, or by a stop string; else it was cut."""
    cut = written(qwen_model, qwen_chat, prompts, 6, 8)
    assert [text for text, _, _ in cut] == [text for text, _ in generate(qwen_model, qwen_chat, prompts, 6, 8)]
    assert not any(whole for *_, whole in cut)
    [said] = sample(qwen_model, qwen_chat, prompts[:1], 6, 1e-6, seed=1)
    monkeypatch.setitem(vars(qwen_chat), "final_ids", qwen_chat.final_ids | {said[-1]})
    ended = written(qwen_model, qwen_chat, prompts[:1], 1 + said.index(said[-1]), 1)
    assert [whole for *_, whole in ended] == [True]
    word = next(text for text, _, _ in cut if text.strip()).strip()[:2]
    monkeypatch.setattr(generation, "STOP", re.compile(re.escape(word)))
    stopped = written(qwen_model, qwen_chat, prompts, 6, 8)
    assert [whole for *_, whole in stopped] == [word in text for text, _, _ in cut]


def test_an_answer_is_what_stands_before_a_stop_string(qwen_model, qwen_chat, prompts, monkeypatch) -> None:
    """A word that the model writes is named as one; the confidence is that of all that was written, with the word."""
    monkeypatch.setattr(generation, "STOP", re.compile("(?!)"))  # nothing
    plain = [text for text, _ in generate(qwen_model, qwen_chat, prompts, 12, 8)]
    at, stop = next((at, word) for at, text in enumerate(plain) for word in text.split()[2:])
    longer = (generate(qwen_model, qwen_chat, [prompts[at]], length, 1)[0] for length in range(1, 13))
    sure = next(confidence for text, confidence in longer if stop in text)
    monkeypatch.setattr(generation, "STOP", re.compile(re.escape(stop)))
    stopped = generate(qwen_model, qwen_chat, prompts, 12, 8)
    assert [text for text, _ in stopped] == [text.partition(stop)[0] for text in plain] != plain
    assert stopped[at][1] == pytest.approx(sure, abs=1e-4)


def test_no_prompts_no_answers(qwen_model, qwen_chat) -> None:
    assert generate(qwen_model, qwen_chat, [], 4, 8) == []
    assert torch.is_grad_enabled()


def test_an_answer_ends_at_any_of_the_ends_and_its_confidence_too(llama_model, llama_chat, squad_settings) -> None:
    """What the model says second is named as an end: the answer is what it says first."""

    model = copy.deepcopy(llama_model)  # whose tied embeddings say the same token again
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape, generator=torch.manual_seed(1)))

    @torch.inference_mode()
    def says(ids: list[int]) -> tuple[int, float]:
        scores = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        return int(scores.argmax()), float(scores.max())

    examples = task_of("squad", squad_settings).load("train")[:30]
    checked = 0
    for [prompt] in encode_prompts(task_of("squad", squad_settings), llama_chat, examples):
        first, sure = says(prompt)
        second, _ = says([*prompt, first])
        if second == first or {first, second} & llama_chat.final_ids:
            continue
        chat = ChatTokenizer(llama_chat.tokenizer, end_ids=[second])
        [(text, confidence)] = generate(model, chat, [prompt], 6, 1)
        assert (text, confidence) == (llama_chat.decode([first]), pytest.approx(sure, abs=1e-4))
        checked += 1
    assert checked

"""What all texts begin with is read once, and changes nothing of what is said of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from kdsuite.config import task_section
from kdsuite.evaluate.predict import EvaluationSet, label_scores, predict
from kdsuite.models.beginning import read_once
from kdsuite.models.forward import Traits, supervised_logits
from kdsuite.tasks.batching import collate
from kdsuite.tasks.encoding import encode
from kdsuite.tasks.example import Example, task_of
from kdsuite.teacher.local import LocalTeacher, OutputSettings

SENTENCES = ("a film", "nothing happens in it , and that is a pity", "warm", "loud", "an old film about the sea")
REVIEWS = task_of("sst2", task_section("sst2"))
EXAMPLES = [Example(f"e{i}", {"sentence": s}, "positive", ("positive",), s) for i, s in enumerate(SENTENCES)]


@pytest.fixture
def reviews(qwen_chat):
    return encode(REVIEWS, qwen_chat, EXAMPLES)


@contextmanager
def counted(model) -> Iterator[list[int]]:
    """How many tokens go through a model, pass by pass."""
    seen: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda module, ids, out: seen.append(ids[0].numel()))
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize("side_by_side", [True, False])
@pytest.mark.parametrize("split", [True, False])
def test_a_student_says_the_same_of_labels_and_reads_the_beginning_once(
    qwen_model, qwen_chat, reviews, monkeypatch, side_by_side, split
) -> None:
    traits = Traits(side_by_side=side_by_side, split=split)
    monkeypatch.setattr(qwen_model, "kdsuite_traits", traits, raising=False)
    with counted(qwen_model) as before:
        whole = label_scores(qwen_model, qwen_chat, reviews, 2, 2)
    with counted(qwen_model) as seen, read_once(qwen_model, reviews, least=1):
        scores = label_scores(qwen_model, qwen_chat, reviews, 2, 2)
    torch.testing.assert_close(scores, whole, atol=1e-5, rtol=1e-5)
    [once], rows = {*seen} - {*seen[1:]}, len(reviews) * (1 if side_by_side else 2)
    assert once > 10 and seen[0] == once
    assert sum(seen) == sum(before) - (rows - 1) * once


def test_what_a_teacher_keeps_is_the_same_states_of_every_layer_too(qwen_model, qwen_chat, reviews) -> None:
    for keep in (OutputSettings(8, temperatures=(2.0,), layers=(1, 3), labels=2), OutputSettings(layers=(1, 3))):
        teacher = LocalTeacher(qwen_model, qwen_chat, keep)
        whole = teacher.score(reviews)
        with read_once(qwen_model, reviews, least=1):
            records = teacher.score(reviews)
        for one, other in zip(records, whole, strict=True):
            for name, values in other.items():
                np.testing.assert_allclose(one[name], values, atol=1e-4, rtol=1e-4, err_msg=name)


def test_an_evaluation_reads_what_its_sentences_begin_with_once(qwen_model, qwen_chat, monkeypatch) -> None:
    """Of a single example the beginning is read with the rest: a pass of its own would save nothing."""
    many = EvaluationSet.of(REVIEWS, qwen_chat, EXAMPLES * 4)
    with counted(qwen_model) as seen:
        predict(qwen_model, qwen_chat, many, batch_size=8)
        once, *rest = seen
        predict(qwen_model, qwen_chat, EvaluationSet.of(REVIEWS, qwen_chat, EXAMPLES[:1]), batch_size=1)
    assert seen[len(rest) + 1 :] == [len(many.encoded[0])]
    monkeypatch.setattr(qwen_model, "kdsuite_traits", Traits(beginning=False), raising=False)
    with counted(qwen_model) as whole:
        predict(qwen_model, qwen_chat, many, batch_size=8)
    assert [len(many) * once, len(rest)] == [sum(whole) - sum(rest), len(whole)]


def test_at_least_the_token_that_the_answer_follows_stays_behind(qwen_model, qwen_chat, reviews) -> None:
    """Also where all examples are the same from beginning to end."""
    same = [reviews[0]] * 3
    with counted(qwen_model) as seen, read_once(qwen_model, same, least=1):
        scores = label_scores(qwen_model, qwen_chat, same, 2, 3)
    assert seen[0] == reviews[0].segments.count(0) - 1
    expected = label_scores(qwen_model, qwen_chat, same, 2, 3)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("traits", [Traits(beginning=False), Traits(window=16)])
def test_a_model_that_cannot_reads_everything(qwen_model, qwen_chat, reviews, monkeypatch, traits) -> None:
    monkeypatch.setattr(qwen_model, "kdsuite_traits", traits, raising=False)
    with counted(qwen_model) as seen, read_once(qwen_model, reviews, least=1):
        label_scores(qwen_model, qwen_chat, reviews, 2, len(reviews))
    assert len(seen) == 1


def test_nothing_is_left_behind_where_it_ends_whatever_ends_it(qwen_model, qwen_chat, reviews) -> None:
    batch = collate(reviews, qwen_chat.pad_id)
    with pytest.raises(KeyboardInterrupt), read_once(qwen_model, reviews, least=1):
        raise KeyboardInterrupt
    with counted(qwen_model) as seen, torch.no_grad():
        supervised_logits(qwen_model, batch, batch.distinct, None)
    assert seen == [batch.input_ids.numel()]


def test_texts_that_begin_otherwise_are_not_read_behind_it(qwen_model, qwen_chat, reviews) -> None:
    [other] = encode(task_of("sst2", task_section("sst2", prompt="{{ sentence }}?")), qwen_chat, EXAMPLES[:1])
    with read_once(qwen_model, reviews, least=1), pytest.raises(ValueError, match="does not begin with"):
        label_scores(qwen_model, qwen_chat, [other], 2, 1)

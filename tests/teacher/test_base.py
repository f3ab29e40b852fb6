"""A teacher says what it offers, gives just that, and says the same wherever it is asked."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from kdsuite.config import task_section
from kdsuite.errors import RunError
from kdsuite.models.generation import generate, written
from kdsuite.tasks.encoding import encode
from kdsuite.tasks.example import task_of
from kdsuite.teacher.base import HERE, Teacher, Together
from kdsuite.teacher.cached import CachedTeacher, build_cache
from kdsuite.teacher.local import LocalTeacher, OutputSettings

LABELS = ("negative", "positive")


@pytest.fixture
def reviews(qwen_chat, sst2_settings):
    task = task_of("sst2", task_section("sst2"))
    return encode(task_of(task.name, sst2_settings), qwen_chat, task_of(task.name, sst2_settings).load("validation"))


@pytest.fixture
def questions(qwen_chat, squad_settings):
    task = task_of("squad", task_section("squad"))
    return encode(
        task_of(task.name, squad_settings), qwen_chat, task_of(task.name, squad_settings).load("validation")[:6]
    )


def kept(folder, local: LocalTeacher, examples, labels=()) -> CachedTeacher:
    build_cache(folder, {"outputs": vars(local.keep)}, examples, local.score, 4)
    return CachedTeacher(folder, labels)


def test_a_cached_teacher_offers_what_was_kept_and_says_what_the_model_said(
    tmp_path, qwen_model, qwen_chat, reviews
) -> None:
    local = LocalTeacher(qwen_model, qwen_chat, OutputSettings(4, temperatures=(2.0,), layers=(1,), labels=2))
    cached = kept(tmp_path, local, reviews, LABELS)
    assert local.offers == HERE
    assert cached.offers == HERE - {"live", "rationales"}
    assert CachedTeacher(tmp_path).offers == HERE - {"live", "rationales", "answers"}
    assert cached.temperatures == local.temperatures == (1.0, 2.0)
    for one, other in zip(cached.outputs(reviews[:4]), local.outputs(reviews[:4]), strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose(one["class_scores"], other["class_scores"], atol=1e-4)


def test_the_answer_where_labels_are_scored_is_the_likeliest_with_its_share(
    tmp_path, qwen_model, qwen_chat, reviews
) -> None:
    local = LocalTeacher(qwen_model, qwen_chat, OutputSettings(4, labels=2))
    answers = kept(tmp_path, local, reviews, LABELS).answers(reviews)
    for (label, share), record in zip(answers, local.outputs(reviews), strict=True):
        odds = np.exp(record["class_scores"].astype(np.float64))
        assert label == LABELS[int(odds.argmax())]
        assert share == pytest.approx(odds.max() / odds.sum(), rel=1e-4)


def test_a_local_teacher_writes_what_its_model_generates(qwen_model, qwen_chat, questions) -> None:
    local = LocalTeacher(qwen_model, qwen_chat, OutputSettings(4), max_new_tokens=5)
    everything = [e.prompt for e in questions]
    [batch] = local.prompt_batches(everything, 5, len(questions))
    said = local.answers([questions[i] for i in batch])
    plain = generate(qwen_model, qwen_chat, [questions[i].prompt for i in batch], 5, len(batch))
    assert said == [(text, math.exp(confidence)) for text, confidence in plain]
    prompts = [questions[i].prompt for i in batch]
    explained = written(qwen_model, qwen_chat, prompts, 5, len(batch))
    assert local.rationales(prompts) == [(text, whole) for text, _, whole in explained]
    assert sorted(i for some in local.prompt_batches(everything, 5, 2) for i in some) == list(range(len(questions)))


def test_who_asks_in_other_tokens_is_answered_by_id(qwen_model, qwen_chat, questions) -> None:
    local = LocalTeacher(qwen_model, qwen_chat, OutputSettings(layers=(2,)), known={e.id: e for e in questions})
    foreign = [replace(e, input_ids=[1, 2], targets=[3]) for e in questions[:2]]
    assert local.temperatures == ()
    for one, other in zip(local.outputs(foreign), local.score(questions[:2]), strict=True):
        assert set(one) == {"spans", "hidden_2"}
        np.testing.assert_array_equal(one["hidden_2"], other["hidden_2"])
    with pytest.raises(KeyError, match="stranger"):
        local.outputs([replace(questions[0], id="stranger")])


def test_views_of_a_teacher_together_offer_what_any_of_them_offers(tmp_path, qwen_model, qwen_chat, questions) -> None:
    local = LocalTeacher(qwen_model, qwen_chat, OutputSettings(4, temperatures=(2.0,)))
    states = LocalTeacher(qwen_model, qwen_chat, OutputSettings(layers=(2,)))
    both = Together(states, kept(tmp_path, local, questions))
    assert both.offers == HERE
    assert both.temperatures == (1.0, 2.0)
    assert {"hidden_2", "topk_ids"} < both.outputs(questions[:1])[0].keys()


def test_what_is_not_offered_is_refused_by_name(tmp_path, qwen_model, qwen_chat, questions) -> None:
    cached = kept(tmp_path, LocalTeacher(qwen_model, qwen_chat, OutputSettings(4)), questions)
    with pytest.raises(RunError, match=r"gives no answers \(it offers distributions\)"):
        cached.answers(questions)
    with pytest.raises(RunError, match="gives no rationales"):
        cached.rationales([[1, 2]])
    with pytest.raises(RunError, match="scores of new texts"):
        cached.score(questions)

    class Mute(Teacher):
        @property
        def offers(self):
            return frozenset()

    with pytest.raises(RunError, match="it offers nothing"):
        Mute().outputs(questions)


def test_offers_are_known_without_torch() -> None:
    code = "import sys, kdsuite.teacher.base; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

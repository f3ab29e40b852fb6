"""A real llama.cpp server, with the model as our own writer made it: it tells what the model here says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import numpy as np
import pytest

from kdsuite.config import ServedTeacherSettings
from kdsuite.models.generation import generate
from kdsuite.tasks.encoding import encode
from kdsuite.tasks.example import task_of
from kdsuite.teacher.dialects import LlamaCpp, find
from kdsuite.teacher.http import HttpTeacher
from kdsuite.teacher.local import LocalTeacher, OutputSettings


@pytest.fixture(scope="module")
def server(served: Callable[..., Any], models) -> Iterator[Any]:
    server = served(models["teacher"])
    yield server
    server.kill()


@pytest.fixture(scope="module")
def name(server) -> str:
    return httpx2.get(server.url + "/v1/models").json()["data"][0]["id"]


def connected(server: Any, name: str, chat: Any, keep: OutputSettings, new_tokens: int = 0) -> HttpTeacher:
    settings = ServedTeacherSettings(url=server.url, model=name, tokenizer="here")
    one, found = find(settings)
    assert isinstance(one, LlamaCpp)
    return HttpTeacher(lambda: one, found, settings.concurrency, chat, keep, new_tokens)


def test_what_it_tells_is_what_the_model_here_says(server, name, qwen_model, qwen_chat, squad_settings) -> None:
    task = task_of("squad", squad_settings)
    questions = encode(task, qwen_chat, task.load("validation")[:3])
    keep = OutputSettings(16, temperatures=(2.0,))
    teacher, here = connected(server, name, qwen_chat, keep, 6), LocalTeacher(qwen_model, qwen_chat, keep)
    assert teacher.offers == {"answers", "class_scores", "distributions", "live", "rationales"}
    for one, other in zip(teacher.outputs(questions), here.outputs(questions), strict=True):
        np.testing.assert_allclose(one["topk_logprobs"], other["topk_logprobs"], atol=1e-3)
        np.testing.assert_allclose(one["log_tail"][:, 0], other["log_tail"][:, 0], atol=1e-3)
        assert (one["topk_ids"] == other["topk_ids"]).mean() > 0.9  # ties may be ordered otherwise
        assert one["spans"].tolist() == other["spans"].tolist()
    prompts = [e.prompt for e in questions]
    for one, other in zip(teacher.generate(prompts, 6), generate(qwen_model, qwen_chat, prompts, 6, 3), strict=True):
        assert one[0] == other[0] and one[1] == pytest.approx(other[1], abs=1e-3)


def test_labels_have_the_scores_that_they_have_here(server, name, qwen_model, qwen_chat, sst2_settings) -> None:
    task = task_of("sst2", sst2_settings)
    reviews = encode(task, qwen_chat, task.load("validation")[:3])
    keep = OutputSettings(4, labels=2)
    teacher, here = connected(server, name, qwen_chat, keep), LocalTeacher(qwen_model, qwen_chat, keep)
    for one, other in zip(teacher.outputs(reviews), here.outputs(reviews), strict=True):
        np.testing.assert_allclose(one["class_scores"], other["class_scores"], atol=1e-3)


def test_of_a_given_part_of_a_character_the_probability_is_told_too(server, name, qwen_chat) -> None:
    teacher = connected(server, name, qwen_chat, OutputSettings(3))
    prompt = qwen_chat.tokenizer("Say it: ", add_special_tokens=False)["input_ids"]
    parts = [id for id, text in enumerate(qwen_chat.token_bytes) if text in (b"\xc3", b"\xa9")]
    assert len(parts) == 2
    told = teacher.connect().score([*prompt, *parts], len(prompt), 3)
    every = teacher.connect().score([*prompt, *parts], len(prompt), len(qwen_chat.token_bytes))
    for at, id in enumerate(parts):
        assert told.own[at] == pytest.approx(every.logprobs[at][every.ids[at].index(id)], abs=1e-4)

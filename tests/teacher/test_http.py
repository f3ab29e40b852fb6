"""A teacher behind a URL says what the model behind it says: records, answers, labels; and what it cannot, it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdsuite.config import ServedTeacherSettings
from kdsuite.errors import RunError
from kdsuite.models.generation import generate, written
from kdsuite.tasks.encoding import encode
from kdsuite.tasks.example import task_of
from kdsuite.teacher.base import SCORED
from kdsuite.teacher.dialects import VLLM, SGLang, find
from kdsuite.teacher.http import HttpTeacher, Journal, normalisers
from kdsuite.teacher.local import LocalTeacher, OutputSettings
from teacher_server import serving

FORCED = ("vllm", "sglang", "llamacpp")
KEEP = OutputSettings(16, temperatures=(2.0, 4.0))


def teacher_at(server: Any, chat: Any, keep: OutputSettings = KEEP, journal: Journal | None = None) -> HttpTeacher:
    server_, found = find(settings_of(server))
    return HttpTeacher(lambda: server_, found, 4, chat, keep, 6, journal=journal or Journal())


def settings_of(server: Any, **others: Any) -> ServedTeacherSettings:
    return ServedTeacherSettings(url=server.url, model="big", tokenizer="here", **others)


@pytest.fixture(scope="module")
def questions(qwen_chat):
    from kdsuite.config import task_section

    task = task_of("squad", task_section("squad", max_length=400))
    return encode(task, qwen_chat, task.load("validation")[:4])


@pytest.mark.parametrize("api", FORCED)
def test_records_are_those_of_the_model_that_is_served(api, qwen_model, qwen_chat, questions) -> None:
    local = LocalTeacher(qwen_model, qwen_chat, KEEP)
    with serving(api, qwen_model, qwen_chat) as server:
        teacher = teacher_at(server, qwen_chat)
        assert (teacher.found.api, teacher.found.version, teacher.offers) == (api, "1.0", SCORED)
        assert teacher.temperatures == local.temperatures
        said = teacher.outputs(questions)
    for one, other in zip(said, local.outputs(questions), strict=True):
        assert {name: (v.shape, v.dtype) for name, v in one.items()} == {
            name: (v.shape, v.dtype) for name, v in other.items()
        }
        np.testing.assert_allclose(one["topk_logprobs"], other["topk_logprobs"], atol=1e-4)
        np.testing.assert_array_equal(one["spans"], other["spans"])
        shift = other["logsumexp"][:, :1] / np.array([1, 2, 4])  # logits are known up to a constant
        np.testing.assert_allclose(one["logsumexp"], other["logsumexp"] - shift, atol=0.02)
        np.testing.assert_allclose(one["log_tail"], other["log_tail"], atol=0.02)


@pytest.mark.parametrize("api", FORCED)
def test_labels_and_answers_are_those_of_the_model_that_is_served(
    api, qwen_model, qwen_chat, questions, sst2_settings
) -> None:
    task = task_of("sst2", sst2_settings)
    reviews = encode(task, qwen_chat, task.load("validation")[:3])
    local = LocalTeacher(qwen_model, qwen_chat, OutputSettings(4, labels=2))
    prompts = [e.prompt for e in questions]
    with serving(api, qwen_model, qwen_chat) as server:
        teacher = teacher_at(server, qwen_chat, OutputSettings(4, labels=2))
        for one, other in zip(teacher.outputs(reviews), local.outputs(reviews), strict=True):
            np.testing.assert_allclose(one["class_scores"], other["class_scores"], atol=1e-4)
        said = teacher.generate(prompts, 6)
        reasons = teacher.rationales(prompts)
    assert reasons == [(text, whole) for text, _, whole in written(qwen_model, qwen_chat, prompts, 6, len(prompts))]
    for one, other in zip(said, generate(qwen_model, qwen_chat, prompts, 6, len(prompts)), strict=True):
        assert one[0] == other[0] and one[1] == pytest.approx(other[1], abs=1e-4)


@pytest.mark.parametrize("api", ["openai", "ollama"])
def test_a_chat_route_answers_messages_and_scores_nothing(api, qwen_model, qwen_chat, questions) -> None:
    messages = [{"role": "user", "content": "Who wrote notes?"}]
    with serving(api, qwen_model, qwen_chat) as server:
        teacher = teacher_at(server, qwen_chat)
        assert teacher.offers == {"answers", "rationales"}
        with pytest.raises(RunError, match=r"gives no distributions \(it offers answers, rationales\)"):
            teacher.outputs(questions)
        [prompt] = qwen_chat.prompt_ids([messages])
        expected = generate(qwen_model, qwen_chat, [prompt], 6, 1)[0]
        qwen_chat.asked = {tuple(prompt): messages}
        try:
            [(text, confidence)] = teacher.generate([prompt], 6)
        finally:
            qwen_chat.asked = None
    assert text.strip() == expected[0].strip() and confidence == pytest.approx(expected[1], abs=1e-4)


def test_half_a_character_of_an_answer_that_was_cut_is_told_as_one_that_is_unknown(qwen_model, qwen_chat) -> None:
    """No file could hold it."""
    messages = [{"role": "user", "content": "Who wrote notes?"}]

    def cut(handler: Any, body: Any) -> bool:
        message = {"role": "assistant", "content": "so \ud83d\ude00 and \ud83d"}
        handler.send({"model": "big", "choices": [{"message": message, "finish_reason": "length"}]})
        return True

    with serving("openai", qwen_model, qwen_chat) as server:
        teacher = teacher_at(server, qwen_chat)
        server.faults.append(cut)
        [prompt] = qwen_chat.prompt_ids([messages])
        qwen_chat.asked = {tuple(prompt): messages}
        try:
            assert teacher.generate([prompt], 6)[0][0] == "so \U0001f600 and \ufffd"
        finally:
            qwen_chat.asked = None


def test_what_was_answered_is_not_asked_again(tmp_path: Path, qwen_model, qwen_chat, questions) -> None:
    path = tmp_path / "asked.jsonl"
    with serving("vllm", qwen_model, qwen_chat) as server:
        first = teacher_at(server, qwen_chat, journal=Journal(path)).outputs(questions[:3])
        asked = len(server.asked)
        with path.open("ab") as file:
            file.write(b'\n["half')  # as a process that is killed leaves it
        again = teacher_at(server, qwen_chat, journal=Journal(path)).outputs(questions)
        assert len(server.asked) - asked == 1 + 2  # the last question; what it is and can
    for one, other in zip(first, again, strict=False):
        assert all(np.array_equal(one[name], other[name]) for name in one)


class Replies:
    """A client that answers what was recorded."""

    def __init__(self, reply: dict[str, Any]):
        self.reply, self.base, self.model, self.told = reply, "http://server", "big", [0, 0]

    def ask(self, path: str, body: Any = None, attempts: int | None = None) -> Any:
        return json.loads(json.dumps(self.reply))

    def check_model(self, reply: Any) -> None: ...

    def count(self, *tokens: Any) -> None:
        self.told = list(tokens)


def test_a_reply_of_vllm_is_read() -> None:
    row = {"7": {"logprob": -3.5, "rank": 9, "decoded_token": " b"}}
    rows = [None, {"5": {"logprob": -0.25, "rank": 1, "decoded_token": " a"}, "9": {"logprob": -2.0, "rank": 2}}]
    rows.append({"2": {"logprob": -0.5, "rank": 1, "decoded_token": "�"}, "4": {"logprob": -1.5, "rank": 2}} | row)
    choice = {"index": 0, "text": "x", "logprobs": None, "finish_reason": "length", "prompt_logprobs": rows}
    usage = {"prompt_tokens": 3, "total_tokens": 4, "completion_tokens": 1}
    client = Replies({"id": "cmpl-1", "object": "text_completion", "model": "big", "choices": [choice], "usage": usage})
    told = VLLM(client, {}).score([1, 5, 7], 1, 2)  # pyright: ignore[reportArgumentType]
    assert told.own == [-0.25, -3.5]
    assert told.ids == [[5, 9], [2, 4]] and told.logprobs == [[-0.25, -2.0], [-0.5, -1.5]]
    assert told.pieces == {5: " a", 7: " b"} and client.told == [3, 1]


def test_a_reply_of_sglang_is_read() -> None:
    about = {
        "id": "a", "prompt_tokens": 3, "completion_tokens": 1, "cached_tokens": 0,
        "input_token_logprobs": [[None, 1, "<s>"], [-0.25, 5, " a"], [-3.5, 7, " b"]],
        "input_top_logprobs": [None, [[-0.25, 5, " a"], [-2.0, 9, " c"]], [[-0.5, 2, " d"], [-1.5, 4, " e"]]],
        "output_token_logprobs": [[-0.1, 3, "."]],
    }  # fmt: skip
    client = Replies({"text": ".", "output_ids": [3], "meta_info": about})
    told = SGLang(client, {}).score([1, 5, 7], 1, 2)  # pyright: ignore[reportArgumentType]
    assert told.own == [-0.25, -3.5]
    assert told.ids == [[5, 9], [2, 4]] and told.logprobs == [[-0.25, -2.0], [-0.5, -1.5]]
    assert told.pieces == {5: " a", 9: " c", 2: " d", 4: " e"}
    said = SGLang(client, {}).answer([1, 5], 1, [2])  # pyright: ignore[reportArgumentType]
    assert (said.ids, said.logprobs) == ([3], [-0.1])


def exact(logits: np.ndarray, t: float) -> np.ndarray:
    return np.log(np.exp(logits / t).sum(-1))


@pytest.mark.parametrize("k", [4, 64, 500])
def test_the_normaliser_is_exact_where_the_tail_is_a_power_of_the_rank_and_at_one_always(k) -> None:
    ranks = np.arange(1, 5001)
    logits = np.stack([-s * np.log(ranks) for s in (0.0, 0.7, 1.0, 1.6, 3.0)])
    logprobs = logits - exact(logits, 1.0)[:, None]
    temperatures = (1.0, 0.5, 2.0, 8.0)
    logsumexp, log_tail = normalisers(logprobs[:, :k], 5000, temperatures)
    assert logsumexp[:, 0].tolist() == [0.0] * 5
    for column, t in enumerate(temperatures):
        whole = exact(logprobs, t)
        tail = np.log(np.exp(logprobs[:, k:] / t).sum(-1)) - whole
        np.testing.assert_allclose(logsumexp[:, column], whole, atol=0.1 if k == 4 else 0.01)
        np.testing.assert_allclose(log_tail[:, column], tail, atol=0.1 if k == 4 else 0.02)


def test_there_is_no_tail_where_every_token_is_told_or_the_rest_is_nothing() -> None:
    logprobs = np.log(np.array([[0.5, 0.25, 0.25]]))
    for vocabulary in (3, 100):
        logsumexp, log_tail = normalisers(logprobs, vocabulary, (1.0, 2.0))
        assert logsumexp[0, 1] == pytest.approx(exact(logprobs, 2.0)[0])
        assert (log_tail <= -99).all()

"""A server that misbehaves: each fault is one clear line, what can pass is waited for, and no key is ever seen."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from kdsuite.config import ServedTeacherSettings
from kdsuite.errors import KdsuiteError, ModelError, RunError
from kdsuite.tasks.encoding import lay_out
from kdsuite.teacher import client
from kdsuite.teacher.client import Client, ServerError
from kdsuite.teacher.dialects import connect, find
from kdsuite.teacher.http import HttpTeacher
from kdsuite.teacher.local import OutputSettings
from teacher_server import StandIn, serving

KEY = "sk-plantedPlantedPlanted"
pytestmark = pytest.mark.usefixtures("impatient")


def settings(server: StandIn, **others: Any) -> ServedTeacherSettings:
    return ServedTeacherSettings(**({"url": server.url, "model": "big", "tokenizer": "here"} | others))


@pytest.fixture
def asked(qwen_chat):
    [prompt] = qwen_chat.prompt_ids([[{"role": "user", "content": "Is it?"}]])
    return [lay_out(f"e{n}", prompt, {"": qwen_chat.answer(f"Yes {n}.")}, "") for n in range(6)]


def teacher(server: StandIn, chat: Any) -> HttpTeacher:
    one, found = find(settings(server))
    return HttpTeacher(lambda: one, found, 3, chat, OutputSettings(8))


def times(count: int, answer: Any) -> Any:
    """A fault that happens so often."""
    left = [count]

    def fault(handler: Any, body: Any) -> bool:
        if left[0] == 0:
            return False
        left[0] -= 1
        answer(handler)
        return True

    return fault


def hang_up(handler: Any) -> None:
    handler.close_connection = True


def altered(change: Any) -> Any:
    """A fault: the right reply, changed."""

    def fault(handler: Any, body: Any) -> bool:
        reply, status = handler.vllm(body)
        handler.send(change(reply), status)
        return True

    return fault


@pytest.mark.parametrize(
    "answer",
    [
        lambda handler: handler.send({"error": "slow down"}, 429, {"Retry-After": "0.01"}),
        lambda handler: handler.send({"error": "busy"}, 503),
        lambda handler: handler.send(b"", 408),
        hang_up,
        lambda handler: handler.send(b'{"choices": [', 200, {"Content-Length": "5000", "Connection": "close"}),
    ],
    ids=["429", "503", "408", "broken connection", "cut off"],
)
def test_what_can_pass_is_asked_again(server, qwen_chat, asked, answer) -> None:
    one = teacher(server, qwen_chat)
    server.faults.append(times(5, lambda handler: (answer(handler), setattr(handler, "close_connection", True))))
    assert len(one.score(asked)) == 6


@pytest.mark.parametrize(("status", "text"), [(400, "max allowed"), (401, "key_env"), (404, "no such"), (422, "bad")])
def test_what_cannot_pass_is_asked_once_and_told_as_the_server_told_it(server, qwen_chat, asked, status, text) -> None:
    one = teacher(server, qwen_chat)
    refused = []
    server.faults.append(
        lambda handler, body: refused.append(1) or handler.send({"error": {"message": text}}, status) or True
    )
    with pytest.raises(ServerError, match=f"status {status}: {text}.*") as caught:
        one.score(asked[:1])
    assert len(refused) == 1 and "\n" not in str(caught.value)
    assert "--max-logprobs 8" in str(caught.value) if status == 400 else "max-logprobs" not in str(caught.value)
    assert "key_env" in str(caught.value) if status == 401 else True


def test_a_storm_of_429_ends_in_one_line(server, qwen_chat, asked) -> None:
    one = teacher(server, qwen_chat)
    server.faults.append(lambda handler, body: handler.send({"detail": "too many"}, 429) or True)
    with pytest.raises(ServerError, match=r"status 429: too many \(asked 7 times\); see to the server, and the same"):
        one.score(asked)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda reply: json.dumps(reply).encode()[:-20], "no JSON, or is cut off"),
        (lambda reply: b"[1", "no JSON, or is cut off"),
        (lambda reply: b"3", "answers with int, not with an object"),
        (lambda reply: b"[]", "answers as no vllm server does"),
        (lambda reply: {"error": {"message": "CUDA error"}}, "CUDA error"),
        (lambda reply: reply | {"model": "small"}, "answered as 'small', not as 'big'"),
        (lambda reply: {"model": "big", "choices": []}, r"answers as no vllm server does \(choices.0\)"),
    ],
)
def test_a_reply_that_is_none_is_told(server, qwen_chat, asked, change, problem) -> None:
    one = teacher(server, qwen_chat)
    server.faults.append(altered(change))
    with pytest.raises(ServerError, match=problem):
        one.score(asked[:1])


def with_rows(change: Any) -> Any:
    def changed(reply: dict[str, Any]) -> dict[str, Any]:
        choice = reply["choices"][0]
        return reply | {"choices": [choice | {"prompt_logprobs": change(choice["prompt_logprobs"])}]}

    return changed


def first_entry(row: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {id: entry | others for id, entry in row.items()}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[:-1], r"told the probabilities at \d of \d given tokens; vLLM, SGLang"),
        (lambda rows: None, "told the probabilities at 0 of"),
        (lambda rows: [*rows[:-1], first_entry(rows[-1], logprob=float("nan"))], "told nan as a log-probability"),
        (lambda rows: [*rows[:-1], first_entry(rows[-1], logprob=None)], "told None as a log-probability"),
        (lambda rows: [*rows[:-1], dict(list(rows[-1].items())[:1])], "told other tokens|told 1 of the 8 likeliest"),
        (lambda rows: [*rows[:-1], rows[-1] | {"99999": {"logprob": -0.1}}], "it told of token 99999; correct"),
        (lambda rows: [*rows[:-1], first_entry(rows[-1], decoded_token="zzz")], "not that of the served model: to it"),
    ],
    ids=["fewer positions", "no positions", "nan", "null", "fewer tokens", "unknown token", "other pieces"],
)  # fmt: skip
def test_what_was_not_asked_for_is_refused(server, qwen_chat, asked, change, problem) -> None:
    one = teacher(server, qwen_chat)
    server.faults.append(altered(with_rows(change)))
    with pytest.raises(ServerError, match=problem):
        one.score(asked[:1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "-0.1", 0.5])
def test_a_probability_of_an_answer_that_is_none_is_told(server, qwen_chat, asked, value) -> None:
    """Else what is kept of the answers could not be written."""
    one = teacher(server, qwen_chat)

    def changed(reply: dict[str, Any]) -> dict[str, Any]:
        choice = reply["choices"][0]
        told = choice["logprobs"] | {"token_logprobs": [value] * len(choice["logprobs"]["tokens"])}
        return reply | {"choices": [choice | {"logprobs": told}]}

    server.faults.append(altered(changed))
    with pytest.raises(ServerError, match=f"told {value!r} as a log-probability, which is none"):
        one.generate([asked[0].prompt], 2)


def test_a_reply_that_drips_is_not_waited_for(server, qwen_chat, asked, monkeypatch) -> None:
    one = teacher(server, qwen_chat)
    monkeypatch.setattr(client, "DEADLINE", 0.1)
    asked_for = []

    def drip(handler: Any, body: Any) -> bool:
        asked_for.append(body)
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        for _ in range(60):
            handler.wfile.write(b" ")
            time.sleep(0.01)
        handler.close_connection = True
        return True

    server.faults.append(drip)
    with pytest.raises(ServerError, match="not whole after 0.1 s"):
        one.score(asked[:1])
    assert len(asked_for) == 1  # another quarter of an hour would end no better


def test_redirects_are_not_followed(server, qwen_chat, asked, qwen_model) -> None:
    one = teacher(server, qwen_chat)
    with serving("vllm", qwen_model, qwen_chat) as other:
        where = {"Location": other.url + "/completions"}
        server.faults.append(lambda handler, body: handler.send(b"", 307, where) or True)
        with pytest.raises(ServerError, match="redirects to 127.0.0.1, which is not followed"):
            one.score(asked[:1])
        assert other.asked == []


def test_a_server_without_tls_is_told_at_once(server) -> None:
    with pytest.raises(ModelError, match="no secure connection to https://127.0.0.1:.*; check its certificate"):
        connect(settings(server, url=server.url.replace("http:", "https:")))


def test_a_server_that_is_not_there_is_told_at_once(server) -> None:
    server.server_close()
    with pytest.raises(ModelError, match="teacher big: the server http://127.0.0.1:.* is not reached"):
        connect(settings(server))


def test_a_model_that_is_not_served_is_told_with_those_that_are(server) -> None:
    with pytest.raises(ModelError, match="does not serve 'bigg'; did you mean 'big'"):
        connect(settings(server, model="bigg"))


def test_a_server_that_comes_back_with_another_model_is_noticed(server, qwen_chat, asked) -> None:
    one = teacher(server, qwen_chat)

    def restart(handler: Any) -> None:
        server.name = "small"
        handler.close_connection = True

    server.faults.append(times(1, restart))
    with pytest.raises(ServerError, match="does not serve 'big'.*small"):
        one.score(asked[:1])


def test_a_server_that_comes_back_and_lists_nothing_is_asked_on(server, qwen_chat, asked) -> None:
    one = teacher(server, qwen_chat)

    def restart(handler: Any) -> None:
        server.listed = None
        handler.close_connection = True

    server.faults.append(times(1, restart))
    assert len(one.score(asked[:1])) == 1


def test_a_parameter_that_is_ignored_is_no_offer(server) -> None:
    server.faults.append(altered(with_rows(lambda rows: None)))
    assert find(settings(server))[1].offers == ("answers", "rationales")


@pytest.mark.parametrize("status", [200, 401, 500])
def test_the_key_goes_to_the_server_and_nowhere_else(server, monkeypatch, status) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setattr(client, "ATTEMPTS", 1)
    asking = Client(settings(server, key_env="MY_KEY"))
    server.faults.append(lambda handler, body: handler.send({"error": f"the key {KEY} is odd"}, status) or True)
    with pytest.raises(ServerError) as caught:
        asking.ask("/v1/completions", {})
    assert server.keys == {f"Bearer {KEY}"}
    assert KEY not in str(caught.value) and "<MY_KEY>" in str(caught.value)
    assert KEY not in repr(vars(asking)) and KEY not in repr(caught.value)


def test_a_key_that_is_not_set_is_told_before_anything_is_asked(server) -> None:
    with pytest.raises(ModelError, match="the variable MY_KEY is not set"):
        Client(settings(server, key_env="MY_KEY"))
    assert server.keys == set()


def test_where_no_connection_is_made_nobody_tries_for_all_that_was_to_be_asked(server, qwen_chat, asked) -> None:
    tried: list[int] = []

    def connecting() -> Any:
        tried.append(1)
        time.sleep(0.01)
        raise ModelError("the server is not reached")

    with pytest.raises(ModelError, match="is not reached"):
        HttpTeacher(connecting, find(settings(server))[1], 2, qwen_chat, OutputSettings(8)).score(asked * 20)
    assert len(tried) < 20


@pytest.mark.parametrize("held", [f"“{KEY}”", f"{KEY}\n{KEY}-of-another"])
def test_a_variable_that_holds_more_than_a_key_is_told_without_it(server, monkeypatch, held) -> None:
    monkeypatch.setenv("MY_KEY", held)
    with pytest.raises(ModelError, match="MY_KEY holds what cannot be sent") as caught:
        connect(settings(server, key_env="MY_KEY"))
    assert KEY not in str(caught.value) and server.keys == set()


def test_after_an_error_nothing_new_is_asked(server, qwen_chat, asked) -> None:
    one = teacher(server, qwen_chat)
    before = len(server.asked)
    server.faults.append(times(1, lambda handler: handler.send({"error": "no"}, 400)))
    with pytest.raises(RunError):
        one.score(asked * 20)
    assert len(server.asked) - before < 100
    assert len(one.score(asked)) == 6  # and it can be asked again
    assert issubclass(ServerError, KdsuiteError)

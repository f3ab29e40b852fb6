"""How servers are asked: what each kind of server calls the same things. No torch here.

A server can *answer*: it writes a text behind a prompt. Some can also *score*: they tell the log-probabilities at the
tokens of a text that is given. What one can is found out by asking for a few tokens (`Server.found`), never assumed:
a route that does not know a parameter ignores it and answers all the same.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from kdsuite.config import ServedTeacherSettings
from kdsuite.errors import ModelError
from kdsuite.teacher.base import SCORED
from kdsuite.teacher.client import Client, ServerError

EVERY = 1 << 20  # tokens: more than any vocabulary has
LEAST = -100.0  # nats: servers write −∞ as some very low number
SCORING = "vLLM, SGLang and the llama.cpp server can"
STOPS = ["\nHuman:", "\nContext:", "\nQuestion:", "\n\n"]  # as `models.generation.STOP`


@dataclass(frozen=True)
class Found:
    """What a server was found to be: kept with the cache, and part of the key of what it says."""

    api: str
    version: str
    offers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.api} {self.version}".strip()


@dataclass(frozen=True)
class Answer:
    """What was written behind a prompt: tokens, where the server tells them, else the text; with log-probabilities of
    the tokens, None for one that was not told; and whether it was cut where no more tokens were allowed."""

    ids: list[int] | None
    text: str
    logprobs: list[float | None]
    cut: bool


@dataclass(frozen=True)
class Scores:
    """Log-probabilities at p tokens that were given: of these, and of the k likeliest there, the first the likeliest.

    `pieces` are texts of tokens as the server has them, as far as they are whole characters.
    """

    own: list[float]  # [p]
    ids: list[list[int]]  # [p][k]
    logprobs: list[list[float]]  # [p][k]
    pieces: dict[int, str] = field(default_factory=dict)


class Server:
    """An OpenAI-compatible chat endpoint: it answers messages by its own template, and scores nothing that is given."""

    api: ClassVar[str] = "openai"
    reads_ids: ClassVar[bool] = False  # prompts are tokens as they are, not messages
    about: ClassVar[Sequence[tuple[str, str]]] = ()  # paths, and the key there, that may tell the version

    def __init__(self, client: Client, arguments: Mapping[str, Any]):
        self.client, self.arguments = client, dict(arguments)

    def answer(self, prompt: Any, new_tokens: int, ends: Sequence[int]) -> Answer:
        """What it writes greedily behind a prompt (tokens, or messages), up to these tokens or a stop string."""
        body: dict[str, Any] = {"messages": prompt, "max_tokens": new_tokens, "stop": STOPS, "logprobs": True}
        if self.arguments:
            body["chat_template_kwargs"] = self.arguments
        reply = self._ask("/v1/chat/completions", body)
        self._count(reply.get("usage"))
        choice = self._part(reply, "choices", 0)
        told = self._part(choice, "logprobs", "content") if choice.get("logprobs") else []
        text = self._part(choice, "message").get("content") or ""
        return Answer(None, text, [one.get("logprob") for one in told or []], choice.get("finish_reason") == "length")

    def score(self, ids: Sequence[int], start: int, k: int) -> Scores:
        """Log-probabilities at the tokens from `start` on, each read behind those before it."""
        raise ServerError(f"{self.client.base} scores no given tokens; {SCORING}")

    def found(self) -> Found:
        """What it is and can, by asking for a few tokens. ServerError if it does not even answer."""
        self.answer([1, 2] if self.reads_ids else [{"role": "user", "content": "Hello"}], 1, [])
        offers = {"answers", "rationales"}
        if self.reads_ids:
            with suppress(ServerError):
                offers |= SCORED if self.score([1, 2, 3], 1, 1).own else set()
        return Found(self.api, self.version(), tuple(sorted(offers)))

    def version(self) -> str:
        for path, key in self.about:
            try:
                return str(self.client.ask(path, attempts=1)[key])
            except (ServerError, KeyError, TypeError):
                continue
        return ""

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = self.client.ask(path, {"model": self.client.model, "temperature": 0, **body})
        if not isinstance(reply, dict):
            raise self._odd(path)
        self.client.check_model(reply)
        return reply

    def _count(self, usage: Any) -> None:
        usage = usage if isinstance(usage, dict) else {}
        self.client.count(usage.get("prompt_tokens"), usage.get("completion_tokens"))

    def _part(self, reply: Any, *way: str | int) -> Any:
        """What lies in a reply along these keys. ServerError if it does not."""
        for key in way:
            try:
                reply = reply[key]
            except (KeyError, IndexError, TypeError):
                raise self._odd(".".join(map(str, way))) from None
        return reply

    def _odd(self, what: str) -> ServerError:
        return ServerError(f"{self.client.base} answers as no {self.api} server does ({what}); see models.teacher.api")

    def _scores(self, rows: Sequence[tuple[Any, Sequence[tuple[Any, Any, Any]]]], ids: Sequence[int], k: int) -> Scores:
        """From rows of (own log-probability, (log-probability, token, text) of the likeliest) at the tokens `ids`."""
        if len(rows) != len(ids):
            raise ServerError(
                f"{self.client.base} told the probabilities at {len(rows)} of {len(ids)} given tokens; {SCORING}"
            )
        own, tops, pieces = [], [], dict[int, str]()
        for said, row in rows:
            listed = sorted(((self.log(value), int(id)) for value, id, _ in row), key=lambda one: (-one[0], one[1]))
            if len(listed) < k:
                raise ServerError(f"{self.client.base} told {len(listed)} of the {k} likeliest tokens")
            own.append(self.log(said))
            tops.append(listed[:k])
            pieces |= {int(id): text for _, id, text in row if isinstance(text, str) and text and "�" not in text}
        ids_of, logprobs = ([[one[at] for one in top] for top in tops] for at in (1, 0))
        return Scores(own, ids_of, logprobs, pieces)

    def log(self, value: Any) -> float:
        """A log-probability that was told. ServerError for what is none."""
        if not isinstance(value, int | float) or math.isnan(value) or value > 1e-3:
            raise ServerError(f"{self.client.base} told {value!r} as a log-probability, which is none")
        return min(max(float(value), LEAST), 0.0)


class VLLM(Server):
    """vLLM: prompts are tokens, and `prompt_logprobs` tells the likeliest at each of them beside the given one."""

    api, reads_ids, about = "vllm", True, (("/version", "version"),)

    def answer(self, prompt: Any, new_tokens: int, ends: Sequence[int]) -> Answer:
        body = {"prompt": list(prompt), "max_tokens": new_tokens, "stop": STOPS, "stop_token_ids": list(ends)}
        reply = self._ask("/v1/completions", body | {"logprobs": 1, "return_tokens_as_token_ids": True})
        self._count(reply.get("usage"))
        choice = self._part(reply, "choices", 0)
        tokens, logprobs = (self._part(choice, "logprobs", key) for key in ("tokens", "token_logprobs"))
        try:
            ids = [int(token.removeprefix("token_id:")) for token in tokens]
        except (AttributeError, ValueError):
            raise self._odd("return_tokens_as_token_ids") from None
        return Answer(ids, choice.get("text") or "", list(logprobs), choice.get("finish_reason") == "length")

    def score(self, ids: Sequence[int], start: int, k: int) -> Scores:
        try:
            reply = self._ask("/v1/completions", {"prompt": list(ids), "max_tokens": 1, "prompt_logprobs": k})
        except ServerError as error:
            hint = f"; start it with --max-logprobs {k}, or set kd1.top_k lower" if "max allowed" in str(error) else ""
            raise ServerError(f"{error}{hint}") from None
        self._count(reply.get("usage"))
        told = self._part(reply, "choices", 0).get("prompt_logprobs") or []
        rows = []
        for id, row in zip(ids[start:], told[start:], strict=False):
            if str(id) not in (row or {}):
                raise ServerError(f"{self.client.base} told other tokens than were given: it reads them otherwise")
            entries = [(one.get("logprob"), token, one.get("decoded_token")) for token, one in row.items()]
            rows.append((row[str(id)].get("logprob"), entries))
        return self._scores(rows, ids[start:], k)


class SGLang(Server):
    """SGLang's own route, `/generate`: prompts are tokens; the first of those that are told has no probability."""

    api, reads_ids = "sglang", True
    about = (("/get_server_info", "version"), ("/server_info", "version"))

    def answer(self, prompt: Any, new_tokens: int, ends: Sequence[int]) -> Answer:
        reply = self._generate(prompt, {"max_new_tokens": new_tokens, "stop": STOPS, "stop_token_ids": list(ends)})
        told = self._part(reply, "meta_info", "output_token_logprobs")
        ended = reply["meta_info"].get("finish_reason") or {}
        ids, values = [int(one[1]) for one in told], [one[0] for one in told]
        return Answer(ids, reply.get("text") or "", values, ended.get("type") == "length")

    def score(self, ids: Sequence[int], start: int, k: int) -> Scores:
        about = {"logprob_start_len": start - 1, "top_logprobs_num": k, "return_text_in_logprobs": True}
        reply = self._generate(ids, {"max_new_tokens": 1}, about)
        own, tops = (self._part(reply, "meta_info", key) for key in ("input_token_logprobs", "input_top_logprobs"))
        rows = []
        for id, said, top in zip(ids[start:], own[1:], tops[1:], strict=False):
            if said[1] != id:
                raise ServerError(f"{self.client.base} told other tokens than were given: it reads them otherwise")
            rows.append((said[0], [(one[0], one[1], one[2]) for one in top or []]))
        return self._scores(rows, ids[start:], k)

    def _generate(self, ids: Sequence[int], sampling: dict[str, Any], about: Mapping[str, Any] = {}) -> dict[str, Any]:
        body = {"input_ids": list(ids), "sampling_params": {"temperature": 0, **sampling}, "return_logprob": True}
        reply = self.client.ask("/generate", {**body, **about})
        if not isinstance(reply, dict):
            raise self._odd("/generate")
        self._count(reply.get("meta_info"))
        return reply


class LlamaCpp(Server):
    """llama.cpp's server, `/completion`: the probabilities of one new token, position by position over a kept cache.

    The sampled token is pinned to the given one by its bias, which the probabilities that are told do not know of: so
    its own is told, however unlikely it is. Of a token that is no whole character nothing is told; then a plain one is
    pinned, and the given one is looked for among the likeliest, at last among all.
    """

    api, reads_ids, about = "llamacpp", True, (("/props", "build_info"),)

    def answer(self, prompt: Any, new_tokens: int, ends: Sequence[int]) -> Answer:
        body = {"prompt": list(prompt), "n_predict": new_tokens, "n_probs": 1, "return_tokens": True}
        reply = self._complete(body)  # without stop strings: of their tokens it tells nothing
        ids = [int(id) for id in self._part(reply, "tokens")]
        told: list[dict[str, Any]] = reply.get("completion_probabilities") or []
        values: list[float | None] = [None] * len(ids)
        at = 0
        for one in told:  # of parts of characters nothing is told
            at = next((place for place in range(at, len(ids)) if ids[place] == one.get("id")), len(ids))
            if at == len(ids):  # the end of turn
                ids, values = [*ids, int(one["id"])], [*values, None]
            values[at], at = one.get("logprob"), at + 1
        return Answer(ids, reply.get("content") or "", values, reply.get("stop_type") == "limit")

    def score(self, ids: Sequence[int], start: int, k: int) -> Scores:
        rows = [self._position(ids[:at], ids[at], k) for at in range(start, len(ids))]
        return self._scores(rows, ids[start:], k)

    def _position(self, before: Sequence[int], id: int, k: int) -> tuple[Any, list[tuple[Any, Any, Any]]]:
        told = self._probabilities(before, id, k)
        if told is not None:
            return told["logprob"], self._listed(told)
        plain = self._plain
        told = self._probabilities(before, plain, k)
        if told is None:
            raise self._odd("completion_probabilities")
        listed = self._listed(told)
        own = next((value for value, other, _ in listed if other == id), None)
        if own is None:
            every = self._probabilities(before, plain, EVERY) or {}
            own = next((value for value, other, _ in self._listed(every) if other == id), None)
        return own, listed

    @cached_property
    def _plain(self) -> int:
        """A token that is a whole character, as the server's own tokenizer has it."""
        return int(self._part(self.client.ask("/tokenize", {"content": "a", "add_special": False}), "tokens", -1))

    def _probabilities(self, before: Sequence[int], pinned: int, k: int) -> dict[str, Any] | None:
        reply = self._complete({"prompt": list(before), "n_predict": 1, "n_probs": k, "logit_bias": [[pinned, 1e4]]})
        told = (reply.get("completion_probabilities") or [{}])[0]
        return told if told.get("id") == pinned else None

    def _listed(self, told: Mapping[str, Any]) -> list[tuple[Any, Any, Any]]:
        listed = []
        for one in told.get("top_logprobs") or []:
            raw = one.get("bytes")
            try:
                text = bytes(raw).decode() if raw else one.get("token")
            except (ValueError, TypeError):
                text = None
            listed.append((one.get("logprob"), one.get("id"), text))
        return listed

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        reply = self._ask("/completion", {**body, "cache_prompt": True, "samplers": ["top_k"], "top_k": 1})
        timings: dict[str, Any] = reply.get("timings") or {}
        self.client.count(timings.get("prompt_n"), timings.get("predicted_n"))  # without what it had in its cache
        return reply


class Ollama(Server):
    """Ollama's own chat route: answers, from 0.12.11 on with the log-probabilities of what it wrote."""

    api, about = "ollama", (("/api/version", "version"),)

    def answer(self, prompt: Any, new_tokens: int, ends: Sequence[int]) -> Answer:
        options = {"temperature": 0, "num_predict": new_tokens, "stop": STOPS}
        reply = self._ask("/api/chat", {"messages": prompt, "stream": False, "logprobs": True, "options": options})
        self.client.count(reply.get("prompt_eval_count"), reply.get("eval_count"))
        text = self._part(reply, "message").get("content") or ""
        values = [one.get("logprob") for one in reply.get("logprobs") or []]
        return Answer(None, text, values, reply.get("done_reason") == "length")


DIALECTS: dict[str, type[Server]] = {one.api: one for one in (Server, VLLM, SGLang, LlamaCpp, Ollama)}
OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llamacpp", "library": "ollama"}  # in the list of models


def connect(settings: ServedTeacherSettings, api: str | None = None) -> Server:
    """The server of a teacher, in the dialect that the settings, or the server, say it speaks.

    ModelError where it cannot be reached, is refused, or does not serve the model.
    """
    client = Client(settings)
    try:
        listed = client.models()
        client.told = bool(listed)
    except ServerError as error:
        if settings.api == "auto" or "/v1/models answers with status 404" not in str(error):  # not all have the list
            raise ModelError(f"teacher {settings.model}: {error}") from None
        listed = []
    owners = {str(one.get("owned_by")) for one in listed if one.get("id") == settings.model}
    said = next((OWNERS[owner] for owner in owners if owner in OWNERS), "openai")
    chosen = api or (said if settings.api == "auto" else settings.api)
    return DIALECTS[chosen](client, settings.chat_template_kwargs)


def find(settings: ServedTeacherSettings) -> tuple[Server, Found]:
    """The server, and what it was found to be. ModelError where it is not reached or does not answer."""
    server = connect(settings)
    try:
        return server, server.found()
    except ServerError as error:
        raise ModelError(f"teacher {settings.model}: {error}") from None

"""How servers are reached: JSON over HTTP, bounded in time, tried again where that may help. No torch here."""

import json
import os
import random
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2

from kdsuite import errors
from kdsuite.config import ServedTeacherSettings, nearest
from kdsuite.errors import ModelError, RunError, first_line

CONNECT, SILENCE, DEADLINE = 5.0, 300.0, 900.0  # seconds to a connection, between two bytes, for a whole reply
ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 7, 0.5, 20.0  # seconds; each wait is about twice the one before
AGAIN = {408, 429, *range(500, 600)}  # a status that may be another one next time
LARGEST = 1 << 30  # bytes of a reply
MODELS = "/v1/models"  # where a server tells what it serves


class ServerError(RunError):
    """A server that cannot be reached, refuses, or answers what cannot be used."""


class Client:
    """JSON over HTTP to one server, by any number of threads: bounded in time, tried again where that may help.

    The key is read from the environment variable, goes into a header and nowhere else. Redirects are not followed: the
    key and the prompts go to the given address only. ServerError, one line, for all that goes wrong.
    """

    def __init__(self, settings: ServedTeacherSettings):
        self.base, self.model, self.requests, self.spent = settings.url, settings.model, 0, [0, 0]
        self.stopped, self.told = threading.Event(), False  # told: it said which models it has
        self._lock, self._random = threading.Lock(), random.Random()
        headers = {"accept": "application/json"}
        if name := settings.key_env:
            if not (key := os.environ.get(name, "").strip()):
                raise ModelError(f"models.teacher.key_env: the variable {name} is not set; put the key there")
            if not (key.isascii() and key.isprintable()):
                raise ModelError(f"models.teacher.key_env: {name} holds what cannot be sent; put the key alone there")
            if name not in errors.VARIABLES:
                errors.VARIABLES.append(name)
            headers["authorization"] = f"Bearer {key}"
        limits = httpx2.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency)
        timeout = httpx2.Timeout(SILENCE, connect=CONNECT)
        self._http = httpx2.Client(headers=headers, timeout=timeout, limits=limits, follow_redirects=False)

    def ask(self, path: str, body: Mapping[str, Any] | None = None, attempts: int | None = None) -> Any:
        """The JSON that a path answers, to a body if there is one. ServerError where it does not, at last."""
        problem, broken, most = "", False, attempts or ATTEMPTS
        for attempt in range(most):
            try:
                if broken and self.told:
                    self._refuse_another_model()
                status, headers, content = self._exchange(path, body)
            except httpx2.TransportError as error:
                problem, asked_wait, broken = self._what_broke(error), 0.0, True
            else:
                if status == 200:
                    return self._read(path, content)
                problem = self._refusal(path, status, headers, content)
                if status not in AGAIN:
                    raise ServerError(problem)
                asked_wait, broken = _seconds(headers.get("retry-after")), False
            if attempt + 1 < most:
                usual = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * self._random.uniform(0.5, 1.5)
                if self.stopped.wait(max(usual, min(asked_wait, 3 * LONGEST_WAIT))):
                    break
        tries = f" (asked {most} times)" if most > 1 else ""
        raise ServerError(f"{problem}{tries}; see to the server, and the same command goes on where it stopped")

    def _exchange(self, path: str, body: Mapping[str, Any] | None) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and content of a reply that is there in time. httpx2.TransportError where none is."""
        start, parts, size = time.monotonic(), [], 0
        with self._lock:
            self.requests += 1
        with self._http.stream("GET" if body is None else "POST", self.base + path, json=body) as reply:
            for part in reply.iter_bytes():
                size += len(part)
                if self.stopped.is_set():
                    raise httpx2.ReadTimeout("nobody waits for its reply any more")
                if time.monotonic() - start > DEADLINE:
                    raise ServerError(
                        f"{self.base}{path}: its reply was not whole after {DEADLINE:g} s; see to the server, and the "
                        "same command goes on where it stopped"
                    )
                if size > LARGEST:
                    raise ServerError(f"{self.base}{path} answers with more than {LARGEST >> 20} MiB")
                parts.append(part)
            return reply.status_code, reply.headers, b"".join(parts)

    def _what_broke(self, error: httpx2.TransportError) -> str:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLError):
                raise ServerError(
                    f"no secure connection to {self.base} ({cause.reason or first_line(cause)}); check its certificate "
                    "(SSL_CERT_FILE names those that are trusted), or whether it speaks http"
                ) from None
            cause = cause.__cause__ or cause.__context__
        what = "is not reached" if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout) else "broke off"
        return f"the server {self.base} {what} ({first_line(error)})"

    def _refusal(self, path: str, status: int, headers: Mapping[str, str], content: bytes) -> str:
        if 300 <= status < 400:
            host = urlsplit(headers.get("location", "")).hostname or "another path"
            return f"{self.base}{path} redirects to {host}, which is not followed; give that as models.teacher.url"

        said = " ".join(_message(content).split())[:300]
        hint = "; the key is missing, wrong or not enough (models.teacher.key_env)" if status in (401, 403) else ""
        return f"{self.base}{path} answers with status {status}{f': {said}' if said else ''}{hint}"

    def _read(self, path: str, content: bytes) -> Any:
        try:
            reply = json.loads(content)
        except ValueError:
            raise ServerError(f"{self.base}{path} answers with what is no JSON, or is cut off") from None
        if not isinstance(reply, dict | list):
            raise ServerError(f"{self.base}{path} answers with {type(reply).__name__}, not with an object")
        if isinstance(reply, dict) and (error := reply.get("error")):
            raise ServerError(f"{self.base}{path}: {' '.join(_message(json.dumps({'error': error}).encode()).split())}")
        return reply

    def models(self) -> list[dict[str, Any]]:
        """What the server says it serves. ServerError where it does not say, or where the model is not among them."""
        return self._with_ours(self.ask(MODELS, attempts=1))

    def _refuse_another_model(self) -> None:
        """It may have been started again: with the same model?"""
        status, _, content = self._exchange(MODELS, None)
        if status == 200:
            self._with_ours(self._read(MODELS, content))

    def _with_ours(self, reply: Any) -> list[dict[str, Any]]:
        listed = reply.get("data") if isinstance(reply, dict) else None  # null in some that have none
        served = [one for one in listed or [] if isinstance(one, dict)]
        names = [str(one.get("id")) for one in served]
        if names and self.model not in names:
            raise ServerError(
                f"{self.base} does not serve {self.model!r}{nearest(self.model, names)}; correct "
                "models.teacher.model, or start it with that model"
            )
        return served

    def check_model(self, reply: Mapping[str, Any]) -> None:
        """ServerError where a reply says it is another model's."""
        if (said := reply.get("model")) not in (None, "", self.model):
            raise ServerError(f"{self.base} answered as {said!r}, not as {self.model!r}: it serves another model now")

    def count(self, read: Any, written: Any) -> None:
        with self._lock:
            for at, tokens in enumerate((read, written)):
                self.spent[at] += tokens if isinstance(tokens, int) else 0


def _message(content: bytes) -> str:
    """What an error says, in the several forms that servers have."""
    try:
        said = json.loads(content)
    except ValueError:
        return content[:300].decode(errors="replace")
    for key in ("error", "message", "detail"):
        if isinstance(said, dict) and key in said:
            said = said[key]
    return said if isinstance(said, str) else json.dumps(said)


def _seconds(text: str | None) -> float:
    try:
        return max(float(text or 0.0), 0.0)
    except ValueError:  # a date
        return 0.0

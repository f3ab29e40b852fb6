"""A small real HTTP server that speaks as vLLM, SGLang, llama.cpp, Ollama or a chat endpoint does, for a model that is
loaded here; and that misbehaves as it is told."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from kdsuite.tasks.encoding import ChatTokenizer

Fault = Callable[["Handler", dict[str, Any]], bool]  # answers a POST itself where it returns true

OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llamacpp", "ollama": "library", "openai": "somebody"}


class StandIn(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 64

    def __init__(self, api: str, model: Any, chat: ChatTokenizer, name: str = "big", port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.api, self.model, self.chat, self.name, self.version = api, model, chat, name, "1.0"
        self.faults: list[Fault] = []
        self.cap = 1000  # of prompt_logprobs
        self.listed: bool | None = True  # None: as servers do that have no model, or do not tell
        self.asked: list[tuple[str, dict[str, Any]]] = []  # POSTs that were answered well
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that waited no longer is what some tests are about."""
        if not isinstance(sys.exc_info()[1], (BrokenPipeError, ConnectionResetError)):
            super().handle_error(request, client_address)

    @torch.inference_mode()
    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """[len(ids), V] at T = 1, of what follows each token."""
        size = len(self.chat.token_bytes)
        with self.lock:
            return self.model(input_ids=torch.tensor([ids])).logits[0, :, :size].float().log_softmax(-1)

    def ended(self, said: list[tuple[int, float]]) -> str:
        """Why no more was written: an end, or the most tokens."""
        return "stop" if said and said[-1][0] in self.chat.final_ids else "length"

    def greedy(self, ids: list[int], count: int) -> list[tuple[int, float]]:
        said: list[tuple[int, float]] = []
        while len(said) < count and not (said and said[-1][0] in self.chat.final_ids):
            value, id = self.logprobs([*ids, *(id for id, _ in said)])[-1].max(-1)
            said.append((int(id), float(value)))
        return said

    def piece(self, id: int) -> str:
        return self.chat.tokenizer.decode([id])


class Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        one = self.server
        self.server.keys.add(self.headers.get("authorization"))
        replies = {
            "/v1/models": {"object": "list", "data": one.listed and [{"id": one.name, "owned_by": OWNERS[one.api]}]},
            "/version": {"version": one.version},
            "/get_server_info": {"version": one.version},
            "/props": {"build_info": one.version},
            "/api/version": {"version": one.version},
        }
        self.send(replies.get(self.path, {"error": "unknown"}), 200 if self.path in replies else 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.keys.add(self.headers.get("authorization"))
        for fault in list(self.server.faults):
            if fault(self, body):
                return
        routes = {
            "vllm": {"/v1/completions": self.vllm},
            "sglang": {"/generate": self.sglang},
            "llamacpp": {"/completion": self.llamacpp, "/tokenize": self.tokenize},
            "ollama": {"/api/chat": self.ollama},
            "openai": {"/v1/chat/completions": self.chat},
        }[self.server.api]
        if self.path not in routes:
            return self.send({"error": {"message": f"no route {self.path}"}}, 404)
        reply, status = routes[self.path](body)
        with self.server.lock:
            self.server.asked.append((self.path, body))
        self.send(reply, status)

    def vllm(self, body: dict[str, Any]) -> tuple[Any, int]:
        one, ids = self.server, body["prompt"]
        if body.get("prompt_logprobs", 0) > one.cap:
            wanted = body["prompt_logprobs"]
            text = f"Requested prompt logprobs of {wanted}, which is greater than max allowed: {one.cap}"
            return {"error": {"message": text, "type": "BadRequestError", "code": 400}}, 400
        said = one.greedy(ids, body["max_tokens"])
        choice: dict[str, Any] = {"index": 0, "text": one.chat.decode([id for id, _ in said]), "prompt_logprobs": None}
        choice["finish_reason"] = one.ended(said)
        choice["logprobs"] = {
            "tokens": [f"token_id:{id}" for id, _ in said],
            "token_logprobs": [value for _, value in said],
        }
        if k := body.get("prompt_logprobs"):
            rows: list[Any] = [None]
            for row, id in zip(one.logprobs(ids)[:-1], ids[1:], strict=True):
                top, order = row.topk(k)
                told = dict(zip(order.tolist(), top.tolist(), strict=True)) | {id: float(row[id])}
                rows.append(
                    {
                        str(token): {"logprob": value, "rank": rank, "decoded_token": one.piece(token)}
                        for rank, (token, value) in enumerate(told.items(), 1)
                    }
                )
            choice["prompt_logprobs"] = rows
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(said)}
        return {"id": "cmpl-1", "model": one.name, "choices": [choice], "usage": usage}, 200

    def sglang(self, body: dict[str, Any]) -> tuple[Any, int]:
        one, ids, start = self.server, body["input_ids"], body.get("logprob_start_len", -1)
        said = one.greedy(ids, body["sampling_params"]["max_new_tokens"])
        about: dict[str, Any] = {"prompt_tokens": len(ids), "completion_tokens": len(said)}
        about["finish_reason"] = {"type": one.ended(said)}
        about["output_token_logprobs"] = [[value, id, None] for id, value in said]
        if start >= 0:
            rows, k = one.logprobs(ids), body["top_logprobs_num"]
            about["input_token_logprobs"] = [[None, ids[start], None]]
            about["input_top_logprobs"] = [None]
            for at in range(start + 1, len(ids)):
                top, order = rows[at - 1].topk(k)
                about["input_token_logprobs"].append([float(rows[at - 1, ids[at]]), ids[at], one.piece(ids[at])])
                pairs = zip(top.tolist(), order.tolist(), strict=True)
                about["input_top_logprobs"].append([[value, id, one.piece(id)] for value, id in pairs])
        return {"text": one.chat.decode([id for id, _ in said]), "meta_info": about}, 200

    def llamacpp(self, body: dict[str, Any]) -> tuple[Any, int]:
        one, ids = self.server, body["prompt"]
        if pins := body.get("logit_bias"):
            said = [(pins[0][0], float(one.logprobs(ids)[-1, pins[0][0]]))]
        else:
            said = one.greedy(ids, body["n_predict"])
        told = []
        for at, (id, value) in enumerate(said):
            if one.chat.token_bytes[id] is not None and "�" in one.chat.token_bytes[id].decode(errors="replace"):
                continue  # no whole character
            row = one.logprobs([*ids, *(id for id, _ in said[:at])])[-1]
            top, order = row.topk(min(body["n_probs"], len(row)))
            listed = [
                {"id": t, "token": one.piece(t), "bytes": list(one.chat.token_bytes[t] or b""), "logprob": v}
                for v, t in zip(top.tolist(), order.tolist(), strict=True)
            ]
            told.append({"id": id, "token": one.piece(id), "bytes": [], "logprob": value, "top_logprobs": listed})
        kept = [id for id, _ in said if id not in one.chat.final_ids]
        reply = {"content": one.chat.decode(kept), "tokens": kept, "completion_probabilities": told, "model": one.name}
        reply["stop_type"] = {"stop": "eos", "length": "limit"}[one.ended(said)]
        return reply | {"timings": {"prompt_n": 1, "predicted_n": len(said)}}, 200

    def tokenize(self, body: dict[str, Any]) -> tuple[Any, int]:
        return {"tokens": self.server.chat.tokenizer(body["content"], add_special_tokens=False)["input_ids"]}, 200

    def _written(self, body: dict[str, Any], count: int) -> tuple[str, list[float], int, str]:
        one = self.server
        [ids] = one.chat.prompt_ids([body["messages"]])
        said = one.greedy(ids, count)
        return one.chat.decode([id for id, _ in said]), [value for _, value in said], len(ids), one.ended(said)

    def chat(self, body: dict[str, Any]) -> tuple[Any, int]:
        text, values, read, ended = self._written(body, body["max_tokens"])
        content = [{"token": "?", "logprob": value, "top_logprobs": []} for value in values]
        choice = {"message": {"role": "assistant", "content": text}, "logprobs": {"content": content}}
        choice["finish_reason"] = ended
        usage = {"prompt_tokens": read, "completion_tokens": len(values)}
        return {"model": self.server.name, "choices": [choice], "usage": usage}, 200

    def ollama(self, body: dict[str, Any]) -> tuple[Any, int]:
        text, values, read, ended = self._written(body, body["options"]["num_predict"])
        reply = {
            "done_reason": ended,
            "model": self.server.name,
            "message": {"role": "assistant", "content": text},
            "done": True,
        }
        logprobs = [{"token": "?", "logprob": value} for value in values]
        return reply | {"logprobs": logprobs, "prompt_eval_count": read, "eval_count": len(values)}, 200


@contextmanager
def serving(api: str, model: Any, chat: ChatTokenizer, name: str = "big", port: int = 0) -> Iterator[StandIn]:
    server = StandIn(api, model, chat, name, port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()

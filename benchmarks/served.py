"""How many answers per second does a teacher behind a URL give, against the server's own parallel throughput?

A real llama.cpp server (`xllamacpp`) with a random Llama as a GGUF file of ours and four slots, on one thread. 200
prompts of 53 tokens, 16 new ones each, asked by `HttpTeacher.generate` and by as many threads that only send and read
the same requests (`http.client`). Both sides must get the same tokens before anything is timed.

    python benchmarks/served.py [--quick] [--repeats 5]
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from measure import Finding, Work, arguments, asked, ratio, show, side_by_side, spread
from shapes import SMALL, TINY, Shape, model, some_chat

from kdsuite.config import ServedTeacherSettings
from kdsuite.extras.gguf_file import metadata, write
from kdsuite.tasks.encoding import ChatTokenizer
from kdsuite.teacher.dialects import find
from kdsuite.teacher.http import HttpTeacher

SLOTS, PROMPT, NEW = 4, 53, 16
SERVER = """
import sys, xllamacpp as llama
params = llama.CommonParams()
path, slots = sys.argv[1], int(sys.argv[2])
params.model.path, params.port, params.n_parallel, params.n_ctx = path, 0, slots, slots * 128
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.warmup, params.ui, params.fit_params, params.verbosity = False, False, False, 1
server = llama.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def serving(shape: Shape, chat: ChatTokenizer) -> Iterator[str]:
    """A server with a random model; its address."""
    served = model(shape).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write(metadata(served.config, chat, shape.name), served, path, half=False)
        command = [sys.executable, "-c", SERVER, str(path), str(SLOTS)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            yield process.stdout.readline().strip()
            process.kill()


def plainly(url: str, prompts: list[list[int]], ends: list[int]) -> list[list[int]]:
    """The tokens of all answers, by as many threads as there are slots."""

    def ask(prompt: list[int]) -> list[int]:
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        body = {"prompt": prompt, "n_predict": NEW, "n_probs": 1, "return_tokens": True, "temperature": 0}
        connection.request("POST", "/completion", json.dumps(body | {"cache_prompt": True}))
        tokens = json.loads(connection.getresponse().read())["tokens"]
        connection.close()
        return next((tokens[:at] for at, token in enumerate(tokens) if token in ends), tokens)

    with ThreadPoolExecutor(SLOTS) as pool:
        return list(pool.map(ask, prompts))


def compare(shape: Shape, count: int, repeats: int) -> tuple[list[list[str]], Finding]:
    """A row per side, and their ratio."""
    chat = some_chat()
    vocabulary = len(chat.tokenizer)
    drawn = np.random.default_rng(0).integers(260, vocabulary, (count, PROMPT))
    with serving(replace(shape, vocabulary=vocabulary), chat) as url:
        name = json.loads(_get(url, "/v1/models"))["data"][0]["id"]
        settings = ServedTeacherSettings(url=url, model=name, tokenizer="here", api="llamacpp", concurrency=SLOTS)
        server, found = find(settings)
        teacher = HttpTeacher(lambda: server, found, SLOTS, chat)
        prompts, ends = drawn.tolist(), sorted(chat.final_ids)
        told = [text for text, _ in teacher.generate(prompts, NEW)]
        assert told == [chat.decode(chat.cut(ids)) for ids in plainly(url, prompts, ends)], "other answers"
        sides: dict[str, Work] = {
            "kdsuite": partial(teacher.generate, prompts, NEW),
            "requests alone": partial(plainly, url, prompts, ends),
        }
        times = side_by_side(sides, repeats, warm=True)
    ours, plain = times.values()
    finding = Finding.of_ratio(
        f"answers from a URL, {shape.name}", "requests alone", "throughput", plain.wall, ours.wall, at_least=0.8
    )
    rows = [
        [
            f"{shape.name}, {name}",
            spread([count / s for s in t.wall], 1),
            spread([1000 * s / count for s in t.cpu], 2),
            ratio(plain.wall, t.wall, 2),
        ]
        for name, t in times.items()
    ]
    return rows, finding


def _get(url: str, path: str) -> bytes:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.request("GET", path)
    return connection.getresponse().read()


def main() -> None:
    options = asked(arguments(__doc__, 5))
    shape, count = (TINY, 12) if options.quick else (SMALL, 200)
    rows, finding = compare(shape, count, options.repeats)
    header = ("answered by", "answers / s", "client's CPU ms per answer", "throughput")
    show(options, header, rows, [finding], "; the same answers")


if __name__ == "__main__":
    main()

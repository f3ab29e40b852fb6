"""Small real things that tests share: tokenizers of both kinds, tiny models of the real architectures."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime, tzinfo
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers.utils import chat_template_utils
from xdist.scheduler import LoadScopeScheduling

from kdsuite import errors
from kdsuite.config import Settings, TaskSettings, task_section
from kdsuite.extras.offline.corpora import pretraining_text
from kdsuite.extras.offline.models import byte_level_tokenizer, sentencepiece_tokenizer, tiny_llama, tiny_qwen2
from kdsuite.forecast import build
from kdsuite.models.loading import load_chat, load_config, load_model, save_trained
from kdsuite.models.source import ModelSource
from kdsuite.runtime.process import silence
from kdsuite.tasks.encoding import ChatTokenizer
from kdsuite.tasks.example import Example
from kdsuite.teacher import client
from teacher_server import StandIn, serving

silence()
torch.set_num_threads(1)

VARIABLES = ("TEACHER_PRIMARY", "TEACHER_FALLBACK", "STUDENT_S1", "STUDENT_S2", "DEVICE", "FAST_MODE", "HF_TOKEN")


FAMILIES = "models/test_families.py"
LONGEST = ["test_offline.py", "faults/test_faults.py", "extras/test_notebooks.py"]  # minutes each


class ByFile(LoadScopeScheduling):
    """A file's tests share a process, so that its fixtures are built once; of `test_families.py`, a family's."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        return file + re.sub(r"^\w+\[?|[-\]].*", "", test) if file.endswith(FAMILIES) else file


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is slow comes first, the longest files first and families last among it: no process is left alone with a
    long file at the end."""

    def place(item: pytest.Item) -> tuple[bool, int]:
        file = item.nodeid.partition("::")[0].removeprefix("tests/")
        rank = LONGEST.index(file) if file in LONGEST else len(LONGEST) + (file == FAMILIES)
        return item.get_closest_marker("slow") is None, rank

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What is imported stays: whenever the suite collects garbage, it need not be looked through again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on what the developer's shell overrides."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def float32_by_default() -> Iterator[None]:
    """No test depends on whether this machine's CPU is faster in bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdsuite.runtime.device.bfloat16_speedup", lambda: 1.0)
        yield


@pytest.fixture(scope="module")
def timed_once() -> Iterator[None]:
    """How fast this machine is, is measured once for all plans of a file: large layers take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "Measured", cache(build.Measured))
        yield


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return pretraining_text(300, seed=7)


@pytest.fixture(scope="session")
def qwen_chat(texts: list[str]) -> ChatTokenizer:
    """Byte-level BPE with ChatML turns, as Qwen2's."""
    return ChatTokenizer(byte_level_tokenizer(texts, 400))


@pytest.fixture(scope="session")
def llama_chat(texts: list[str]) -> ChatTokenizer:
    """SentencePiece-style BPE with byte fallback and Zephyr turns, as TinyLlama's."""
    return ChatTokenizer(sentencepiece_tokenizer(texts, 500))


@pytest.fixture(scope="session")
def qwen_model(qwen_chat: ChatTokenizer):
    torch.manual_seed(4)  # its answers are not empty; with most seeds it repeats the line break before them
    return tiny_qwen2(qwen_chat.tokenizer, width=32, layers=3, heads=2).eval()


@pytest.fixture(scope="session")
def llama_model(llama_chat: ChatTokenizer):
    torch.manual_seed(2)
    return tiny_llama(llama_chat.tokenizer, width=16, layers=2, heads=2).eval()


@pytest.fixture(scope="session")
def models(tmp_path_factory, qwen_model, qwen_chat, llama_model, llama_chat) -> dict[str, Path]:
    """Folders of the `teacher` (Qwen2) and the `student` (Llama); who changes one copies it first."""
    folder = tmp_path_factory.mktemp("models")
    pair = {"teacher": (qwen_model, qwen_chat), "student": (llama_model, llama_chat)}
    for name, (model, chat) in pair.items():
        (folder / name).mkdir()
        save_trained(model, chat, folder / name)
    return {name: folder / name for name in pair}


@pytest.fixture(autouse=True)
def each_finds_out_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a test did not reach the hub is not known to those after it."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)
    if "HF_HUB_OFFLINE" not in os.environ:
        monkeypatch.setenv("HF_HUB_OFFLINE", "")
        monkeypatch.delenv("HF_HUB_OFFLINE")


@pytest.fixture
def one_task(models: dict[str, Path]) -> Settings:
    """B0 and KD1 on two dozen sentences, one seed."""
    task = {"train_size": 24, "dev_size": 8, "validation_size": 12, "max_length": 400, "quality_floor": 0}
    task |= {"training": {"epochs": 1, "batch_size": 8}, "preset": "sst2"}
    tree: dict[str, Any] = {
        "threads": 1,
        "device": "cpu",
        "dtype": "float32",
        "seeds": [42],
        "methods": ["B0", "KD1"],
        "tasks": {"mine": task},
        "models": {
            "teacher": {"name": str(models["teacher"])},
            "students": {"little": {"name": str(models["student"])}},
            "lora": {"enabled": False},
        },
        "kd1": {"temperatures": [2.0], "alphas": [0.5], "top_k": 16},
    }
    return Settings.model_validate(tree)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are asked again at once; a test's key is not remembered beyond it."""
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.02)
    monkeypatch.setattr(errors, "VARIABLES", list(errors.VARIABLES))


@pytest.fixture
def server(qwen_model, qwen_chat) -> Iterator[StandIn]:
    """The teacher behind a URL, in vLLM's dialect."""
    with serving("vllm", qwen_model, qwen_chat) as server:
        yield server


LLAMA_CPP = """
import sys, xllamacpp as llama

path, port, slots, context = sys.argv[1], *map(int, sys.argv[2:])
params = llama.CommonParams()
params.model.path, params.port, params.n_parallel, params.n_ctx = path, port, slots, slots * context
params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.warmup, params.ui, params.fit_params, params.verbosity = False, False, False, 1
server = llama.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


class LlamaServer:
    """llama.cpp's own server with one GGUF file, in a process of its own; it keeps its port when started again."""

    def __init__(self, path: Path, slots: int, context: int):
        self.url, self._process = "http://127.0.0.1:0", None
        self._arguments = [str(slots), str(context)]
        self.path = path
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-c", LLAMA_CPP, str(self.path), self.url.rpartition(":")[2], *self._arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.url = self._process.stdout.readline().strip()
        assert self.url, f"llama.cpp does not serve {self.path}"

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def log_probs(self, ids: list[int], vocabulary: int) -> dict[int, float]:
        """Of each token that may follow `ids`; they are told only if what is sampled is a text, so that is pinned."""
        letter = self.ask("/tokenize", content="A")["tokens"][-1]
        asked = {"n_predict": 1, "n_probs": vocabulary, "cache_prompt": True, "logit_bias": [[letter, 1000]]}
        (said,) = self.ask("/completion", prompt=ids, **asked)["completion_probabilities"]
        return {token["id"]: token["logprob"] for token in said["top_logprobs"]}

    def ask(self, route: str, **body: Any) -> Any:
        """What it answers to a JSON body."""
        request = urllib.request.Request(
            self.url + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LlamaServer]]:
    """`served(folder)`: a new llama.cpp server for a GGUF file or a model folder, of which one in f32 is made.

    It has so many `slots` of so many tokens of `context`, and is killed at the end of the session, if not before.
    """
    from kdsuite.extras import gguf_file

    servers: list[LlamaServer] = []

    def serve(folder: Path, slots: int = 2, context: int = 1024) -> LlamaServer:
        path = folder
        if folder.is_dir():
            source = ModelSource.at(str(folder))
            path = tmp_path_factory.mktemp("gguf") / "model.gguf"
            writer = gguf_file.metadata(load_config(source), load_chat(source), source.name)
            gguf_file.write(writer, load_model(source, torch.device("cpu"), torch.float32), path, half=False)
        servers.append(LlamaServer(path, slots, context))
        return servers[-1]

    yield serve
    for server in servers:
        server.kill()


@pytest.fixture
def tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock that chat templates read is years ahead."""

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2031, 12, 24)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)


def real_data() -> Path | None:
    """A folder with real data sets and tokenizers: $KDSUITE_REAL_DATA, or `*/data` beside the checkout."""
    named = os.environ.get("KDSUITE_REAL_DATA")
    beside = Path(__file__).parents[2].glob("*/data/tokenizers/tinyllama")
    return Path(named) if named else next((p.parents[1] for p in beside), None)


@pytest.fixture(scope="session")
def real() -> Path:
    folder = real_data()
    if folder is None:
        pytest.skip("no real data here; set KDSUITE_REAL_DATA to check with it")
    return folder


@pytest.fixture(scope="session")
def real_chats(real: Path) -> dict[str, ChatTokenizer]:
    from transformers import AutoTokenizer

    return {
        name: ChatTokenizer(AutoTokenizer.from_pretrained(str(real / "tokenizers" / name)))
        for name in ("tinyllama", "qwen2.5")
    }


@pytest.fixture
def sst2_settings() -> TaskSettings:
    return task_section("sst2", train_size=40, dev_size=10, validation_size=20, max_length=256)


@pytest.fixture
def squad_settings() -> TaskSettings:
    return task_section("squad", train_size=40, dev_size=10, validation_size=20, max_length=512)


@pytest.fixture
def squad_example() -> Example:
    context = "Ada Lovelace lived in London. London is large. She wrote notes in 1843."
    return Example("q1", {"context": context, "question": "Where did Ada live?"}, "London", ("London",), "g", 22)


@pytest.fixture
def settings_tree() -> dict:
    """The smallest valid configuration."""
    return {
        "tasks": {"sst2": {}, "squad": {}},
        "models": {"teacher": {"name": "offline-teacher"}, "students": {"S1": {"name": "offline-student"}}},
    }


@pytest.fixture
def settings(settings_tree: dict) -> Settings:
    return Settings.model_validate(settings_tree)

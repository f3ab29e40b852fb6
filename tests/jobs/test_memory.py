"""Memory does not grow from run to run: what a run has used is given back before the next begins."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kdsuite.config import Settings
from kdsuite.jobs import models
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.training import execute
from kdsuite.plan import RunSpec
from kdsuite.runtime import device
from kdsuite.runtime.device import MB, _malloc_trim
from kdsuite.runtime.progress import Progress
from kdsuite.store.records import Registry

RUNS = 4


class Watched(Registry):
    """Notes what this process holds when a run begins: MB, and tensors."""

    resident: list[float]
    tensors: list[int]

    def start(self, *run: Any, **extra: Any) -> Path:
        self.resident.append(psutil.Process().memory_info().rss / MB)
        self.tensors.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
        return super().start(*run, **extra)


@pytest.fixture(scope="module")
def student(tmp_path_factory, llama_chat) -> Path:
    """One whose vocabulary makes the tensors of a step large, as a real one's does."""
    folder = tmp_path_factory.mktemp("student")
    ids = {"pad_token_id": llama_chat.pad_id, "eos_token_id": llama_chat.end_id}
    config = LlamaConfig(
        vocab_size=20_000, hidden_size=128, intermediate_size=352, num_hidden_layers=4,
        num_attention_heads=4, tie_word_embeddings=True, **ids,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    llama_chat.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or _malloc_trim() is None, reason="measured where memory can be given back: glibc"
)
@pytest.mark.parametrize("adapters", [True, False])
def test_no_run_begins_with_what_an_earlier_one_used(adapters: bool, student: Path, tmp_path: Path) -> None:
    section = {
        "train_size": 64, "dev_size": 4, "validation_size": 4, "max_length": 400, "max_new_tokens": 2,
        "training": {"epochs": 1, "batch_size": 64},
    }  # fmt: skip
    tree: dict[str, Any] = {
        "threads": 1,
        "tasks": {"squad": section},
        "models": {
            "teacher": {"name": str(student)},
            "students": {"S1": {"name": str(student)}},
            "lora": {"enabled": adapters},
        },
    }
    settings = Settings.model_validate(tree)
    registry = Watched(tmp_path)
    registry.resident, registry.tensors = [], []
    choice = device.choose("cpu", "float32", 1)
    shop = Bench(settings, tmp_path, choice, Progress.silent())
    shop.registry = registry
    models.base(shop, "S1")
    peaks = [execute(shop, RunSpec("B0", "squad", "S1", seed))["timing"]["peak_memory_mb"] for seed in range(RUNS)]
    first = registry.resident[0]
    used = min(peaks) - first
    assert used > 300  # else nothing is measured
    assert all(now - first < 0.35 * used for now in registry.resident[1:]), (registry.resident, peaks)
    assert registry.tensors[1] == registry.tensors[-1]

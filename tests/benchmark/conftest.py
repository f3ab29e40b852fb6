"""Tiny models with random weights, as folders: a teacher, a student, two adapters of the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `teacher`, `student`, and the adapters `one` and `two` of the student."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    teacher = Qwen2Config(**SHAPE, hidden_size=128, num_hidden_layers=3, tie_word_embeddings=True)
    Qwen2ForCausalLM(teacher).save_pretrained(folder / "teacher")
    student = LlamaConfig(**SHAPE, hidden_size=64, num_hidden_layers=2)
    LlamaForCausalLM(student).save_pretrained(folder / "student")
    for name in ("one", "two"):
        save_adapter(folder / "student", folder / name)
    return folder


def save_adapter(base: Path, folder: Path) -> None:
    """A LoRA adapter with random weights, so that merging it changes the model."""
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(LlamaForCausalLM.from_pretrained(base), config).save_pretrained(str(folder))

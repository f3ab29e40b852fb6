"""A model's shape is known without its weights: from its folder, the package, or the hub's cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kdsuite.config import CONFIGS, load
from kdsuite.extras.offline.models import STUDENT, TEACHER, VOCABULARY, tiny_model
from kdsuite.models import loading
from kdsuite.models.costs import KNOWN, shape_of
from kdsuite.models.loading import pinned, save_trained
from kdsuite.models.source import ModelSource, TooLarge


@pytest.mark.parametrize(
    ("name", "parameters"),  # as published on the models' pages
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1_100_048_384),
    ],
)
def test_the_models_of_the_thesis_are_known_without_network(name: str, parameters: int) -> None:
    shape = shape_of(name)
    assert shape is not None
    assert (shape.parameters, shape.stored) == (parameters, "bfloat16")


def test_all_models_of_the_packaged_configurations_are_known() -> None:
    for file in ("experiment.yaml", "small.yaml", "offline.yaml"):
        models = load(CONFIGS / file, env_file=None).models
        names = {models.teacher.name, models.teacher.fallback, models.students["S1"].name} - {None}
        assert names <= set(json.loads(KNOWN.read_text()))


def test_the_offline_models_are_as_they_are_built() -> None:
    class Words:
        bos_token_id = eos_token_id = pad_token_id = 0

        def __len__(self) -> int:
            return VOCABULARY

    for recipe in (TEACHER, STUDENT):
        model = tiny_model(recipe.architecture, Words(), recipe.width, recipe.layers, recipe.heads)  # pyright: ignore
        shape = shape_of(f"offline-{recipe.role}")
        assert shape is not None
        assert shape.parameters == model.num_parameters()


def test_a_folder_speaks_for_itself(tmp_path: Path, llama_model, llama_chat) -> None:
    save_trained(llama_model, llama_chat, tmp_path)
    shape = shape_of(str(tmp_path))
    assert shape is not None
    assert shape.parameters == llama_model.num_parameters()


def test_a_model_in_fewer_bits_is_not_taken_for_as_large_as_in_16(
    tmp_path: Path, llama_model, llama_chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights take a quarter of what its sizes say: what is known too large in 16 bits is tried in 4."""
    save_trained(llama_model, llama_chat, tmp_path)
    source, file = ModelSource.at(str(tmp_path)), tmp_path / "config.json"
    monkeypatch.setattr(loading, "memory_bytes", lambda device: (1000, 1000))
    with pytest.raises(TooLarge, match="its weights need"):
        pinned(source, torch.device("cpu"), torch.bfloat16)
    bits = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": bits}))
    assert pinned(source, torch.device("cpu"), torch.bfloat16) == source
    assert shape_of(str(tmp_path)) is None


@pytest.mark.parametrize("content", ["{", "{}", '{"model_type": "bert", "hidden_size": 3}'])
def test_what_is_no_such_decoder_has_no_shape(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    assert shape_of(str(tmp_path)) is None


@pytest.mark.parametrize("name", ["nobody/nothing", "not an id", "a/b/c"])
def test_an_unknown_model_has_no_shape(name: str) -> None:
    assert shape_of(name) is None

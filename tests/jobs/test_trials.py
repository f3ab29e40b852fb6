"""What cannot work is said before any work, and what was tried once is not tried again."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from kdsuite import pipeline
from kdsuite.config import Settings, changed
from kdsuite.errors import ModelError
from kdsuite.evaluate.predict import label_scores
from kdsuite.jobs import data, models, trials
from kdsuite.jobs.bench import Bench
from kdsuite.models.loading import save_trained
from kdsuite.runtime.device import choose
from kdsuite.runtime.progress import Progress
from kdsuite.tasks.encoding import encode

SIZES = {"train_size": 16, "dev_size": 8, "validation_size": 8, "max_length": 400, "quality_floor": 0}


@pytest.fixture
def folders(tmp_path: Path, models: dict[str, Path]) -> dict[str, Path]:
    """Copies, to be changed."""
    return {name: shutil.copytree(folder, tmp_path / name) for name, folder in models.items()}


def settings(folders: dict[str, Path], **sections) -> Settings:
    task = SIZES | {"training": {"epochs": 1, "batch_size": 8}}
    tree = {
        "threads": 1,
        "seeds": [1],
        "methods": ["B0"],
        "tasks": {"sst2": task},
        "models": {"teacher": {"name": str(folders["teacher"])}, "students": {"S1": {"name": str(folders["student"])}}},
    }
    return Settings.model_validate(tree | sections)


def told(chosen: Settings, results: Path, stages=("prepare", "cache", "train")) -> str:
    stream = io.StringIO()
    pipeline.run(chosen, results, stages, progress=Progress(stream=stream, live=False))
    return stream.getvalue()


def test_models_are_tried_once_for_all(folders, tmp_path) -> None:
    results = tmp_path / "results"
    first = told(settings(folders), results)
    assert "S1: trying student" in first
    assert "teacher: trying teacher" in first
    assert "trying" not in told(settings(folders), results)


def test_another_model_in_the_same_place_is_tried(folders, tmp_path, qwen_model, qwen_chat) -> None:
    results = tmp_path / "results"
    told(settings(folders), results)
    save_trained(qwen_model, qwen_chat, folders["student"])
    again = told(settings(folders), results)
    assert "S1: trying student" in again
    assert "teacher: trying" not in again


def refused(chosen: Settings, results: Path) -> str:
    """The one line that ends a run before any work: no run is begun, nothing is cached."""
    with pytest.raises(ModelError) as error:
        pipeline.run(chosen, results, ("prepare", "cache", "train"), progress=Progress.silent())
    assert not list((results / "raw_runs").glob("*/run.json"))
    assert not (results / "teacher_cache").exists()
    return str(error.value)


def test_texts_longer_than_the_models_positions_are_refused(folders, tmp_path) -> None:
    config = json.loads((folders["student"] / "config.json").read_text())
    (folders["student"] / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 300}))
    line = refused(settings(folders), tmp_path / "results")
    assert "'student' has 300 positions, but tasks.sst2.max_length is 400" in line


def test_adapters_that_the_library_cannot_put_on_a_model_are_refused(folders, tmp_path, llama_chat) -> None:
    torch.manual_seed(0)
    experts = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(llama_chat.token_bytes), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, num_local_experts=2, max_position_embeddings=512,
        )
    )  # fmt: skip
    save_trained(experts, llama_chat, folders["student"])
    line = refused(settings(folders), tmp_path / "results")
    assert "adapters cannot be put on MixtralForCausalLM" in line
    assert "models.lora.dropout=0" in line


def test_a_damaged_teacher_is_refused_though_no_student_needs_it_yet(folders, tmp_path) -> None:
    weights = load_file(folders["teacher"] / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folders["teacher"] / "model.safetensors", {"format": "pt"})
    line = refused(settings(folders), tmp_path / "results")
    assert "1 missing (model.layers.1.mlp.up_proj.weight)" in line


@pytest.mark.parametrize("shots", [0, 1])
def test_the_doctor_says_how_much_probability_is_left_to_the_label_words(folders, tmp_path, shots: int) -> None:
    """By hand: the sum over labels of the probability of their tokens with the end, averaged over examples; behind the
    solved ones that stand before each."""
    chosen = changed(settings(folders), {"tasks.sst2.examples": shots})
    shop = Bench(chosen, tmp_path / "r", choose("cpu"), Progress.silent())
    task = data.task(shop, "sst2")
    assert len(task.shots) == shots
    encoded = encode(task, models.chat(shop, "S1"), task.load("validation")[: trials.ASKED])
    scores = label_scores(models.base(shop, "S1"), models.chat(shop, "S1"), encoded, 2, 4)
    mass, favourite = trials.label_mass(shop, "S1", "sst2")
    assert mass == pytest.approx(scores.exp().sum(-1).mean().item(), rel=1e-3)
    assert 0 < mass < 1
    assert favourite

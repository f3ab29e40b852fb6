"""The arithmetic holds against real models: parameters, saved activations, cache files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kdsuite.config import LoraSettings, TrainingSettings, task_section
from kdsuite.forecast.footprint import activation_bytes, adapter_parameters, inference_bytes, training_bytes
from kdsuite.forecast.times import forward_operations, training_operations
from kdsuite.methods.base import Kept
from kdsuite.models.costs import FAMILIES, Shape, shape_of, weight_bytes
from kdsuite.models.forward import causal_lm
from kdsuite.models.loading import trainable
from kdsuite.tasks.encoding import encode
from kdsuite.tasks.example import task_of
from kdsuite.teacher.cached import build_cache
from kdsuite.teacher.local import ask

TASKS = {"sst2": task_of("sst2", task_section("sst2")), "squad": task_of("squad", task_section("squad"))}


def config(kind: str = "llama", **changes):
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return AutoConfig.for_model(kind, **(sizes | heads | ids | changes))


@pytest.mark.parametrize("told", [{"tie_word_embeddings": True}, {"tie_word_embeddings": False}, {}], ids=str)
@pytest.mark.parametrize("kind", FAMILIES)
def test_parameters_are_those_of_the_built_model(kind: str, told: dict[str, bool]) -> None:
    wanted = config(kind, head_dim=16, **told)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(wanted)
    content = {key: value for key, value in wanted.to_dict().items() if key != "tie_word_embeddings"} | told
    assert Shape.of(content).parameters == model.num_parameters()


@pytest.mark.parametrize("kind", ["mixtral", "gpt_neox", "phi", "olmo2"])
def test_of_other_architectures_no_wrong_figure_is_given(kind: str) -> None:
    with pytest.raises(KeyError):
        Shape.of(config(kind).to_dict())


def test_adapters_have_as_many_parameters_as_peft_gives_them() -> None:
    model = trainable(AutoModelForCausalLM.from_config(config()), LoraSettings(r=3))
    real = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter_parameters(Shape.of(config().to_dict()), 3) == real


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [LoraSettings(), LoraSettings(dropout=0), LoraSettings(enabled=False)])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_activations_are_about_those_that_a_forward_pass_keeps(kind: str, lora: LoraSettings, dtype: str) -> None:
    wide, precision = config(kind, hidden_size=128, intermediate_size=352, head_dim=32), getattr(torch, dtype)
    model = AutoModelForCausalLM.from_config(wide, attn_implementation="sdpa").train().requires_grad_(False)
    model = trainable(model.to(precision) if lora.enabled else model, lora)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # the tensors themselves, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone = causal_lm(model).base_model
        states = backbone(input_ids=torch.randint(300, (8, 64)), use_cache=False).last_hidden_state
    tokens = [tensor for tensor in kept.values() if tensor.shape[:1] in ((8,), (8 * 64,))]  # the others: cast weights
    real = sum(tensor.untyped_storage().nbytes() for tensor in tokens)
    estimated = activation_bytes(Shape.of(wide.to_dict()), 8 * 64, 64, lora, False, dtype)
    assert states.requires_grad
    assert 0.85 * real < estimated < 1.15 * real


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("task", ["sst2", "squad"])
def test_cache_bytes_are_those_of_the_files(
    task: str, standardised: bool, tmp_path: Path, qwen_chat, qwen_model, sst2_settings, squad_settings
) -> None:
    settings = {"sst2": sst2_settings, "squad": squad_settings}[task]
    examples = encode(
        task_of(TASKS[task].name, settings), qwen_chat, task_of(TASKS[task].name, settings).load("train")[:24]
    )
    labels = len(TASKS[task].labels or ())
    kept = Kept(16, "float16", frozenset({1.0, 2.0, 4.0}), True, standardised, frozenset({"sampled", "topk_sampled"}))
    keep = kept.outputs({3, 1}, labels)
    assert keep.temperatures == (2.0, 4.0) and keep.layers == (1, 3) and bool(keep.draws) == (not labels)
    cache = build_cache(tmp_path, {}, examples, lambda batch: ask(qwen_model, qwen_chat, batch, keep), 8)
    positions = fmean(e.choices.count(e.gold) for e in examples)
    estimated = keep.disk_bytes(24, positions, qwen_model.config.hidden_size, "float32")
    assert keep.entries == (16 if labels else 16 + 3 * (16 + 8))
    real = sum(shard["bytes"] for shard in cache.manifest["shards"])
    assert estimated == pytest.approx(real, abs=1500)  # the file's header


def test_adapters_checkpointing_small_batches_and_bfloat16_save_memory() -> None:
    shape = shape_of("TinyLlama/TinyLlama-1.1B-Chat-v1.0")
    assert shape is not None

    def peak(lora: bool = True, dtype: str = "float32", **training) -> int:
        return training_bytes(shape, TrainingSettings(**training), LoraSettings(enabled=lora), 256, 4, dtype)

    assert peak(lora=False) > peak() > peak(dtype="bfloat16")
    assert peak() > peak(micro_batch_size=2) > peak(micro_batch_size=2, gradient_checkpointing=True)
    assert weight_bytes(shape, "float32") == 2 * weight_bytes(shape, "bfloat16") == 4 * shape.parameters


def test_generating_needs_memory_for_keys_values_and_logits() -> None:
    shape = Shape.of(config().to_dict())
    reading = inference_bytes(shape, 8, 100, 0, "float32")
    cache = 2 * 8 * 120 * shape.layers * 2 * 16 * 4
    assert inference_bytes(shape, 8, 100, 20, "float32") - reading > cache
    assert inference_bytes(shape, 4, 100, 20, "float32") < inference_bytes(shape, 8, 100, 20, "float32")
    logits = 8 * 300 * 4
    assert inference_bytes(shape, 8, 100, 0, "float32", positions=5) - reading >= 4 * logits


def test_weights_of_another_dtype_lie_beside_their_file_while_they_are_loaded() -> None:
    shape = replace(Shape.of(config().to_dict()), stored="bfloat16")
    assert inference_bytes(shape, 1, 1, 0, "float32") == 6 * shape.parameters
    assert inference_bytes(shape, 1, 1, 0, "bfloat16") < 2.2 * shape.parameters


def test_operations_are_two_per_weight_and_token_forward_and_six_in_training() -> None:
    shape = Shape.of(config().to_dict())
    assert forward_operations(shape, 10) == 2 * 10 * shape.body_parameters
    assert forward_operations(shape, 10, 3) - forward_operations(shape, 10) == 2 * 3 * 300 * 64
    once = forward_operations(shape, 10, 3)
    assert training_operations(shape, 10, 3, lora=False, recomputed=False) == 3 * once
    assert training_operations(shape, 10, 3, lora=True, recomputed=True) == 3 * once
    assert training_operations(shape, 10, 3, lora=True, recomputed=False) == 2 * once


def test_more_layers_cost_more_of_everything() -> None:
    shape = Shape.of(config().to_dict())
    deeper = replace(shape, layers=6)
    assert deeper.body_parameters > 1.9 * shape.body_parameters
    assert adapter_parameters(deeper, 4) == 2 * adapter_parameters(shape, 4)

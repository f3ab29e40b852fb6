"""A model is checked before it is believed: what a trial finds out, and what it refuses in one line."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from kdsuite.config import LoraSettings
from kdsuite.errors import ModelError
from kdsuite.models import check
from kdsuite.models.forward import traits_of
from kdsuite.models.loading import load_config, load_model, save_trained, trainable
from kdsuite.models.source import ModelSource
from kdsuite.runtime import device

CPU, FLOAT32 = torch.device("cpu"), torch.float32


@pytest.fixture
def folder(tmp_path: Path, qwen_model, qwen_chat) -> Path:
    save_trained(qwen_model, qwen_chat, tmp_path)
    return tmp_path


def load(folder: Path, dtype: torch.dtype = FLOAT32):
    return load_model(ModelSource("mine", str(folder)), CPU, dtype)


def test_a_llama_like_model_can_be_computed_in_every_way(folder) -> None:
    traits = traits_of(load(folder))
    assert all(
        getattr(traits, name) for name in ("split", "side_by_side", "left_padding", "gaps", "layers", "beginning")
    )
    assert traits.window is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_in_16_bits_hides_nothing_and_spoils_nothing(folder, dtype) -> None:
    """The ways are compared in float32, whatever the weights: the same is found out."""
    assert traits_of(load(folder, dtype)) == traits_of(load(folder))


def test_a_trial_leaves_the_model_as_it_was(folder) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=FLOAT32)
    tried = load(folder)
    assert tried.config.num_hidden_layers == plain.config.num_hidden_layers == len(tried.model.layers)
    for (name, one), (_, other) in zip(tried.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    ids = torch.arange(9)[None]
    assert torch.equal(tried(input_ids=ids).logits, plain.eval()(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"sliding_window": 16, "use_sliding_window": True}, 16),
        ({"sliding_window": 16, "use_sliding_window": False}, None),
        ({}, None),
    ],
)
def test_the_window_is_what_the_configuration_says(changes, window) -> None:
    assert check.window_of(AutoConfig.for_model("qwen2", **changes)) == window


def test_weights_that_are_not_finite_are_refused(folder) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="'mine' gives logits that are not finite as torch.float32"):
        load(folder)


def test_a_model_whose_gradients_are_not_finite_is_refused(folder) -> None:
    model = trainable(load(folder), LoraSettings(dropout=0.0))
    next(p for p in model.parameters() if p.requires_grad).data.fill_(float("inf"))
    with pytest.raises(ModelError, match="'mine' cannot be trained"):
        check.try_training(model, "mine")


@pytest.mark.parametrize("lora", [True, False])
def test_a_model_that_trains_passes_and_keeps_no_gradient(folder, lora) -> None:
    model = trainable(load(folder), LoraSettings(enabled=lora))
    check.try_training(model, "mine")
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_a_gradient_that_is_wrong_on_a_device_is_found(folder, factor) -> None:
    """Of the CPU with itself there is no difference; one layer's gradient a thousand times too large is one."""
    here = load(folder).base_model.requires_grad_(True)
    there = copy.deepcopy(here)
    there.layers[0].mlp.down_proj.weight.register_hook(lambda gradient: gradient * factor)
    apart = check.gradients_apart(there, here, list(range(12)))
    assert apart < 1e-4 if factor == 1.0 else apart > check.GRADIENTS


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"model_type": "t5"}, r"\(t5\) is an encoder-decoder"),
        ({"model_type": "bart"}, r"\(bart\) is an encoder-decoder"),
        ({"model_type": "gemma3"}, r"\(gemma3\) is multimodal"),
        ({"model_type": "qwen2_vl"}, r"\(qwen2_vl\) is multimodal"),
        ({"model_type": "vit"}, r"\(vit\) is not a causal language model"),
    ],
)
def test_what_is_no_text_decoder_is_refused_by_its_configuration(tmp_path, content, reason) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=f"model 'mine' {reason}.*give a decoder-only language model"):
        load_config(ModelSource("mine", str(tmp_path)))


def test_texts_longer_than_a_models_positions_are_refused_by_the_key(qwen_model, qwen_chat) -> None:
    limit = qwen_model.config.max_position_embeddings
    check.refuse_unless_fits(qwen_model.config, qwen_chat, "mine", {"tasks.sst2.max_length": limit})
    with pytest.raises(ModelError, match=rf"'mine' has {limit} positions, but tasks.squad.max_length is {limit + 1}"):
        check.refuse_unless_fits(
            qwen_model.config, qwen_chat, "mine",
            {"tasks.sst2.max_length": limit, "tasks.squad.max_length": limit + 1},
        )  # fmt: skip


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(qwen_model, qwen_chat) -> None:
    config = copy.deepcopy(qwen_model.config)
    config.vocab_size = len(qwen_chat.token_bytes) // 2
    with pytest.raises(ModelError, match=r"'mine' has [\d,]+ token embeddings, but its tokenizer has ids up to"):
        check.refuse_unless_fits(config, qwen_chat, "mine", {})


def test_a_backward_pass_on_mps_takes_few_tokens_at_once() -> None:
    assert device.examples_at_once(torch.device("mps"), 16, 1000) == device.MPS_TOKENS // 1000
    assert device.examples_at_once(torch.device("mps"), 16, 100_000) == 1
    for longest in (1, 33, 130, 500):  # rows are padded to multiples of MPS_BUCKET
        padded = next(size for size in range(longest, 2000) if size % device.MPS_BUCKET == 0)
        assert device.examples_at_once(torch.device("mps"), 1000, longest) * padded <= device.MPS_TOKENS
    assert device.examples_at_once(torch.device("cpu"), 16, 1000) == 16

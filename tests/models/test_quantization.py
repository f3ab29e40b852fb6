from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from kdsuite.models.quantization import QuantizationUnavailable, quantize, weight_file_bytes

SCHEMES = pytest.mark.parametrize("scheme", ["int8", "int4"])
CPU = torch.device("cpu")
IDS = torch.arange(24).reshape(2, 12)
SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "intermediate_size": 320,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tiny_llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, hidden_size=128, num_hidden_layers=2, tie_word_embeddings=tied)
    return LlamaForCausalLM(config).eval()


def tiny_qwen2() -> Qwen2ForCausalLM:
    """With biases in its attention, which Llama has not."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE, hidden_size=128, num_hidden_layers=2)).eval()


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits.float()


def relative_error(model: Any, reference: torch.Tensor) -> float:
    return float((logits(model) - reference).norm() / reference.norm())


def decoder_weights(model: Any) -> list[torch.Tensor]:
    """The weights of all linear layers but the LM head."""
    layers = (m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head")
    return [layer.weight for layer in layers]


@pytest.mark.parametrize(("scheme", "low", "high"), [("int8", 1e-5, 0.02), ("int4", 0.02, 0.25)])
@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen2])
def test_a_quantized_model_says_nearly_the_same_and_the_original_stays_as_it_was(
    build: Any, scheme: str, low: float, high: float
):
    model = build()
    before = logits(model)
    quantized = quantize(model, scheme, CPU)
    assert low < relative_error(quantized, before) < high
    assert torch.equal(logits(model), before)
    assert not hasattr(model.config, "quantization_config")


@SCHEMES
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_head_keep_their_precision(scheme: str, tied: bool):
    model = tiny_llama(tied)
    quantized = quantize(model, scheme, CPU)
    assert torch.equal(quantized.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert torch.equal(quantized.lm_head.weight, model.lm_head.weight)
    assert (quantized.lm_head.weight is quantized.model.embed_tokens.weight) == tied


@pytest.mark.parametrize(("scheme", "bytes_per_weight"), [("int8", 1.0), ("int4", 0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_files_shrink_as_arithmetic_says(
    tmp_path: Path, scheme: str, bytes_per_weight: float, dtype: torch.dtype
):
    model: Any = tiny_llama()
    model.to(dtype)
    weights = decoder_weights(model)
    linear = sum(w.numel() for w in weights)
    rest = sum(p.numel() for p in model.parameters()) - linear
    scales = sum(w.shape[0] for w in weights) if scheme == "int8" else linear / 64
    expected = bytes_per_weight * linear + 4 * scales + rest * dtype.itemsize
    quantize(model, scheme, CPU).save_pretrained(tmp_path)
    assert weight_file_bytes(tmp_path) == pytest.approx(expected, rel=0.05)


@SCHEMES
def test_plain_transformers_load_the_saved_folder_and_compute_the_same(tmp_path: Path, scheme: str):
    quantized = quantize(tiny_llama(), scheme, CPU)
    quantized.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(again), logits(quantized))
    assert {file.suffix for file in tmp_path.iterdir()} == {".safetensors", ".json"}


@SCHEMES
def test_an_adapter_is_merged_before_its_model_is_quantized(scheme: str):
    base = logits(tiny_llama())
    config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_llama(), config).eval()
    adapted = logits(model)
    quantized = quantize(model, scheme, CPU)
    assert relative_error(quantized, adapted) < 0.5 * relative_error(quantized, base)
    assert not any("lora" in name for name, _ in quantized.named_parameters())


@SCHEMES
def test_bfloat16_stays_the_dtype_of_computation(scheme: str):
    quantized = quantize(tiny_llama().bfloat16(), scheme, CPU)
    assert quantized(input_ids=IDS).logits.dtype == torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a device that is not there")
@SCHEMES
def test_a_device_that_cannot_is_named_with_the_reason(scheme: str):
    with pytest.raises(QuantizationUnavailable, match=r"does not work with this model on cuda: .+"):
        quantize(tiny_llama(), scheme, torch.device("cuda"))


@pytest.mark.skipif(not has_avx512bf16(), reason="needs the CPU kernel that asks for multiples of 32")
def test_a_model_whose_layers_the_library_cannot_pack_is_refused_with_its_reason():
    shape: dict[str, Any] = SHAPE | {"intermediate_size": 24}
    config = LlamaConfig(**shape, hidden_size=16, num_hidden_layers=1)
    with pytest.raises(QuantizationUnavailable, match="divisible"):
        quantize(LlamaForCausalLM(config), "int4", CPU)


def test_an_unknown_scheme_names_the_known_ones():
    with pytest.raises(QuantizationUnavailable, match="'int3'.*int8, int4"):
        quantize(tiny_llama(), "int3", CPU)

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from kdsuite.models.quantization import quantize
from kdsuite.models.sizes import count_parameters, weight_bytes

VOCABULARY, WIDTH = 300, 64


def tiny_llama(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


LAYER = 2 * WIDTH * WIDTH + 2 * WIDTH * WIDTH // 2 + 3 * WIDTH * 192  # q and o, k and v, the MLP
LINEAR = 2 * LAYER
NORMS = 5 * WIDTH


def test_a_tied_head_is_the_embedding_and_counts_once():
    tied, untied = count_parameters(tiny_llama(True)), count_parameters(tiny_llama(False))
    assert tied["embedding_parameters"] == VOCABULARY * WIDTH
    assert untied["embedding_parameters"] == 2 * VOCABULARY * WIDTH
    assert tied["parameters"] == LINEAR + NORMS + VOCABULARY * WIDTH
    assert untied["parameters"] == LINEAR + NORMS + 2 * VOCABULARY * WIDTH


def test_adapter_parameters_are_apart_from_the_model_they_adapt():
    model = tiny_llama(True)
    alone = count_parameters(model)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    count = count_parameters(adapted)
    assert count["adapter_parameters"] == 2 * 4 * (WIDTH + WIDTH)
    assert (count["parameters"], count["embedding_parameters"]) == (alone["parameters"], alone["embedding_parameters"])


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("tied", [True, False])
def test_quantization_changes_bytes_but_not_the_number_of_parameters(scheme: str, tied: bool):
    model = tiny_llama(tied)
    quantized = quantize(model, scheme, torch.device("cpu"))
    assert count_parameters(quantized) == count_parameters(model)
    assert weight_bytes(quantized) < weight_bytes(model)


def test_bytes_are_those_of_the_stored_tensors_with_shared_ones_once():
    model = tiny_llama(True)
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert weight_bytes(model) - buffers == 4 * (LINEAR + NORMS + VOCABULARY * WIDTH)

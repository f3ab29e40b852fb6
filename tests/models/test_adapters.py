"""Adapters are trained to what peft's own forward pass gives, by a shorter way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from kdsuite.config import LoraSettings
from kdsuite.models.adapters import Adapted
from kdsuite.models.loading import trainable
from kdsuite.models.thinning import thinned

IDS = torch.arange(24).view(2, 12) + 5


def adapted(model: nn.Module, dropout: float = 0.0) -> Any:
    """With updates that are not 0, as they are at the beginning."""
    torch.manual_seed(0)
    made = trainable(copy.deepcopy(model), LoraSettings(r=4, alpha=12, dropout=dropout)).train()
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
    return made


def as_peft(model: Any) -> Any:
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if type(module) is Adapted:
            module.__class__ = Linear  # pyright: ignore[reportAttributeAccessIssue]
    return plain


def logits_and_gradients(model: nn.Module, bf16: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(IDS).logits.float()
    logits.logsumexp(-1).sum().backward()
    return logits.detach(), {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(params=["qwen2", "gpt2"])
def base(request, qwen_model) -> nn.Module:
    if request.param == "qwen2":
        return qwen_model
    torch.manual_seed(1)  # its layers keep their weights the other way round
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize(("dtype", "bf16"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)])
def test_logits_and_gradients_are_pefts(base, dtype: torch.dtype, bf16: bool) -> None:
    model = adapted(base.eval().to(dtype) if dtype == torch.float32 else copy.deepcopy(base).eval().to(dtype))
    assert sum(type(module) is Adapted for module in model.modules()) >= 8
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    logits, gradients = logits_and_gradients(model, bf16)
    expected, peft_gradients = logits_and_gradients(as_peft(model), bf16)
    exact, _ = logits_and_gradients(as_peft(model).float(), False)
    assert gradients.keys() == peft_gradients.keys() and gradients
    if not bf16:
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradients, peft_gradients, rtol=1e-4, atol=1e-5)
    else:  # not further from the exact sums than peft's are, but for the luck of rounding
        assert (logits - exact).norm() <= 1.3 * (expected - exact).norm()
        for name, gradient in gradients.items():
            assert torch.cosine_similarity(gradient.flatten(), peft_gradients[name].flatten(), 0) > 0.98, name


def test_what_is_not_training_and_what_is_merged_is_pefts_to_the_bit(qwen_model) -> None:
    model = adapted(qwen_model, dropout=0.5).eval()
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, as_peft(model)(IDS).logits)
        with model.disable_adapter():
            assert torch.equal(model.train()(IDS).logits, qwen_model(IDS).logits)
    merged, plain = copy.deepcopy(model).merge_and_unload(), as_peft(model).merge_and_unload()
    assert torch.equal(merged.eval()(IDS).logits, plain.eval()(IDS).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.05, 0.3, 1.0])
def test_as_many_values_are_dropped_as_are_to_be_each_by_itself(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    x = torch.randn(301, 257).abs().add(0.1).to(dtype).requires_grad_()  # an odd number of values
    kept, divisor = thinned(x, p)
    dropped = kept.detach() == 0
    assert torch.equal(kept, torch.where(dropped, 0, x))
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(float(dropped.float().mean()) - p) <= 4 * deviation
    assert p == 1 or abs(divisor - (1 - p)) < 1e-5
    kept.sum().backward()
    assert x.grad is not None and torch.equal(x.grad == 0, dropped)
    if p < 1:  # neighbours know nothing of each other, nor the next draw of this one
        again = thinned(x.detach(), p)[0] == 0
        for other in (dropped.roll(1, 0), dropped.roll(1, 1), again):
            both = float((dropped & other).float().mean())
            assert abs(both - p * p) < 5 * (p * p * (1 - p * p) / x.numel()) ** 0.5 + 5e-4


def test_the_same_state_of_torchs_generator_draws_the_same() -> None:
    x = torch.ones(64, 64)
    state = torch.get_rng_state()
    first = thinned(x, 0.5)[0]
    second = thinned(x, 0.5)[0]
    torch.set_rng_state(state)
    assert torch.equal(thinned(x, 0.5)[0], first) and torch.equal(thinned(x, 0.5)[0], second)
    assert not torch.equal(first, second)


def test_the_expected_output_is_that_without_dropout(qwen_model) -> None:
    layer = next(m for m in adapted(qwen_model, dropout=0.4).modules() if type(m) is Adapted)
    x = torch.randn(1, 4, qwen_model.config.hidden_size)
    with torch.no_grad():
        mean = torch.stack([layer(x) for _ in range(4_000)]).mean(0)
        torch.testing.assert_close(mean, layer.eval()(x), rtol=0.02, atol=0.02)

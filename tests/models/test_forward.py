"""A model's own logits at the supervised positions, and hidden states without what lies above them."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from kdsuite.config import task_section
from kdsuite.models.forward import Traits, supervised_logits, supervised_states
from kdsuite.tasks.batching import collate
from kdsuite.tasks.encoding import encode
from kdsuite.tasks.example import task_of

TASKS = {"sst2": task_of("sst2", task_section("sst2")), "squad": task_of("squad", task_section("squad"))}


@pytest.fixture(params=["sst2", "squad"])
def examples(request, qwen_chat, sst2_settings, squad_settings):
    chosen = {"sst2": sst2_settings, "squad": squad_settings}[request.param]
    task = TASKS[request.param]
    return encode(task_of(task.name, chosen), qwen_chat, task_of(task.name, chosen).load("validation")[:5])


@pytest.fixture
def batch(examples, qwen_chat):
    return collate(examples, qwen_chat.pad_id)


def own_logits(model, examples, pad_id: int) -> torch.Tensor:
    """[n, V] of plain text: a row for every continuation."""
    apart = collate(examples, pad_id, side_by_side=False)
    return model(input_ids=apart.input_ids).logits[apart.rows, apart.columns]


@torch.no_grad()
@pytest.mark.parametrize("layers", [(1,), (2,), (3,), (1, 2), (1, 3)])
def test_states_alone_are_those_of_the_whole_pass(qwen_model, batch, layers) -> None:
    _, whole = supervised_logits(qwen_model, batch, batch.on_target, 8, layers)
    alone = supervised_states(qwen_model, batch, batch.on_target, layers)
    for one, other in zip(alone, whole, strict=True):
        torch.testing.assert_close(one, other)


def test_states_alone_run_no_layer_above_them_and_leave_no_hook_behind(qwen_model, batch) -> None:
    ran: list[int] = []
    before = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in qwen_model.modules()]
    hooks = [
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, layer in enumerate(qwen_model.model.layers, start=1)
    ]
    try:
        supervised_states(qwen_model, batch, batch.on_target, (2,))
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == [1, 2]
    left = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in qwen_model.modules()]
    assert left == before  # transformers keeps its own, once it was asked for hidden states


@torch.no_grad()
@pytest.mark.parametrize("split", [True, False])
def test_logits_are_the_models_own(qwen_model, qwen_chat, examples, batch, split, monkeypatch) -> None:
    monkeypatch.setattr(qwen_model, "kdsuite_traits", Traits(split=split), raising=False)
    vocabulary = len(qwen_chat.token_bytes)
    picked, _ = supervised_logits(qwen_model, batch, batch.distinct, vocabulary)
    own = own_logits(qwen_model, examples, qwen_chat.pad_id)[batch.distinct, :vocabulary]
    torch.testing.assert_close(picked, own, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_what_a_model_does_to_its_logits_behind_the_head_is_done(qwen_chat, examples, batch) -> None:
    torch.manual_seed(0)
    capped = AutoModelForCausalLM.from_config(
        Gemma2Config(
            vocab_size=2048, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.05,
        )
    ).eval()  # fmt: skip
    picked, _ = supervised_logits(capped, batch, batch.on_target, 2048)
    assert picked.abs().max() <= 0.05
    own = own_logits(capped, examples, qwen_chat.pad_id)[batch.on_target]
    torch.testing.assert_close(picked, own, atol=1e-5, rtol=1e-4)


def test_nothing_as_wide_as_the_vocabulary_is_built_for_other_positions(qwen_model, batch) -> None:
    """The head sees the supervised positions only."""
    seen: list[torch.Size] = []
    hook = qwen_model.get_output_embeddings().register_forward_hook(lambda m, i, out: seen.append(out.shape))
    try:
        supervised_logits(qwen_model, batch, batch.on_target, 8)
    finally:
        hook.remove()
    assert [shape.numel() // shape[-1] for shape in seen] == [int(batch.on_target.sum())]

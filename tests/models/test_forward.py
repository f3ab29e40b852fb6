"""The head only where it is needed, and a trunk that gives the states of the whole model."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from kdsuite.models.forward import Trunk, check_head, head, supervised_states
from kdsuite.models.offline import tiny_qwen2
from kdsuite.tasks.batching import collate
from kdsuite.tasks.encoding import encode
from kdsuite.tasks.registry import TASKS


@pytest.fixture(params=["sst2", "squad"])
def batch(request, qwen_chat, sst2_settings, squad_settings):
    chosen = {"sst2": sst2_settings, "squad": squad_settings}[request.param]
    task = TASKS[request.param]
    return collate(encode(task, qwen_chat, task.load(chosen, "validation")[:5], chosen), qwen_chat.pad_id)


@pytest.mark.parametrize("layers", [(1,), (2,), (3,), (1, 2), (1, 3)])
def test_a_trunk_gives_the_states_of_the_whole_model(qwen_model, batch, layers) -> None:
    with torch.no_grad():
        _, whole = supervised_states(qwen_model, batch, layers)
        cut = Trunk(qwen_model, max(layers)).states(batch, layers)
    for one, other in zip(cut, whole, strict=True):
        torch.testing.assert_close(one, other)


def test_a_second_trunk_gives_the_same_states_as_the_first(qwen_chat, batch) -> None:
    """Of a model whose hidden states nobody asked for before: capturing is set up once for all."""
    torch.manual_seed(1)
    fresh = tiny_qwen2(qwen_chat.tokenizer, width=32, layers=3, heads=2).eval()
    with torch.no_grad():
        one, two = (Trunk(fresh, 2).states(batch, (1, 2)) for _ in range(2))
        _, whole = supervised_states(fresh, batch, (1, 2))
    for first, second, expected in zip(one, two, whole, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, expected)


def test_a_trunk_runs_no_layer_above_its_top_and_leaves_the_model_whole(qwen_model, batch) -> None:
    ran: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, layer in enumerate(qwen_model.model.layers, start=1)
    ]
    try:
        Trunk(qwen_model, 2).states(batch, (2,))
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == [1, 2]
    assert len(qwen_model.model.layers) == 3
    assert type(qwen_model.model.norm).__name__ == "Qwen2RMSNorm"


def test_states_and_head_give_the_models_own_logits(qwen_model, qwen_chat, batch) -> None:
    with torch.no_grad():
        states, _ = supervised_states(qwen_model, batch)
        whole = qwen_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=batch.attention_mask
        ).logits[batch.rows, batch.columns]
    vocabulary = len(qwen_chat.token_bytes)
    torch.testing.assert_close(head(qwen_model, states, vocabulary), whole[:, :vocabulary])


def test_a_model_that_changes_its_logits_behind_the_head_is_refused(qwen_model, qwen_chat) -> None:
    check_head(qwen_model, len(qwen_chat.token_bytes))
    capped = AutoModelForCausalLM.from_config(
        Gemma2Config(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.05,
        )
    )  # fmt: skip
    with pytest.raises(ValueError, match="post-processes its logits"):
        check_head(capped, 64)

"""The training loop: accumulation changes nothing, bad numbers end a run, seeds mean something, history is kept."""

from __future__ import annotations

import copy
import csv
from dataclasses import replace

import pytest
import torch

from kdsuite.config import TrainingSettings
from kdsuite.errors import RunError
from kdsuite.methods.terms import Distiller, OnTarget
from kdsuite.runtime import device
from kdsuite.runtime.process import seed_everything
from kdsuite.tasks.encoding import encode
from kdsuite.tasks.presets import Squad, Sst2
from kdsuite.train.loop import HISTORY, train

TASKS = {"sst2": Sst2(), "squad": Squad()}


@pytest.fixture
def lesson(llama_chat, squad_settings):
    task = TASKS["squad"]
    return encode(task, llama_chat, task.load(squad_settings, "train")[:22], squad_settings)


def learn(model, chat, examples, tmp_path, seed=42, evaluate=None, keep_best=lambda: None, **settings):
    student = copy.deepcopy(model).requires_grad_(True)
    distiller = Distiller(student, len(chat.token_bytes), {"ce": OnTarget(1.0)})
    fields = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1} | settings
    seed_everything(seed)
    choice = device.choose("cpu", "float32", 1)
    record = train(
        distiller, examples, chat.pad_id, TrainingSettings(**fields), choice, seed, tmp_path,
        evaluate=evaluate, keep_best=keep_best,
    )  # fmt: skip
    return student, record


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    llama_model, llama_chat, lesson, tmp_path
) -> None:
    one, first = learn(llama_model, llama_chat, lesson, tmp_path)
    two, second = learn(llama_model, llama_chat, lesson, tmp_path)
    other, _ = learn(llama_model, llama_chat, lesson, tmp_path, seed=123)
    assert torch.equal(weights(one), weights(two))
    assert [r["loss"] for r in first.history] == [r["loss"] for r in second.history]
    assert not torch.equal(weights(one), weights(other))


def test_accumulated_micro_batches_train_like_the_whole_batch(
    llama_model, llama_chat, lesson, tmp_path
) -> None:
    whole, _ = learn(llama_model, llama_chat, lesson, tmp_path)
    pieces, record = learn(llama_model, llama_chat, lesson, tmp_path, micro_batch_size=2)
    assert record.steps == 6  # 22 examples in batches of 8, twice
    torch.testing.assert_close(weights(pieces), weights(whole), atol=2e-5, rtol=1e-4)


def test_the_history_has_the_parts_of_the_loss_and_the_dev_metric_of_each_epoch(
    llama_model, llama_chat, lesson, tmp_path
) -> None:
    metrics = iter([10.0, 30.0, 20.0])
    kept: list[int] = []
    _, record = learn(
        llama_model,
        llama_chat,
        lesson,
        tmp_path,
        epochs=3,
        evaluate=lambda: next(metrics),
        keep_best=lambda: kept.append(1),
    )
    assert record.dev == [10.0, 30.0, 20.0]
    assert record.best_epoch == 2 and len(kept) == 2
    assert record.examples == 66
    record.write_history(tmp_path / "history.csv")
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert tuple(rows[0]) == HISTORY
    assert [float(r["dev_metric"]) for r in rows if r["dev_metric"]] == [10.0, 30.0, 20.0]
    assert all(r["loss_ce"] and not r["loss_kd"] for r in rows if r["loss"])


def test_loss_goes_down(llama_model, llama_chat, lesson, tmp_path) -> None:
    _, record = learn(llama_model, llama_chat, lesson, tmp_path, epochs=12, learning_rate=5e-3)
    losses = [r["loss"] for r in record.history if "loss" in r]
    assert losses[-1] < 0.8 * losses[0]


def test_a_loss_that_is_not_finite_ends_the_run_with_its_reason(
    llama_model, llama_chat, lesson, tmp_path
) -> None:
    broken = copy.deepcopy(llama_model)
    with torch.no_grad():
        broken.model.embed_tokens.weight[5] = float("nan")
        broken.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="not finite at step 1"):
        learn(broken, llama_chat, lesson, tmp_path)


def test_nothing_but_a_trained_model_is_left_on_disk(llama_model, llama_chat, lesson, tmp_path) -> None:
    learn(llama_model, llama_chat, lesson, tmp_path / "scratch")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def out_of_memory_beyond(model, examples: int, backward: bool = False) -> list[int]:
    """Let a model run out of memory with more examples than that; the sizes it is tried with."""
    sizes: list[int] = []

    def fail(grad: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("out of memory, in the backward pass")

    def forward(module, args, kwargs, output) -> None:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > examples and not backward:
            raise torch.OutOfMemoryError("out of memory")
        if sizes[-1] > examples and output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(fail)

    model.base_model.register_forward_hook(forward, with_kwargs=True)
    return sizes


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_a_batch_too_large_for_the_memory_is_halved_and_trains_the_same_weights(
    llama_model, llama_chat, lesson, tmp_path, backward: bool, micro_batch_size: int | None
) -> None:
    settings = {"micro_batch_size": micro_batch_size, "learning_rate": 2e-4}
    whole, whole_record = learn(llama_model, llama_chat, lesson, tmp_path, **settings)
    small = copy.deepcopy(llama_model)
    sizes = out_of_memory_beyond(small, 2, backward)
    pieces, record = learn(small, llama_chat, lesson, tmp_path, **settings)
    assert record.micro_batch_size == 2 and whole_record.micro_batch_size is None
    assert max(sizes) == (micro_batch_size or 8) and set(sizes[3:]) <= {1, 2}
    assert (record.steps, record.examples) == (whole_record.steps, whole_record.examples)
    assert record.supervised_tokens == whole_record.supervised_tokens
    torch.testing.assert_close(weights(pieces), weights(whole), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        [row["loss"] for row in record.history if "loss" in row],
        [row["loss"] for row in whole_record.history if "loss" in row],
    )


def test_one_example_too_large_for_the_memory_fails_the_run_with_what_to_do(
    llama_model, llama_chat, lesson, tmp_path
) -> None:
    small = copy.deepcopy(llama_model)
    out_of_memory_beyond(small, 0)
    with pytest.raises(RunError, match="a single example; set gradient_checkpointing, or lower max_length"):
        learn(small, llama_chat, lesson, tmp_path)


def test_a_gradient_that_is_not_finite_ends_the_run(llama_model, llama_chat, lesson, tmp_path) -> None:
    """The loss is finite, its gradient is not."""
    broken = copy.deepcopy(llama_model)
    broken.model.register_forward_hook(
        lambda module, args, output: (
            output.last_hidden_state.register_hook(lambda grad: grad * float("inf")) and None
        )
    )
    with pytest.raises(RunError, match="grad_norm not finite at step 1; lower the learning rate"):
        learn(broken, llama_chat, lesson, tmp_path)


def test_a_batch_without_any_supervised_token_is_refused(llama_model, llama_chat, lesson, tmp_path) -> None:
    masked = [replace(example, sources=[], targets=[], choices=[], spans=[]) for example in lesson[:8]]
    with pytest.raises(RunError, match="a batch has no supervised token"):
        learn(llama_model, llama_chat, masked, tmp_path)

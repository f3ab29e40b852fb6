"""The training loop: accumulation changes nothing, bad numbers end a run, seeds mean something, history is kept."""

from __future__ import annotations

import copy
import csv
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from kdsuite.config import TrainingSettings, task_section
from kdsuite.errors import RunError
from kdsuite.methods.terms import Distiller, OnTarget
from kdsuite.runtime import device
from kdsuite.runtime.process import seed_everything
from kdsuite.tasks.batching import LengthGroupedSampler, collate
from kdsuite.tasks.encoding import encode
from kdsuite.tasks.example import task_of
from kdsuite.train import loop
from kdsuite.train.checkpoint import HISTORY, Training
from kdsuite.train.loop import Material, train

TASKS = {"sst2": task_of("sst2", task_section("sst2")), "squad": task_of("squad", task_section("squad"))}


@pytest.fixture
def lesson(llama_chat, squad_settings):
    task = TASKS["squad"]
    return encode(task_of(task.name, squad_settings), llama_chat, task_of(task.name, squad_settings).load("train")[:22])


def learn(model, chat, examples, seed=42, evaluate=None, keep_best=lambda: None, dtype="float32", **settings):
    student = copy.deepcopy(model).requires_grad_(True)
    distiller = Distiller(student, len(chat.token_bytes), {"ce": OnTarget(1.0)})
    fields = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1} | settings
    seed_everything(seed)
    choice = device.choose("cpu", dtype, 1)
    material = Material(examples, chat.pad_id, TrainingSettings(**fields), seed)
    record = train(distiller, material, choice, evaluate, keep_best)
    return student, record


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(llama_model, llama_chat, lesson) -> None:
    one, first = learn(llama_model, llama_chat, lesson)
    two, second = learn(llama_model, llama_chat, lesson)
    other, _ = learn(llama_model, llama_chat, lesson, seed=123)
    assert torch.equal(weights(one), weights(two))
    assert [r["loss"] for r in first.history] == [r["loss"] for r in second.history]
    assert not torch.equal(weights(one), weights(other))


def test_accumulated_micro_batches_train_like_the_whole_batch(llama_model, llama_chat, lesson) -> None:
    whole, _ = learn(llama_model, llama_chat, lesson)
    pieces, record = learn(llama_model, llama_chat, lesson, micro_batch_size=2)
    assert record.steps == 6  # 22 examples in batches of 8, twice
    torch.testing.assert_close(weights(pieces), weights(whole), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize("epochs", [2, 1.5])
def test_every_digit_is_that_of_the_plainest_loop_that_can_be_written(
    llama_model, llama_chat, lesson, epochs: float, micro_batch_size: int | None
) -> None:
    """Batches in the sampler's order, summed losses over the step's tokens, clipping, AdamW, rates up and down."""
    batch_size, peak, warmup = 8, 1e-3, 0.3
    settings = {"epochs": epochs, "warmup_ratio": warmup, "micro_batch_size": micro_batch_size}
    trained, record = learn(llama_model, llama_chat, lesson, learning_rate=peak, max_grad_norm=0.5, **settings)

    student = copy.deepcopy(llama_model).requires_grad_(True).train()
    distiller = Distiller(student, len(llama_chat.token_bytes), {"ce": OnTarget(1.0)})
    optimizer = torch.optim.AdamW(student.parameters(), lr=peak, weight_decay=0.0, fused=True)
    sampler, rows = LengthGroupedSampler([len(e) for e in lesson], batch_size, seed=42), []
    total = math.ceil(epochs * 3)  # 22 examples are 3 steps
    rising = math.ceil(warmup * total)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for indices in list(sampler)[: total - len(rows)]:
            step, loss = len(rows), torch.zeros(())
            tokens = sum(len(lesson[i].targets) for i in indices)
            for at in range(0, len(indices), micro_batch_size or batch_size):
                piece = [lesson[i] for i in indices[at : at + (micro_batch_size or batch_size)]]
                part = distiller(collate(piece, llama_chat.pad_id), None)["ce"] / tokens
                part.backward()
                loss += part.detach()
            norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 0.5)
            share = step / rising if step < rising else (total - step) / (total - rising)
            optimizer.param_groups[0]["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad()
            rows.append((step + 1, float(loss), float(norm), peak * share))
    columns = "step", "loss", "grad_norm", "learning_rate"
    assert [tuple(row[c] for c in columns) for row in record.history] == rows
    assert torch.equal(weights(trained), weights(student))


def test_parts_of_a_loss_from_outside_have_columns_behind_the_others(tmp_path) -> None:
    record = Training([{"step": 1, "loss": 2.0, "loss_on_policy": 0.5, "seconds": 0.1}])
    record.write_history(tmp_path / "history.csv")
    [row] = csv.DictReader((tmp_path / "history.csv").open())
    assert tuple(row) == (*HISTORY, "loss_on_policy") and row["loss_on_policy"] == "0.5"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_one_process_trains_in_several_precisions(llama_model, llama_chat, lesson, dtype: str) -> None:
    lower, _ = learn(llama_model, llama_chat, lesson, dtype="bfloat16")
    other, _ = learn(llama_model, llama_chat, lesson, dtype=dtype)
    assert torch.equal(weights(lower), weights(other)) == (dtype == "bfloat16")


def test_the_history_has_the_parts_of_the_loss_and_the_dev_metric_of_each_epoch(
    llama_model, llama_chat, lesson, tmp_path
) -> None:
    metrics = iter([10.0, 30.0, 20.0])
    kept: list[int] = []
    _, record = learn(
        llama_model, llama_chat, lesson, epochs=3, evaluate=lambda: next(metrics), keep_best=lambda: kept.append(1)
    )
    assert record.dev == [10.0, 30.0, 20.0]
    assert record.best_epoch == 2 and len(kept) == 2
    assert record.examples == 66
    record.write_history(tmp_path / "history.csv")
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert tuple(rows[0]) == HISTORY
    assert [float(r["dev_metric"]) for r in rows if r["dev_metric"]] == [10.0, 30.0, 20.0]
    assert all(r["loss_ce"] and not r["loss_kd"] for r in rows if r["loss"])


def test_loss_goes_down(llama_model, llama_chat, lesson) -> None:
    _, record = learn(llama_model, llama_chat, lesson, epochs=12, learning_rate=5e-3)
    losses = [r["loss"] for r in record.history if "loss" in r]
    assert losses[-1] < 0.8 * losses[0]


def test_a_loss_that_is_not_finite_ends_the_run_with_its_reason(llama_model, llama_chat, lesson) -> None:
    broken = copy.deepcopy(llama_model)
    with torch.no_grad():
        broken.model.embed_tokens.weight[5] = float("nan")
        broken.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="not finite at step 1"):
        learn(broken, llama_chat, lesson)


def test_nothing_but_a_trained_model_is_left_on_disk(llama_model, llama_chat, lesson, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    learn(llama_model, llama_chat, lesson)
    assert not list(tmp_path.rglob("*"))


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
    llama_model, llama_chat, lesson, backward: bool, micro_batch_size: int | None
) -> None:
    settings = {"micro_batch_size": micro_batch_size, "learning_rate": 2e-4}
    whole, whole_record = learn(llama_model, llama_chat, lesson, **settings)
    small = copy.deepcopy(llama_model)
    sizes = out_of_memory_beyond(small, 2, backward)
    pieces, record = learn(small, llama_chat, lesson, **settings)
    assert record.micro_batch_size == 2 and whole_record.micro_batch_size is None
    assert max(sizes) == (micro_batch_size or 8) and set(sizes[3:]) <= {1, 2}
    assert (record.steps, record.examples) == (whole_record.steps, whole_record.examples)
    assert record.supervised_tokens == whole_record.supervised_tokens
    torch.testing.assert_close(weights(pieces), weights(whole), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        [row["loss"] for row in record.history if "loss" in row],
        [row["loss"] for row in whole_record.history if "loss" in row],
        atol=0,
        rtol=1e-6,
    )


def test_one_example_too_large_for_the_memory_fails_the_run_with_what_to_do(llama_model, llama_chat, lesson) -> None:
    small = copy.deepcopy(llama_model)
    out_of_memory_beyond(small, 0)
    with pytest.raises(RunError, match="a single example; set gradient_checkpointing, or lower max_length"):
        learn(small, llama_chat, lesson)


def test_a_gradient_that_is_not_finite_ends_the_run(llama_model, llama_chat, lesson) -> None:
    """The loss is finite, its gradient is not."""
    broken = copy.deepcopy(llama_model)
    broken.model.register_forward_hook(
        lambda module, args, output: output.last_hidden_state.register_hook(lambda grad: grad * float("inf")) and None
    )
    with pytest.raises(RunError, match="grad_norm not finite at step 1; lower the learning rate"):
        learn(broken, llama_chat, lesson)


class InFloat16(Accelerator):
    """As on a GPU in float16, on this CPU: a real scaler of the loss, which begins at `scale`."""

    def __init__(self, scale: float, **given: Any):
        super().__init__(**given | {"mixed_precision": "fp16"})
        self.native_amp, self.scaler = True, torch.amp.GradScaler("cpu", init_scale=scale)


def test_a_step_that_overflows_in_float16_is_left_out_and_the_schedule_waits(
    llama_model, llama_chat, lesson, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(loop, "Accelerator", partial(InFloat16, 2.0**26))
    _, record = learn(llama_model, llama_chat, lesson, epochs=8, warmup_ratio=0.0)
    rows = [row for row in record.history if "loss" in row]
    skipped = sum("grad_norm" not in row for row in rows)
    assert 1 <= skipped < len(rows) == 24
    assert all("grad_norm" not in row for row in rows[:skipped])  # until the scale is low enough
    assert all(math.isfinite(row["grad_norm"]) for row in rows[skipped:])
    assert {row["learning_rate"] for row in rows[:skipped]} == {1e-3} == {rows[skipped]["learning_rate"]}
    assert rows[skipped + 1]["learning_rate"] < 1e-3
    assert rows[-1]["loss"] < rows[0]["loss"]
    record.write_history(tmp_path / "history.csv")
    assert next(csv.DictReader((tmp_path / "history.csv").open()))["grad_norm"] == ""


def test_a_gradient_that_no_scale_makes_finite_ends_a_run_in_float16_too(
    llama_model, llama_chat, lesson, monkeypatch
) -> None:
    broken = copy.deepcopy(llama_model)
    broken.model.register_forward_hook(
        lambda module, args, output: output.last_hidden_state.register_hook(lambda grad: grad * float("inf")) and None
    )
    monkeypatch.setattr(loop, "Accelerator", partial(InFloat16, 4.0))
    with pytest.raises(RunError, match="grad_norm not finite at step 3; lower the learning rate"):
        learn(broken, llama_chat, lesson)


def test_a_batch_without_any_supervised_token_is_refused(llama_model, llama_chat, lesson) -> None:
    masked = [replace(example, sources=[], targets=[], choices=[], spans=[]) for example in lesson[:8]]
    with pytest.raises(RunError, match="a batch has no supervised token"):
        learn(llama_model, llama_chat, masked)

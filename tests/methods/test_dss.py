"""Distilling step by step: two texts, two means, each with its own gradient; nothing else of a training changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from kdsuite.config import Settings, TrainingSettings, task_section
from kdsuite.methods.b0 import B0
from kdsuite.methods.base import Pair
from kdsuite.methods.dss import DSS
from kdsuite.methods.terms import Distiller
from kdsuite.runtime import device
from kdsuite.runtime.environment import capture
from kdsuite.runtime.process import seed_everything
from kdsuite.tasks.encoding import Encoded, encode, encode_rationales
from kdsuite.tasks.example import task_of
from kdsuite.train.checkpoint import Checkpoints
from kdsuite.train.loop import Loop, Material, train

CHOICE = device.choose("cpu", "float32", 1)


@pytest.fixture(params=["sst2", "squad"])
def lesson(request: pytest.FixtureRequest, llama_chat) -> tuple[list[Encoded], list[Encoded]]:
    """Gold answers to 22 questions, and the reasons of all but each third."""
    sizes = {"train_size": 40, "dev_size": 10, "validation_size": 20}
    task = task_of(request.param, task_section(request.param, sizes))
    examples = task.load("train")[:22]
    said = {e.id: (f"because of {e.target} {i}", i % 2 == 0) for i, e in enumerate(examples) if i % 3}
    return encode(task, llama_chat, examples), encode_rationales(
        task.explaining("Why?"), llama_chat, examples, said, 20
    )


@pytest.fixture
def learn(llama_model, llama_chat, settings: Settings):
    def run(method: Any, point: dict[str, float], material: Material, checkpoints: Any = None, stop: int = 0) -> Any:
        seed_everything(42)
        student = copy.deepcopy(llama_model).requires_grad_(True)
        distiller = Distiller(student, len(llama_chat.token_bytes), method.loss(settings, point, Pair()))

        def advance(step: int, of: int) -> None:
            if step == stop:
                raise InterruptedError

        record = train(distiller, material, CHOICE, advance=advance, checkpoints=checkpoints)
        return torch.cat([p.detach().flatten() for p in student.parameters()]), record

    return run


def material(chat: Any, examples: list[Encoded], beside: list[Encoded] | tuple[()] = (), **changed: Any) -> Material:
    fields = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1, "checkpoint_minutes": 1e-9}
    return Material(examples, chat.pad_id, TrainingSettings.model_validate(fields | changed), 42, beside=beside)


def test_a_weight_of_0_is_b0_bit_for_bit(learn, lesson, llama_chat) -> None:
    ours, record = learn(DSS, {"rationale_weight": 0.0}, material(llama_chat, lesson[0]))
    theirs, other = learn(B0, {}, material(llama_chat, lesson[0]))
    assert torch.equal(ours, theirs)
    drop = [{k: v for k, v in row.items() if k != "seconds"} for row in record.history]
    assert drop == [{k: v for k, v in row.items() if k != "seconds"} for row in other.history]


def test_the_answers_are_b0s_and_the_reasons_come_beside_them(learn, lesson, llama_chat) -> None:
    answers, reasons = lesson
    ours, record = learn(DSS, {"rationale_weight": 0.5}, material(llama_chat, answers, reasons))
    theirs, other = learn(B0, {}, material(llama_chat, answers))
    assert not torch.equal(ours, theirs)
    assert (record.steps, record.examples) == (other.steps, other.examples)
    first, plain = record.history[0], other.history[0]
    assert first["loss_ce"] == plain["loss"], "before the first step both are the same model, on the same batch"
    assert first["loss"] == pytest.approx(first["loss_ce"] + 0.5 * first["loss_rationale"], rel=1e-6)
    more = sum(len(e.targets) for e in reasons)
    assert record.supervised_tokens == other.supervised_tokens + 2 * more  # in two epochs


@pytest.mark.parametrize("micro", [None, 4])
def test_the_gradient_is_that_of_each_text_by_itself(lesson, llama_model, llama_chat, settings, micro) -> None:
    """⟨CE⟩ over the batch's answers and w·⟨CE⟩ over its reasons, whatever pieces it is read in."""
    answers, reasons = lesson

    def gradient(method: Any, point: dict[str, float], own: Material, batch: list[Encoded]) -> torch.Tensor:
        student = copy.deepcopy(llama_model).requires_grad_(True)
        loss = method.loss(settings, point, Pair())
        loop = Loop(Distiller(student, len(llama_chat.token_bytes), loss), own, CHOICE, print)
        loop._backward(batch)
        return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])

    batch, ids = answers[:7], {e.id for e in answers[:7]}
    both = gradient(
        DSS, {"rationale_weight": 0.5}, material(llama_chat, answers, reasons, micro_batch_size=micro), batch
    )
    answered = gradient(B0, {}, material(llama_chat, answers), batch)
    explained = gradient(B0, {}, material(llama_chat, reasons), [e for e in reasons if e.id in ids])
    torch.testing.assert_close(both, answered + 0.5 * explained, rtol=1e-4, atol=1e-6)


def test_a_batch_without_any_reason_is_b0s(lesson, llama_model, llama_chat, settings) -> None:
    answers, reasons = lesson
    explained = {e.id for e in reasons}
    alone = [e for e in answers if e.id not in explained]
    losses = []
    for method, point, beside in ((DSS, {"rationale_weight": 1.0}, reasons), (B0, {}, ())):
        distiller = Distiller(
            copy.deepcopy(llama_model), len(llama_chat.token_bytes), method.loss(settings, point, Pair())
        )
        distiller.requires_grad_(True)
        loop = Loop(distiller, material(llama_chat, answers, beside), CHOICE, print)
        losses.append(float(loop._backward(alone)[1]["loss"]))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("stop", [1, 4])
def test_a_training_that_was_stopped_goes_on_exactly(learn, lesson, llama_chat, tmp_path, stop: int) -> None:
    own, point = material(llama_chat, *lesson), {"rationale_weight": 1.0}
    whole, record = learn(DSS, point, own)
    checkpoints = Checkpoints(tmp_path, 1e-9, capture(CHOICE))
    with pytest.raises(InterruptedError):
        learn(DSS, point, own, checkpoints, stop)
    resumed, again = learn(DSS, point, own, checkpoints)
    assert torch.equal(whole, resumed)
    assert [row["loss_rationale"] for row in again.history] == [row["loss_rationale"] for row in record.history]

"""Training goes on where it was stopped: the same weights, history and metric, whatever happened in between."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdsuite.config import LoraSettings, TrainingSettings, task_section
from kdsuite.methods.alignment import map_vocabulary
from kdsuite.methods.targets import TeacherTargets
from kdsuite.methods.terms import Distiller, Divergence, Features, OnTarget
from kdsuite.models.loading import trainable
from kdsuite.runtime import device
from kdsuite.runtime.environment import capture
from kdsuite.runtime.process import seed_everything
from kdsuite.store.files import atomic_write_record, read_json
from kdsuite.store.layout import MANIFEST as STATE
from kdsuite.tasks.encoding import encode
from kdsuite.tasks.example import task_of
from kdsuite.teacher.local import LocalTeacher, OutputSettings
from kdsuite.train.checkpoint import TENSORS, Checkpoints, Training
from kdsuite.train.loop import Material, train

TASKS = {"sst2": task_of("sst2", task_section("sst2")), "squad": task_of("squad", task_section("squad"))}

ALWAYS, NEVER = 1e-9, 1e9  # minutes between checkpoints
LORA = LoraSettings(r=4, alpha=8, dropout=0.2)  # its dropout draws random numbers in every step


class Lesson:
    """A training of 12 steps in two epochs of 22 and 2 examples, with a real metric after each."""

    def __init__(self, folder: Path, student: Any, chat: Any, settings: Any, teacher: Any = None, **options: Any):
        self.folder, self.student, self.chat, self.options = folder, student, chat, options
        task = TASKS["squad"]
        self.texts = task_of(task.name, settings).load("train")[:22]
        self.examples, self.settings, self.teacher = (
            encode(task_of(task.name, settings), chat, self.texts),
            settings,
            teacher,
        )
        self.said: list[str] = []

    def checkpoints(self, minutes: float, **changes: Any) -> Checkpoints:
        environment = capture(device.choose("cpu", "float32", 1)) | changes
        return Checkpoints(self.folder, minutes, environment, self.said.append)

    def model(self) -> Any:
        student = copy.deepcopy(self.student)
        seed_everything(42)
        model = trainable(student, self.options.get("lora", LoraSettings(enabled=False)))
        if self.options.get("recomputed"):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model

    def distiller(self, model: Any) -> tuple[Distiller, TeacherTargets | None]:
        size = len(self.chat.token_bytes)
        if self.teacher is None:
            return Distiller(model, size, {"ce": OnTarget(1.0)}), None
        teacher, chat = self.teacher
        encoded = encode(task_of("squad", self.settings), chat, self.texts)
        known = {e.id: e for e in encoded}
        states = LocalTeacher(teacher, chat, OutputSettings(layers=(2,)), known=known)
        if "divergence" in self.options:
            terms = {"ce": OnTarget(1.0), "kd": Divergence(1.0, 2.0, self.options["divergence"])}
            heard = LocalTeacher(teacher, chat, OutputSettings(16, temperatures=(2.0,)), known=known)
            return Distiller(model, size, terms), TeacherTargets(heard, map_vocabulary(chat, self.chat), 2.0, ())
        terms = {"ce": OnTarget(1.0), "feature": Features(1.0, "cosine", [(1, 2)], [(16, 32)])}
        targets = TeacherTargets(states, None, None, (2,))  # pyright: ignore[reportArgumentType]
        return Distiller(model, size, terms), targets

    def learn(
        self, minutes: float = NEVER, stop: Callable[[int], None] = lambda step: None, **changes: Any
    ) -> tuple[dict[str, torch.Tensor], Training]:
        model = self.model()
        distiller, targets = self.distiller(model)
        fields = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "logging_steps": 2}
        settings = TrainingSettings(**fields | self.options.get("training", {}))
        logged: list[Mapping[str, float]] = []
        record = train(
            distiller, Material(self.examples, self.chat.pad_id, settings, 42, targets),
            device.choose("cpu", "float32", 1),
            evaluate=lambda: float(next(iter(model.parameters())).sum()), advance=lambda step, of: stop(step),
            checkpoints=self.checkpoints(minutes, **changes), say=self.said.append,
            log=logged.append,
        )  # fmt: skip
        assert logged == record.history  # those of before it was stopped, too, each once
        return {name: p.detach() for name, p in distiller.named_parameters()} | distiller.terms.state_dict(), record


@pytest.fixture(params=["full", "lora", "features", "taid", "accumulated"])
def lesson(request, tmp_path, llama_model, llama_chat, qwen_model, qwen_chat, squad_settings) -> Lesson:
    options: dict[str, Any] = {
        "lora": {"lora": LORA},
        "features": {"teacher": (qwen_model, qwen_chat)},
        "taid": {"teacher": (qwen_model, qwen_chat), "divergence": "taid"},
        "accumulated": {"lora": LORA, "training": {"micro_batch_size": 2}},
    }.get(request.param, {})
    return Lesson(tmp_path, llama_model, llama_chat, squad_settings, **options)


@pytest.fixture
def plain(tmp_path, llama_model, llama_chat, squad_settings) -> Lesson:
    return Lesson(tmp_path, llama_model, llama_chat, squad_settings, lora=LORA)


def killed_at(*steps: int) -> Callable[[int], None]:
    """Raises as soon as one of the steps is done, before its checkpoint is written."""
    left = set(steps)

    def stop(step: int) -> None:
        if step in left:
            left.remove(step)
            raise InterruptedError

    return stop


def told(record: Training) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in record.history]


def assert_same(one: tuple[dict[str, torch.Tensor], Training], two: tuple[dict[str, torch.Tensor], Training]) -> None:
    assert one[0].keys() == two[0].keys()
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0])
    assert told(one[1]) == told(two[1])
    for name in ("dev", "best_epoch", "steps", "examples", "supervised_tokens"):
        assert getattr(one[1], name) == getattr(two[1], name)


@pytest.mark.parametrize("steps", [(1,), (4,), (7, 8, 10)], ids=str)
def test_a_killed_training_ends_exactly_as_one_that_was_not(lesson: Lesson, steps: tuple[int, ...]) -> None:
    undisturbed = lesson.learn()
    stop = killed_at(*steps)
    for _ in steps:
        with pytest.raises(InterruptedError):
            lesson.learn(ALWAYS, stop)
        assert len(lesson.checkpoints(ALWAYS).there()) == (steps != (1,))
    assert_same(lesson.learn(ALWAYS), undisturbed)
    assert any("going on at step" in line for line in lesson.said) == (steps != (1,))


def test_activations_that_are_computed_again_train_the_same_weights(lesson: Lesson) -> None:
    """As `gradient_checkpointing` has it: hidden states that are read, dropout and schedules are those of one pass."""
    kept = lesson.learn()
    lesson.options["recomputed"], passes = True, []
    lesson.student = copy.deepcopy(lesson.student)
    lesson.student.model.layers[0].self_attn.register_forward_hook(lambda *about: passes.append(1))
    assert_same(lesson.learn(), kept)
    assert len(passes) >= 2 * kept[1].steps


def test_an_epochs_end_is_gone_on_from_without_evaluating_it_again(plain: Lesson) -> None:
    undisturbed = plain.learn()
    with pytest.raises(InterruptedError):
        plain.learn(ALWAYS, killed_at(7))
    [folder] = plain.checkpoints(ALWAYS).there()
    assert folder.name == "checkpoint-00000006"  # six steps are an epoch
    assert_same(plain.learn(ALWAYS), undisturbed)


def test_a_finished_training_is_not_done_again_and_its_checkpoint_is_small(plain: Lesson) -> None:
    _, record = plain.learn(ALWAYS)
    [folder] = plain.checkpoints(ALWAYS).there()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20_000
    untouched, again = plain.learn(ALWAYS, killed_at(*range(1, 20)))
    assert not again.trained_here
    assert told(again) == told(record) and again.dev == record.dev
    assert all(not weight.any() for name, weight in untouched.items() if "lora_B" in name)
    plain.checkpoints(ALWAYS).clear()
    assert plain.checkpoints(ALWAYS).there() == []


def test_a_training_shorter_than_the_interval_writes_nothing(plain: Lesson) -> None:
    plain.learn(minutes=10)
    assert not [path for path in plain.folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_the_step_with_a_checkpoint(plain: Lesson, number: int, capfd) -> None:
    undisturbed = plain.learn()

    def stop(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        plain.learn(NEVER, stop)
    assert [folder.name for folder in plain.checkpoints(NEVER).there()] == ["checkpoint-00000004"]
    assert "stopping after this step; once more stops at once" in capfd.readouterr().err
    assert plain.said[-1] == "stopped after step 4 of 12"
    assert_same(plain.learn(NEVER), undisturbed)


def test_a_second_signal_ends_at_once(plain: Lesson) -> None:
    def stop(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second signal did not end it")

    with pytest.raises(KeyboardInterrupt):
        plain.learn(NEVER, stop)
    assert plain.checkpoints(NEVER).there() == []


def test_a_signal_in_the_last_evaluation_keeps_what_was_trained(plain: Lesson) -> None:
    def stop(step: int) -> None:
        if step == 12:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        plain.learn(NEVER, stop)
    _, record = plain.learn(NEVER)
    assert (record.steps, record.trained_here) == (12, False)


@pytest.fixture
def stopped(plain: Lesson) -> Lesson:
    with pytest.raises(InterruptedError):
        plain.learn(ALWAYS, killed_at(5))
    return plain


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a bit of a tensor": lambda folder: flip(folder / TENSORS, -5),
    "a bit of the state": lambda folder: flip(folder / STATE, 400),
    "half of the tensors": lambda folder: os.truncate(folder / TENSORS, 2000),
    "half of the state": lambda folder: os.truncate(folder / STATE, 300),
    "no tensors": lambda folder: (folder / TENSORS).unlink(),
    "no state": lambda folder: (folder / STATE).unlink(),
    "an empty state": lambda folder: (folder / STATE).write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_not_used(stopped: Lesson, damage: str) -> None:
    [folder] = stopped.checkpoints(ALWAYS).there()
    DAMAGES[damage](folder)
    assert stopped.checkpoints(ALWAYS).latest() is None
    assert "checkpoint-00000004" in stopped.said[-1] and "is not used" in stopped.said[-1]
    assert not folder.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat16"},
        {"device": "cuda"},
        {"libraries": dict.fromkeys(["torch", "transformers", "accelerate", "peft"], "0")},
    ],
)
def test_another_environment_begins_anew_and_says_why(stopped: Lesson, change: dict[str, Any]) -> None:
    assert stopped.checkpoints(ALWAYS, **change).latest() is None
    assert "was" in stopped.said[-1] and stopped.said[-1].endswith("the run begins anew")


def test_other_threads_go_on_with_a_warning_of_their_effect(stopped: Lesson) -> None:
    assert stopped.checkpoints(ALWAYS, threads=7).latest() is not None
    assert "threads was 1, is 7" in stopped.said[-1] and "last digits" in stopped.said[-1]


def test_a_checkpoint_of_more_devices_than_there_are_is_gone_on_from(
    plain: Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written where one process saw four GPUs and MPS, gone on from where a worker has one GPU, and another system."""
    undisturbed, restored = plain.learn(), []
    with monkeypatch.context() as there:
        there.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.get_rng_state() for _ in range(4)])
        there.setattr(torch.backends.mps, "is_available", lambda: True)
        there.setattr(torch.mps, "get_rng_state", torch.get_rng_state)
        with pytest.raises(InterruptedError):
            plain.learn(ALWAYS, killed_at(5))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda.random, "set_rng_state", lambda state, index: restored.append(index))
    assert_same(plain.learn(ALWAYS), undisturbed)
    assert restored == [0]


def test_other_weights_of_the_best_epoch_than_it_was_written_with_begin_anew(stopped: Lesson) -> None:
    [folder] = stopped.checkpoints(ALWAYS).there()
    atomic_write_record(folder / STATE, read_json(folder / STATE) | {"best": "those of another epoch"})
    assert stopped.checkpoints(ALWAYS).latest() is None
    assert "best epoch" in stopped.said[-1]


def test_a_checkpoint_of_an_earlier_version_is_not_gone_on_from(stopped: Lesson) -> None:
    [folder] = stopped.checkpoints(ALWAYS).there()
    (folder / STATE).rename(folder / "state.json")
    assert stopped.checkpoints(ALWAYS).latest() is None
    assert folder.name in stopped.said[-1] and "is not used" in stopped.said[-1]
    assert not folder.exists()


def test_a_full_disk_costs_the_checkpoint_but_not_the_training(plain: Lesson, monkeypatch) -> None:
    undisturbed = plain.learn()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert_same(plain.learn(ALWAYS), undisturbed)
    assert any("No space left on device; it goes on without" in line for line in plain.said)
    assert not [path for path in plain.folder.rglob("*") if path.is_file()]


def test_only_what_is_trained_is_kept(stopped: Lesson) -> None:
    [folder] = stopped.checkpoints(ALWAYS).there()
    names = {name.split(".", 1)[1] for name in load_file(folder / TENSORS) if name.startswith("weights.")}
    assert names and all("lora_" in name for name in names)

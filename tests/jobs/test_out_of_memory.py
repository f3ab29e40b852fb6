"""Where memory runs out: smaller batches, then the fallback teacher, and both are on record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdsuite import pipeline
from kdsuite.config import Settings
from kdsuite.models import loading
from kdsuite.models.costs import Shape, weight_bytes
from kdsuite.models.loading import save_trained
from kdsuite.runtime.progress import Progress
from kdsuite.store.records import Registry


@pytest.fixture(scope="module")
def folders(tmp_path_factory, qwen_model, qwen_chat, llama_model, llama_chat) -> dict[str, Path]:
    """A teacher, and a smaller model that is its fallback and the student."""
    made = {name: tmp_path_factory.mktemp("models") / name for name in ("large", "small")}
    for folder in made.values():
        folder.mkdir()
    save_trained(qwen_model, qwen_chat, made["large"])
    save_trained(llama_model, llama_chat, made["small"])
    return made


@pytest.fixture
def run(folders: dict[str, Path], tmp_path: Path):
    """Run the stages up to training; the teacher answers four examples at once."""

    def _run(*methods: str, fallback: bool = True) -> pipeline.Outcome:
        section = {
            "train_size": 12, "dev_size": 4, "validation_size": 6, "max_length": 400, "quality_floor": 0,
            "max_new_tokens": 4, "training": {"epochs": 1, "batch_size": 4},
        }  # fmt: skip
        teacher = {"name": str(folders["large"]), "batch_size": 4}
        models = {
            "teacher": teacher | ({"fallback": str(folders["small"])} if fallback else {}),
            "students": {"S1": {"name": str(folders["small"])}},
            "lora": {"enabled": False},
        }
        tree = {"threads": 1, "seeds": [42], "tasks": {"squad": section}, "models": models}
        kd1 = {"temperatures": [2], "alphas": [0.5], "top_k": 8}
        settings = Settings.model_validate(tree | {"kd1": kd1, "methods": methods or ["KD1"]})
        return pipeline.run(settings, tmp_path, ("cache", "train"), progress=Progress.silent())

    return _run


def limit(monkeypatch: pytest.MonkeyPatch, name: str, most: int) -> list[int]:
    """A real model under this name, on a device that has room for so many examples; the sizes it was tried with."""
    load, sizes = loading.load_model, []

    def out_of_memory(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def with_little_memory(source: Any, *place: Any) -> Any:
        model = load(source, *place)
        if source.name == name:
            model.base_model.register_forward_pre_hook(out_of_memory, with_kwargs=True)
        return model

    monkeypatch.setattr(loading, "load_model", with_little_memory)
    return sizes


def record(results: Path, run_id: str) -> dict[str, Any]:
    found = Registry(results).read(run_id)
    assert found is not None
    return found


def test_the_teacher_answers_fewer_at_once_and_the_record_says_how_many(run, monkeypatch, tmp_path) -> None:
    sizes = limit(monkeypatch, "large", 2)
    outcome = run("KD2")
    assert outcome.failed == []
    assert 2 in sizes and 2 < max(sizes) <= 4
    teacher = record(tmp_path, "KD2_squad_S1_seed42")["teacher"]
    assert (teacher["name"], teacher["stands_in"]) == ("large", None)
    assert teacher["quality"]["batch_size"] == 2


def test_enough_memory_leaves_no_mark(run, tmp_path) -> None:
    run()
    assert "batch_size" not in record(tmp_path, "KD1_squad_S1_T2_a0.5_seed42")["teacher"]["quality"]
    assert not (tmp_path / "models" / "teacher_fallback.json").exists()


def test_a_teacher_too_large_for_one_example_is_replaced_and_later_invocations_know(run, monkeypatch, tmp_path) -> None:
    sizes = limit(monkeypatch, "large", 0)
    assert run().failed == []
    teacher = record(tmp_path, "KD1_squad_S1_T2_a0.5_seed42")["teacher"]
    assert teacher["name"] == "small"
    assert "one example at a time is too much for the memory of cpu" in teacher["stands_in"]
    plan = json.loads((tmp_path / "raw_runs" / "plan.json").read_text())
    planned = {run["run_id"]: run["fingerprint"] for run in plan["runs"]}
    assert planned["KD1_squad_S1_T2_a0.5_seed42"] == record(tmp_path, "KD1_squad_S1_T2_a0.5_seed42")["fingerprint"]
    sizes.clear()
    again = run()
    assert (again.completed, again.failed, sizes) == (0, [], [])


def test_without_a_fallback_the_teachers_run_fails_and_says_why(run, monkeypatch, tmp_path) -> None:
    limit(monkeypatch, "large", 0)
    outcome = run("B0", fallback=False)
    assert ("teacher of squad", "one example at a time is too much for the memory of cpu") in outcome.failed
    assert record(tmp_path, "teacher_squad")["status"] == "failed"
    assert record(tmp_path, "B0_squad_S1_seed42")["status"] == "completed"


def test_weights_that_do_not_fit_are_known_before_they_are_loaded(run, folders, monkeypatch, tmp_path) -> None:
    large, small = (json.loads((f / "config.json").read_text()) for f in folders.values())
    between = (weight_bytes(Shape.of(large), "float32") + weight_bytes(Shape.of(small), "float32")) // 2
    monkeypatch.setattr(loading, "memory_bytes", lambda device: (between, between))
    sizes = limit(monkeypatch, "large", 99)
    assert run().failed == []
    model = record(tmp_path, "teacher_squad")["model"]
    assert model["name"] == "small"
    assert "its weights need" in model["stands_in"]
    assert sizes == []


def test_a_student_takes_fewer_at_once_and_the_record_says_how_many(run, monkeypatch, tmp_path) -> None:
    sizes = limit(monkeypatch, "small", 2)
    assert run("B0").failed == []
    assert record(tmp_path, "B0_squad_S1_seed42")["timing"]["micro_batch_size"] == 2
    assert max(sizes) > 2


def test_a_student_too_large_for_one_example_fails_with_what_to_change(run, monkeypatch) -> None:
    limit(monkeypatch, "small", 0)
    reasons = dict(run("B0").failed)
    assert reasons["B0_squad_S1_seed42"] == (
        "out of memory with a single example; set gradient_checkpointing, or lower max_length"
    )
    assert "one example at a time is too much for the memory of cpu" in reasons["zero-shot_squad_S1"]

"""The suite end to end, on tiny real models: everything is run, skipped when done, failed loudly when it must."""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdsuite import cli, pipeline
from kdsuite.config import TEACHER, Settings, changed, task_section
from kdsuite.errors import ModelError, OutOfMemory, RunError
from kdsuite.executors.serial import Place, Settle
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.job import Done, Job
from kdsuite.runtime.progress import Progress
from kdsuite.store.records import Registry
from kdsuite.tasks.example import task_of

STAGES = ("prepare", "cache", "train")


def make(models: dict[str, Path], **sections) -> Settings:
    """One seed, one KD1 cell, a handful of examples."""
    training = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3}
    sizes = {"train_size": 24, "dev_size": 8, "validation_size": 12, "max_length": 400, "quality_floor": 0}
    task = sizes | {"training": training, "max_new_tokens": 4}
    tree = {
        "threads": 1,
        "seeds": [42],
        "tasks": {"sst2": task, "squad": task},
        "models": {
            "teacher": {"name": str(models["teacher"])},
            "students": {"S1": {"name": str(models["student"])}},
            "lora": {"enabled": False},
        },
        "kd1": {"temperatures": [2.0], "alphas": [0.5], "top_k": 16},
    }
    return Settings.model_validate(tree | sections)


def run(settings: Settings, results: Path, stages=STAGES, **narrow) -> pipeline.Outcome:
    return pipeline.run(settings, results, stages, progress=Progress.silent(), **narrow)


@pytest.fixture(scope="module")
def done(tmp_path_factory, models) -> tuple[Path, pipeline.Outcome]:
    results = tmp_path_factory.mktemp("results")
    return results, run(make(models, methods=["B0", "KD1", "KD2", "KD3", "KD1+KD3"]), results)


def test_every_planned_run_is_completed_with_finite_metrics_on_the_same_ids(done) -> None:
    results, outcome = done
    assert outcome.failed == []
    records = {r["run_id"]: r for r in Registry(results).records()}
    assert len(records) == 2 * (2 + 5)
    for run_id, record in records.items():
        assert record["status"] == "completed"
        assert all(math.isfinite(v) for split in record["metrics"].values() for v in split.values())
        lines = (results / "raw_runs" / run_id / "predictions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        ids = [json.loads(line)["id"] for line in lines]
        split = results / "processed_data" / record["spec"]["task"] / "validation.jsonl"
        assert ids == [json.loads(line)["id"] for line in split.read_text(encoding="utf-8").split("\n")[:-1]]


def test_training_and_reported_examples_are_disjoint(done) -> None:
    results, _ = done
    for folder in (results / "processed_data").iterdir():
        groups = {
            split: {json.loads(line)["group"] for line in (folder / f"{split}.jsonl").read_text().split("\n")[:-1]}
            for split in ("train", "dev", "validation")
        }
        assert not groups["train"] & groups["dev"]
        assert not groups["train"] & groups["validation"]
        assert not groups["dev"] & groups["validation"]


def test_the_parts_of_each_methods_loss_are_in_its_history(done) -> None:
    results, _ = done
    parts = {
        "B0": set(),
        "KD1": {"loss_kd"},
        "KD2": set(),
        "KD3": {"loss_feature"},
        "KD1+KD3": {"loss_kd", "loss_feature"},
    }
    for record in Registry(results).records():
        method = record["spec"]["method"]
        if method in parts:
            with (results / "raw_runs" / record["run_id"] / "history.csv").open() as stream:
                filled = {name for row in csv.DictReader(stream) for name, value in row.items() if value}
            assert {"loss_kd", "loss_feature"} & filled == parts[method]


def test_distillation_runs_know_what_their_teacher_has_cost_and_a_second_look_costs_nothing(done, models) -> None:
    results, _ = done
    costs = {r["run_id"]: (r.get("teacher") or {}).get("seconds") for r in Registry(results).records()}
    assert costs["B0_sst2_S1_seed42"] is None
    assert costs["KD1_sst2_S1_T2_a0.5_seed42"] == costs["KD3_sst2_S1_l1_seed42"] > 0
    [counted] = (results / "teacher_cache" / "sst2").glob("*/seconds.json")
    before = counted.read_bytes()
    run(make(models, methods=["B0", "KD1", "KD2", "KD3", "KD1+KD3"]), results, ("cache",))
    assert counted.read_bytes() == before


def test_a_second_invocation_trains_nothing(done, models) -> None:
    results, first = done
    again = run(make(models, methods=["B0", "KD1", "KD2", "KD3", "KD1+KD3"]), results)
    assert (again.completed, again.failed) == (0, [])
    assert again.skipped == first.completed + first.skipped


@pytest.mark.parametrize(
    "name", ["models/B0_sst2_S1_seed42/model.safetensors", "raw_runs/B0_sst2_S1_seed42/predictions.jsonl"]
)
def test_a_run_whose_files_were_altered_is_done_again_with_the_same_result(done, models, tmp_path, name) -> None:
    shutil.copytree(done[0], tmp_path / "r")
    path = tmp_path / "r" / name
    written = path.read_bytes()
    middle = len(written) // 2
    path.write_bytes(written[:middle] + bytes([written[middle] ^ 1]) + written[middle + 1 :])
    again = run(make(models, methods=["B0", "KD1", "KD2", "KD3", "KD1+KD3"]), tmp_path / "r")
    assert (again.completed, again.failed) == (1, [])
    assert path.read_bytes() == written


def test_too_little_room_for_checkpoints_is_told_before_training(tmp_path, models, monkeypatch) -> None:
    monkeypatch.setattr("kdsuite.store.files.free_bytes", lambda path: 1000)
    outcome = run(make(models, methods=["B0"]), tmp_path, ("prepare", "train"), tasks=["sst2"])
    reasons = dict(outcome.failed)
    assert "MB for its weights and checkpoints, but only 0 MB are free" in reasons["B0_sst2_S1_seed42"]
    assert not list(tmp_path.glob("raw_runs/*/history.csv"))


def test_alpha_one_trains_exactly_as_b0(tmp_path, models) -> None:
    kd1 = {"temperatures": [4.0], "alphas": [1.0], "top_k": 16}
    run(make(models, kd1=kd1, methods=["B0", "KD1"]), tmp_path, tasks=["sst2"])
    b0, one = (tmp_path / "models" / name for name in ("B0_sst2_S1_seed42", "KD1_sst2_S1_T4_a1_seed42"))
    weights, same = load_file(b0 / "model.safetensors"), load_file(one / "model.safetensors")
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_a_changed_setting_makes_a_new_run_and_keeps_the_old_record(tmp_path, models) -> None:
    narrow = {"tasks": ["sst2"], "methods": ["B0"]}
    run(make(models, methods=["B0"]), tmp_path, **narrow)
    old = Registry(tmp_path).read("B0_sst2_S1_seed42")
    assert old is not None
    changed = make(models, methods=["B0"])
    training = {"epochs": 1, "batch_size": 8, "learning_rate": 2e-3}
    tree = changed.model_dump()
    tree["tasks"]["sst2"]["training"] |= training
    outcome = run(Settings.model_validate(tree), tmp_path, **narrow)
    assert outcome.completed == 1
    kept = tmp_path / "raw_runs" / f"B0_sst2_S1_seed42--{old['fingerprint'][:8]}" / "run.json"
    assert json.loads(kept.read_text())["fingerprint"] == old["fingerprint"]


def test_weights_that_are_not_finite_are_told_before_any_work(tmp_path, models) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in models["student"].iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(models["student"] / "model.safetensors")
    first = next(name for name in tensors if "mlp" in name)
    save_file(
        tensors | {first: torch.full_like(tensors[first], float("nan"))}, broken / "model.safetensors", {"format": "pt"}
    )
    results = tmp_path / "results"
    with pytest.raises(ModelError, match="'broken' gives logits that are not finite"):
        run(make(models | {"student": broken}, methods=["B0"]), results, tasks=["sst2"])
    assert Registry(results).records() == []


def test_kd2_is_refused_below_the_quality_floor_and_the_others_go_on(tmp_path, models) -> None:
    tree = make(models, methods=["B0", "KD2"]).model_dump()
    tree["tasks"]["squad"]["quality_floor"] = 99
    outcome = run(Settings.model_validate(tree), tmp_path, tasks=["squad"])
    [(run_id, reason)] = outcome.failed
    assert run_id == "KD2_squad_S1_seed42"
    assert "below the floor of 99" in reason and "tasks.squad.quality_floor" in reason


def test_lora_trains_an_adapter_and_leaves_the_base_as_it_was(tmp_path, models) -> None:
    lora = {"enabled": True, "r": 4, "alpha": 8, "dropout": 0.0}
    tree = make(models, methods=["B0", "KD3"]).model_dump()
    tree["models"]["lora"] = lora
    outcome = run(Settings.model_validate(tree), tmp_path, tasks=["squad"])
    assert outcome.failed == []
    folder = tmp_path / "models" / "B0_squad_S1_seed42"
    assert (folder / "adapter_model.safetensors").exists()
    assert not (folder / "model.safetensors").exists()
    record = Registry(tmp_path).read("B0_squad_S1_seed42")
    assert record is not None
    assert 0 < record["model"]["trainable_parameters"] < record["model"]["parameters"]


def test_nothing_pickled_is_written(done) -> None:
    results, _ = done
    assert not [p for p in results.rglob("*") if p.suffix in {".bin", ".pt", ".pth", ".pkl"}]


def test_a_loss_that_is_not_finite_fails_the_command_with_exit_code_1(tmp_path, models, capsys) -> None:
    """An absurd learning rate, through the command line: real numbers that overflow, not a planted error."""
    task = "{train_size: 24, dev_size: 8, validation_size: 12, max_length: 400, quality_floor: 0, training: "
    task += "{epochs: 8, batch_size: 4, learning_rate: 1.0e+30, max_grad_norm: 1.0e+30, warmup_ratio: 0.0}}"
    (tmp_path / "c.yaml").write_text(
        f"threads: 1\nseeds: [42]\nmethods: [B0]\ntasks: {{sst2: {task}}}\n"
        f"models: {{teacher: {{name: {models['teacher']}}}, students: {{S1: {{name: {models['student']}}}}}, "
        "lora: {enabled: false}}\n"
    )
    results = tmp_path / "results"
    code = cli.main(["train", "--config", str(tmp_path / "c.yaml"), "--results", str(results)])
    assert code == 1
    said = capsys.readouterr().err
    assert "failed: B0_sst2_S1_seed42: " in said and "not finite" in said
    record = Registry(results).read("B0_sst2_S1_seed42")
    assert record is not None and record["status"] == "failed" and "not finite" in record["reason"]
    assert (results / "raw_runs" / "zero-shot_sst2_S1" / "predictions.jsonl").exists()


def test_tasks_of_one_kind_can_be_told_apart_by_their_titles() -> None:
    sst2, squad = (task_of(name, task_section(name)) for name in ("sst2", "squad"))
    assert pipeline.titled({"mine": sst2, "fragen": squad}) == {"mine": "SST-2", "fragen": "SQuAD"}
    assert pipeline.titled({"a": sst2, "b": sst2}) == {"a": "SST-2 (a)", "b": "SST-2 (b)"}


def test_a_report_does_not_stop_at_what_others_write_meanwhile(tmp_path, one_task, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "kdsuite.report.build", SimpleNamespace(build_report=lambda *_: ["drawn"]))
    benchmarks = tmp_path / "raw_runs" / "benchmarks"
    benchmarks.mkdir(parents=True)
    (benchmarks / ".tmp-12-0a1b2c3d-mine.json").symlink_to("gone")
    assert run(one_task, tmp_path, ("report",)).summary_lines == ["drawn"]


@pytest.mark.parametrize(("stage", "done"), [("cache", 2), ("train", 2 + 2 * (1 + 2))])
@pytest.mark.parametrize("first", [None, RunError("the server is gone")])
def test_what_the_first_teacher_did_is_not_counted_with_what_its_fallback_does(
    tmp_path, one_task, models, stage: str, done: int, first: RunError | None
) -> None:
    """The first task is done, or fails; for the second the teacher is too large."""
    tree = one_task.model_dump()
    tree["tasks"]["second"] = tree["tasks"]["mine"]
    tree["models"]["teacher"]["fallback"] = str(models["student"])
    said: list[Exception | None] = [first, OutOfMemory("too large")]

    def result(job: Job) -> Done:
        if job.spec.method == TEACHER and said and (error := said.pop(0)):
            raise error
        return Done(job.title)

    @contextmanager
    def executor(bench: Bench) -> Iterator[Place]:
        def place(jobs: Sequence[Job], settle: Settle) -> None:
            for job in jobs:
                settle(job, partial(result, job))

        yield place

    outcome = run(Settings.model_validate(tree), tmp_path, (stage,), executor=executor)
    assert (outcome.completed, outcome.skipped, outcome.failed) == (done, 0, [])


def test_a_report_is_built_anew_where_what_it_tells_of_a_task_was_changed(tmp_path, one_task, monkeypatch) -> None:
    built = []

    def build_report(results: Path, *_: object) -> list[str]:
        built.append((results / "report.html").write_text("a page"))
        return ["drawn"]

    monkeypatch.setitem(sys.modules, "kdsuite.report.build", SimpleNamespace(build_report=build_report))
    for title, times in (("Films", 1), ("Films", 1), ("Reviews", 2), ("Films", 3)):
        run(changed(one_task, {"tasks.mine.title": title}), tmp_path, ("prepare", "report"))
        assert len(built) == times

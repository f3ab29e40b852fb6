"""The benchmark stage: quantized variants and other models are evaluated like everything else, and stay."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from kdsuite import pipeline
from kdsuite.benchmark import latency
from kdsuite.benchmark.variants import Variant
from kdsuite.config import LoraSettings, Settings, changed
from kdsuite.config.report import ReportSettings
from kdsuite.errors import ModelError, SettingsError
from kdsuite.extras.offline.models import tiny_llama, tiny_qwen2
from kdsuite.forecast.proportion import benchmark_rows, contestants
from kdsuite.forecast.scene import Machine, Scene
from kdsuite.forecast.times import GENERATION_OVERHEAD
from kdsuite.jobs import benchmarking
from kdsuite.jobs import models as jobs_models
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.contestants import best_runs, others, planned
from kdsuite.jobs.data import splits
from kdsuite.jobs.teaching import identity
from kdsuite.models.loading import load_chat, load_model, save_trained, trainable
from kdsuite.models.source import ModelSource
from kdsuite.plan import RunSpec, expand
from kdsuite.report.analysis import analyse
from kdsuite.report.load import load
from kdsuite.runtime.device import DeviceChoice, choose
from kdsuite.runtime.progress import Progress
from kdsuite.store.files import atomic_write_record, read_json
from kdsuite.tasks.encoding import ChatTokenizer
from machines import Rates

CPU = torch.device("cpu")
COST = ("decode_ms_per_token", "seconds_per_answer", "disk_mb")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, qwen_chat: ChatTokenizer, llama_chat: ChatTokenizer) -> Path:
    """Folders `teacher` and `student`, and `tuned`, an adapter of the teacher."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, chat, build in (("teacher", qwen_chat, tiny_qwen2), ("student", llama_chat, tiny_llama)):
        (folder / name).mkdir()
        save_trained(build(chat.tokenizer, width=64, layers=1, heads=2), chat, folder / name)
    (folder / "tuned").mkdir()
    base = load_model(ModelSource("teacher", str(folder / "teacher")), CPU, torch.float32)
    save_trained(trainable(base, LoraSettings(r=2)), qwen_chat, folder / "tuned")
    return folder


def settings(models: Path, **benchmark: Any) -> Settings:
    task = {"train_size": 16, "dev_size": 4, "validation_size": 12, "max_length": 400, "max_new_tokens": 4}
    task |= {"training": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3}}
    quick = {"batch_sizes": [1], "new_tokens": 2, "blocks": 2, "warmup": 0, "answers": 2, "memory": False}
    tree = {
        "threads": 1,
        "seeds": [42],
        "methods": ["B0"],
        "tasks": {"sst2": task, "squad": task},
        "models": {
            "teacher": {"name": str(models / "teacher")},
            "students": {"S1": {"name": str(models / "student")}, "S2": {"name": "quantized-proxy"}},
            "lora": {"enabled": False},
        },
        "benchmark": quick | benchmark,
    }
    return Settings.model_validate(tree)


def scene(settings: Settings) -> Scene:
    """On a machine on which all that takes time is transformers' own loop."""
    return Scene.of(settings, expand(settings), Machine("cpu", "float32", 10**12, Rates(math.inf, math.inf, 0.0)))


def run(settings: Settings, results: Path, *stages: str, **options: Any) -> pipeline.Outcome:
    return pipeline.run(settings, results, stages, progress=Progress.silent(), **options)


@pytest.fixture(scope="module")
def results(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    outcome = run(settings(models), folder, "prepare", "cache", "train", "benchmark")
    assert outcome.failed == []
    return folder


def rows(results: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((results / "raw_runs" / "benchmarks" / f"{name}.json").read_text())["rows"]


def predicted(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.mark.parametrize("task", ["sst2", "squad"])
def test_the_best_student_is_measured_in_fewer_bits_and_its_4_bit_form_is_s2(results: Path, task: str):
    found = {row["variant"]: row["student"] for row in rows(results, task)}
    assert found == {
        "teacher": "teacher", "S1 zero-shot": "S1", "S1 B0": "S1", "S1 B0 int8": "S1", "S2 B0 int4": "S2",
    }  # fmt: skip
    assert all(row[column] > 0 for row in rows(results, task) for column in COST)


@pytest.mark.parametrize(("task", "variant"), [("sst2", "S1 B0 int8"), ("squad", "S2 B0 int4")])
def test_a_quantized_model_is_evaluated_on_the_same_ids_with_its_predictions_kept(
    results: Path, task: str, variant: str
):
    kept = results / "raw_runs" / "benchmarks" / task / f"{variant.replace(' ', '-')}.predictions.jsonl"
    predictions = predicted(kept)
    unquantized = predicted(results / "raw_runs" / f"B0_{task}_S1_seed42" / "predictions.jsonl")
    assert [p["id"] for p in predictions] == [p["id"] for p in unquantized]
    row = next(row for row in rows(results, task) if row["variant"] == variant)
    scores = [p["scores"][row["metric"]] for p in predictions]
    assert row["metric_value"] == pytest.approx(100 * sum(scores) / len(scores))


def test_the_quality_of_a_run_is_the_one_it_recorded(results: Path):
    record = json.loads((results / "raw_runs" / "B0_squad_S1_seed42" / "run.json").read_text())
    row = next(row for row in rows(results, "squad") if row["variant"] == "S1 B0")
    assert row["metric_value"] == record["metrics"]["validation"]["f1"]


@pytest.mark.parametrize("changes", [{}, {"quantize": []}, {"quantize_top_k": 0}, {"quantize": ["int8"]}])
@pytest.mark.parametrize("proxy", [True, False])
def test_the_plan_counts_the_models_that_are_measured(models: Path, results: Path, changes: dict, proxy: bool):
    own = settings(models, **changes)
    if not proxy:
        own = changed(own, {"models.students": {"S1": {"name": str(models / "student")}}})
    bench = Bench(own, results, choose("cpu", "auto", 1), Progress.silent())
    measured = [(c.variant.student.replace("S2", "S1"), c.variant.quantization) for c in planned(bench, "sst2")]
    assert sorted(contestants(scene(own), "sst2"), key=str) == sorted(measured, key=str)


@pytest.mark.slow
def test_the_plan_counts_the_steps_that_are_measured(
    models: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    steps: list[int] = []

    def counting(model: Any, prompts: torch.Tensor, new_tokens: int, real: Any = latency.timed_generation) -> Any:
        steps.append(new_tokens)
        return real(model, prompts, new_tokens)

    monkeypatch.setattr(latency, "timed_generation", counting)
    own = settings(models, batch_sizes=[1, 2], new_tokens=4, warmup=2, answers=0, threads=[1, 2])
    shutil.copytree(results, tmp_path / "r")
    assert run(own, tmp_path / "r", "benchmark", tasks=["sst2"]).failed == []

    def planned_steps(own: Settings) -> float:
        first, *_ = benchmark_rows(scene(own), [])
        return (first.seconds or 0.0) / GENERATION_OVERHEAD

    assert planned_steps(own) == pytest.approx(sum(steps))
    with_memory = planned_steps(changed(own, {"benchmark.memory": True}))
    assert with_memory == pytest.approx(sum(steps) + 5 * 4 * 4)  # models, sizes, new tokens: whatever the threads


def test_an_evaluation_is_not_done_again_by_a_benchmark_that_was_killed_later(
    models: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    evaluated: list[str] = []

    def counting(variant: Variant, choice: DeviceChoice, real: Any = benchmarking.load) -> Any:
        evaluated.append(variant.name)
        return real(variant, choice)

    monkeypatch.setattr(benchmarking, "load", counting)
    folder = tmp_path / "r" / "raw_runs" / "benchmarks"
    shutil.copytree(results, tmp_path / "r")
    before = rows(results, "sst2")
    (folder / "sst2.json").unlink()
    kept = folder / "sst2" / "S1-B0-int8.predictions.jsonl"
    kept.write_text(kept.read_text().replace("positive", "negative", 1))
    run(settings(models), tmp_path / "r", "benchmark", tasks=["sst2"])
    assert evaluated == ["S1 B0 int8"]  # the one whose predictions were altered
    assert [row["metric_value"] for row in rows(tmp_path / "r", "sst2")] == [r["metric_value"] for r in before]
    (folder / "sst2.json").write_text("{")
    run(settings(models), tmp_path / "r", "benchmark", tasks=["sst2"])
    assert evaluated == ["S1 B0 int8"]
    monkeypatch.setattr(benchmarking, "RECORD_FORMAT", benchmarking.RECORD_FORMAT + 1)
    run(settings(models), tmp_path / "r", "benchmark", tasks=["sst2"])
    assert "S1 B0 int8" in evaluated[1:]  # scores that mean something else are not kept


def test_the_proxy_is_the_first_student_in_4_bits_whatever_their_names(models: Path, tmp_path: Path):
    tree = settings(models, quantize_top_k=0).model_dump()
    folders = {"little": str(models / "student"), "big": str(models / "teacher"), "packed": "quantized-proxy"}
    tree["models"]["students"] = {name: {"name": folder} for name, folder in folders.items()}
    bench = Bench(Settings.model_validate(tree), tmp_path, choose("cpu", "float32", 1), Progress.silent())
    for spec in expand(bench.settings, ["sst2"]):
        bench.registry.start(spec.run_id, identity(bench, spec), spec.as_dict())
        bench.registry.complete(spec.run_id, metrics={"dev": {"accuracy": 50.0}, "validation": {"accuracy": 50.0}})
    found = [(c.variant.name, c.variant.student) for c in planned(bench, "sst2") if c.variant.quantization]
    assert found == [("packed B0 int4", "packed")]
    twice = changed(bench.settings, {"benchmark.quantize": ["int4"], "benchmark.quantize_top_k": 1})
    bench = Bench(twice, tmp_path, bench.choice, bench.progress)
    found = [c.variant.name for c in planned(bench, "sst2") if c.variant.quantization]
    assert found == ["packed B0 int4", "big B0 int4"]


def test_without_the_proxy_4_bits_are_s1(models: Path, results: Path, tmp_path: Path):
    shutil.copytree(results, tmp_path / "r")
    tree = settings(models, quantize=["int4"]).model_dump()
    del tree["models"]["students"]["S2"]
    run(Settings.model_validate(tree), tmp_path / "r", "benchmark", tasks=["sst2"])
    found = {row["variant"]: row["student"] for row in rows(tmp_path / "r", "sst2")}
    assert list(found.items())[3:] == [("S1 B0 int4", "S1")]


GRID = {"seeds": [42, 123], "methods": ["B0", "KD1"], "kd1.temperatures": [2], "kd1.alphas": [0.3, 0.5, 0.7]}


def write_runs(bench: Bench, random: Random) -> None:
    """Records of a plan with holes, some of other settings, and the best of all of a former, wider grid."""
    pipeline.write_plan(bench)
    ids = [example.id for example in splits(bench, "sst2")["validation"]]
    holes = random.choice([0.1, 0.3, 0.6])
    wider = RunSpec("KD1", "sst2", "S1", 42, {"temperature": 4.0, "alpha": 0.5})
    for spec in [*expand(bench.settings, ["sst2"]), wider]:
        hole = spec is not wider and random.random() < holes
        state = random.choice(["failed", "other", None]) if hole else "completed"
        if state is None:
            continue
        fingerprint = "of then" if state == "other" else identity(bench, spec)
        folder = bench.registry.start(spec.run_id, fingerprint, spec.as_dict())
        if state == "failed":
            bench.registry.fail(spec.run_id, "no luck")
            continue
        right = [random.random() < 0.5 for _ in ids]
        rows = [
            {"id": i, "prediction": "negative", "references": ["negative"], "scores": {"accuracy": float(r)}}
            for i, r in zip(ids, right, strict=True)
        ]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        dev = 100.0 if spec is wider else random.choice([25.0, 50.0, 75.0])
        metrics = {"dev": {"accuracy": dev}, "validation": {"accuracy": 100 * sum(right) / len(right)}}
        bench.registry.complete(spec.run_id, metrics=metrics)


@pytest.mark.parametrize("seed", range(16))
def test_the_benchmark_measures_what_stands_in_the_tables(models: Path, tmp_path: Path, seed: int):
    """Whatever is on disk: holes in the grid, failed runs, runs of other settings, equal scores."""
    choice = choose("cpu", "float32", 1)
    bench = Bench(changed(settings(models), GRID), tmp_path, choice, Progress.silent())
    write_runs(bench, Random(seed))
    analysed = analyse(load(tmp_path), ReportSettings(permutations=100)).task("sst2")
    assert analysed is not None
    in_tables = {
        (cell.method, cell.student): [run.run_id for run in cell.selection.runs]
        for cell in analysed.cells
        if cell.selection.runs
    }
    measured = {
        (s.runs[0].configuration.method, s.runs[0].configuration.student): [run.run_id for run in s.runs]
        for s in best_runs(bench, "sst2")
    }
    assert measured == in_tables
    contestants = [c.run.run_id for c in planned(bench, "sst2") if c.run and not c.variant.quantization]
    assert sorted(contestants) == sorted(runs[0] for runs in in_tables.values())


def test_the_models_of_a_former_student_are_not_measured_on_the_new_one(models: Path, results: Path, tmp_path: Path):
    mine, other = tmp_path / "results", tmp_path / "other"
    shutil.copytree(results, mine)
    shutil.copytree(models / "teacher", other)
    swapped = changed(settings(models), {"models.students.S1.name": str(other)})
    assert {row["student"] for row in load(mine).benchmarks} == {"teacher", "S1", "S2"}
    run(swapped, mine, "benchmark", tasks=["sst2"])
    assert {row["student"] for row in rows(mine, "sst2")} == {"teacher"}
    notes = [note for note in load(mine).notes if "benchmarks" in note]
    assert notes == ["benchmarks/squad.json was measured with other models or settings and is left out"]
    assert {row["student"] for row in load(mine).benchmarks} == {"teacher"}


@pytest.fixture(scope="module")
def with_others(models: Path, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results with a plain model and an adapter measured beside the plan, then everything once more."""
    folder = tmp_path_factory.mktemp("others") / "r"
    shutil.copytree(results, folder)
    names = [str(models / "student"), str(models / "tuned")]
    run(settings(models), folder, "benchmark", models=names, tasks=["sst2"])
    run(settings(models), folder, "benchmark")
    return folder


def test_other_models_are_measured_with_their_quality_and_stay(results: Path, with_others: Path):
    assert rows(with_others, "sst2") == rows(results, "sst2")
    for name in ("student", "tuned"):
        for row in rows(with_others, f"sst2--{name}"):
            assert (row["variant"], row["method"], row["metric"]) == (name, "other", "accuracy")
            assert all(row[column] > 0 for column in COST)
        kept = with_others / "raw_runs" / "benchmarks" / "sst2" / f"{name}.predictions.jsonl"
        assert len(predicted(kept)) == 12
    plain, untrained = rows(with_others, "sst2--student")[0], rows(with_others, "sst2")[2]
    assert untrained["variant"] == "S1 zero-shot"
    assert plain["metric_value"] == untrained["metric_value"]
    adapter = rows(with_others, "sst2--tuned")[0]
    assert (adapter["model"], adapter["adapter_parameters"] > 0) == ("teacher", True)


def test_a_model_measured_later_bears_the_noise_between_the_times(models: Path, with_others: Path):
    path = with_others / "raw_runs" / "benchmarks" / "sst2.json"
    before = read_json(path)
    slower = [row | {"decode_ms_per_token": 100 * row["decode_ms_per_token"]} for row in before["rows"]]
    atomic_write_record(path, before | {"rows": slower})
    (with_others / "raw_runs" / "benchmarks" / "sst2--student.json").unlink()
    run(settings(models), with_others, "benchmark", models=[str(models / "student")], tasks=["sst2"])
    atomic_write_record(path, before)
    assert all(row["noise_percent"] > 500 for row in rows(with_others, "sst2--student"))


def test_other_models_come_last_in_the_report_and_not_with_other_examples(with_others: Path, tmp_path: Path):
    names = [row["variant"] for row in load(with_others).benchmarks if row["task"] == "sst2"]
    assert list(dict.fromkeys(names))[-2:] == ["student", "tuned"]
    shutil.copytree(with_others, tmp_path / "r")
    manifest = tmp_path / "r" / "processed_data" / "sst2" / "manifest.json"
    atomic_write_record(manifest, read_json(manifest) | {"key": "another"})
    changed = load(tmp_path / "r")
    assert {row["task"] for row in changed.benchmarks} == {"squad"}
    assert any("sst2--tuned.json was measured on other examples" in note for note in changed.notes)


def test_other_models_are_asked_as_their_own_template_has_it(models: Path, tmp_path: Path):
    """Whatever the plan's models are told."""
    own = changed(settings(models), {"models.students.S1.system": "Be brief."})
    bench = Bench(own, tmp_path, choose("cpu", "auto", 1), Progress.silent())
    [other] = others(bench, "sst2", [str(models / "teacher")])
    plain = load_chat(ModelSource("teacher", str(models / "teacher")))
    question = [[{"role": "user", "content": "How is it?"}]]
    assert other.chat.prompt_ids(question) == plain.prompt_ids(question)
    student = jobs_models.chat(bench, "S1")
    assert "Be brief." in student.tokenizer.decode(student.prompt_ids(question)[0])


def test_a_model_with_fewer_positions_than_the_task_needs_is_refused(models: Path, tmp_path: Path):
    shutil.copytree(models / "student", tmp_path / "short")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    bench = Bench(settings(models), tmp_path / "r", choose("cpu", "auto", 1), Progress.silent())
    with pytest.raises(ModelError, match="'short' has 64 positions, but tasks.sst2.max_length is"):
        others(bench, "sst2", [str(tmp_path / "short")])


def test_a_folder_without_tokenizer_is_refused_before_anything_is_measured(models: Path, results: Path, tmp_path: Path):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "bare").mkdir(exist_ok=True)
        shutil.copy(models / "student" / file, tmp_path / "bare" / file)
    with pytest.raises(ModelError, match="tokenizer 'bare' cannot be loaded"):
        run(settings(models), results, "benchmark", models=[str(tmp_path / "bare")])
    assert not list((results / "raw_runs" / "benchmarks").glob("*--*"))


@pytest.mark.parametrize("pair", [("a/student", "b/student"), ("my student", "my-student")])
def test_two_models_of_one_name_are_refused(models: Path, results: Path, tmp_path: Path, pair: tuple[str, str]):
    """Also where their figures would lie in one file."""
    names = [str(shutil.copytree(models / "student", tmp_path / name)) for name in pair]
    with pytest.raises(SettingsError, match="called alike"):
        run(settings(models), results, "benchmark", models=names)

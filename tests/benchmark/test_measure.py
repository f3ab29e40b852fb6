from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import GPT2Config, GPT2LMHeadModel

from kdsuite.benchmark import measure as benchmark
from kdsuite.benchmark.measure import Conditions, measure_variants
from kdsuite.benchmark.variants import Variant, load, standalone
from kdsuite.config.benchmark import BenchmarkSettings
from kdsuite.models.source import ModelSource
from kdsuite.runtime.device import DeviceChoice, choose
from kdsuite.runtime.progress import Progress

CONTRACT = """model variant device dtype batch_size prompt_tokens new_tokens first_token_ms
    decode_ms_per_token p95_ms_per_token tokens_per_second peak_memory_mb disk_mb parameters""".split()
LENGTHS = {"median": 5, "p95": 9}
QUICK = BenchmarkSettings(batch_sizes=(1, 2), new_tokens=4, blocks=2, warmup=0, memory=False)


@pytest.fixture(scope="module")
def choice() -> DeviceChoice:
    return choose("cpu", "float32", 1)


def student(models: Path, name: str = "one", quantization: str | None = None) -> Variant:
    """An adapter of the student; with "student" as its name, the student itself."""
    base = None if name == "student" else ModelSource("student", str(models / "student"))
    label = f"{name} {quantization}" if quantization else name
    source = ModelSource("student", str(models / name), base=base)
    return Variant(label, source, "sst2", "S1", "KD1", quantization)


def teacher(models: Path) -> Variant:
    return Variant("teacher", ModelSource("teacher", str(models / "teacher")), "sst2", "teacher", "teacher")


@pytest.fixture(scope="module")
def rows(models: Path, choice: DeviceChoice, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Everything at once, with memory: a teacher, two adapters, a quantized one, one that is not there."""
    missing = Variant("lost", ModelSource("lost", str(models / "lost")), "sst2", "S1", "B0")
    variants = [teacher(models), student(models), student(models, "two"), student(models, "one", "int8"), missing]
    settings = QUICK.model_copy(update={"memory": True})
    workdir = tmp_path_factory.mktemp("work")
    return measure_variants(Conditions(LENGTHS, settings, choice, workdir, Progress.silent()), variants)


def of(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["variant"] == name]


def test_every_variant_has_a_row_for_every_batch_size_and_prompt_length(rows: list[dict[str, Any]]):
    sizes = [(1, 5), (1, 9), (2, 5), (2, 9)]
    for name in ("teacher", "one", "two", "one int8", "lost"):
        assert [(row["batch_size"], row["prompt_tokens"]) for row in of(rows, name)] == sizes


def test_measured_rows_keep_the_contract_with_positive_figures(rows: list[dict[str, Any]]):
    for row in (row for row in rows if row["variant"] != "lost"):
        assert row["reason"] is None
        assert all(row[column] for column in CONTRACT)
        assert row["p95_ms_per_token"] >= row["decode_ms_per_token"] > 0
        assert row["p95_first_token_ms"] >= row["first_token_ms"] > 0
        assert row["median_ms_per_token"] >= row["decode_ms_per_token"]


def test_every_variant_emits_exactly_the_tokens_asked_for(rows: list[dict[str, Any]]):
    assert {row["new_tokens"] for row in rows if row["variant"] != "lost"} == {QUICK.new_tokens}


def test_a_model_that_cannot_be_loaded_says_why_and_the_others_go_on(rows: list[dict[str, Any]]):
    for row in of(rows, "lost"):
        assert "lost" in row["reason"]
        assert row["decode_ms_per_token"] is None
        assert row["peak_memory_mb"] is None


def test_throughput_is_that_of_whole_generations(rows: list[dict[str, Any]]):
    for row in of(rows, "one"):
        seconds = (row["first_token_ms"] + row["decode_ms_per_token"] * (row["new_tokens"] - 1)) / 1e3
        assert row["tokens_per_second"] == pytest.approx(row["batch_size"] * row["new_tokens"] / seconds)


def test_the_noise_of_a_size_stands_in_all_its_rows(rows: list[dict[str, Any]]):
    for size in {(row["batch_size"], row["prompt_tokens"]) for row in rows}:
        same = [row for row in rows if (row["batch_size"], row["prompt_tokens"]) == size]
        noise = {row["noise_percent"] for row in same if row["variant"] != "lost"}
        assert len(noise) == 1
        assert noise.pop() >= 0


def test_variants_of_one_architecture_say_how_much_they_differ(rows: list[dict[str, Any]]):
    for size in {(row["batch_size"], row["prompt_tokens"]) for row in rows}:
        same = [row for row in rows if (row["batch_size"], row["prompt_tokens"]) == size]
        one, two = (of(same, name)[0] for name in ("one", "two"))
        times = sorted(row["decode_ms_per_token"] for row in (one, two))
        assert one["spread_percent"] == two["spread_percent"]
        assert one["spread_percent"] == pytest.approx(100 * (times[1] / times[0] - 1))
        assert of(same, "teacher")[0]["spread_percent"] is None
        assert of(same, "one int8")[0]["spread_percent"] is None


def test_adapters_are_measured_merged_and_counted_apart(rows: list[dict[str, Any]]):
    for row in [*of(rows, "one"), *of(rows, "one int8")]:
        assert row["parameters"] == of(rows, "two")[0]["parameters"]
    assert of(rows, "one")[0]["adapter_parameters"] > 0
    assert of(rows, "teacher")[0]["adapter_parameters"] == 0


def test_size_on_disk_is_that_of_weight_files_in_the_dtype_of_computation(rows: list[dict[str, Any]]):
    row = of(rows, "one")[0]
    assert row["disk_mb"] == pytest.approx(4 * row["parameters"] / 1e6, rel=0.01)
    assert of(rows, "one int8")[0]["disk_mb"] < row["disk_mb"]


def test_peak_memory_holds_runtime_and_weights(rows: list[dict[str, Any]]):
    for row in (row for row in rows if row["variant"] != "lost"):
        assert row["peak_memory_mb"] > row["runtime_memory_mb"] + row["weights_mb"]


class Watched(Progress):
    """Progress that remembers which variants were visited, in order."""

    def __init__(self) -> None:
        super().__init__(live=False)
        self.visited: list[str] = []

    @contextmanager
    def work(self, *_: object, **__: object) -> Iterator[Any]:
        yield SimpleNamespace(advance=lambda note=None: self.visited.extend([note] if note else []))


def visits(models: Path, choice: DeviceChoice, workdir: Path) -> list[str]:
    progress = Watched()
    variants = [teacher(models), student(models), student(models, "two")]
    measured = measure_variants(Conditions(LENGTHS, QUICK, choice, workdir, progress), variants)
    assert all(row["decode_ms_per_token"] > 0 for row in measured)
    return progress.visited


def test_models_take_turns_and_a_student_comes_twice(models: Path, choice: DeviceChoice, tmp_path: Path):
    turns = len(LENGTHS) * len(QUICK.batch_sizes) * QUICK.blocks
    assert visits(models, choice, tmp_path) == ["teacher", "one", "two", "one"] * turns


def test_models_too_large_to_stay_loaded_together_are_loaded_in_every_block(
    models: Path, choice: DeviceChoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(benchmark, "memory_bytes", lambda device: (0, 0))
    assert visits(models, choice, tmp_path) == ["teacher", "one", "two", "one"] * QUICK.blocks


@pytest.mark.parametrize("kept", [True, False])
def test_a_model_that_a_device_without_an_error_of_its_own_cannot_hold_says_so_in_its_rows(
    models: Path, choice: DeviceChoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
):
    """As MPS and CPUs say it; what they did not run out of is raised."""
    generate, told = benchmark.latency.timed_generation, ["MPS backend out of memory (MPS allocated: 9 GB)"]

    def ends(model: Any, *about: Any) -> Any:
        if model.config.model_type == "qwen2":
            raise RuntimeError(told[0])
        return generate(model, *about)

    monkeypatch.setattr(benchmark.latency, "timed_generation", ends)
    if not kept:
        monkeypatch.setattr(benchmark, "memory_bytes", lambda device: (0, 0))
    conditions = Conditions(LENGTHS, QUICK, choice, tmp_path, Progress.silent())
    measured = measure_variants(conditions, [teacher(models), student(models)])
    assert {row["reason"] for row in of(measured, "teacher")} == {"out of memory on cpu"}
    assert all(row["tokens_per_second"] > 0 for row in of(measured, "one"))
    told[0] = "shapes cannot be multiplied"
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        measure_variants(conditions, [teacher(models)])


@pytest.mark.parametrize("memory", [True, False])
def test_a_model_with_too_few_positions_says_so_and_the_others_go_on(
    models: Path, choice: DeviceChoice, tmp_path: Path, memory: bool
):
    """Another model has its own number of them, the prompts are the first student's."""
    few = GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=32, vocab_size=300)
    GPT2LMHeadModel(few).save_pretrained(tmp_path / "few")
    variants = [Variant("few", ModelSource("few", str(tmp_path / "few")), "sst2", "other", "other"), student(models)]
    settings = QUICK.model_copy(update={"memory": memory})
    lengths = {"median": 5, "p95": 30}
    measured = measure_variants(Conditions(lengths, settings, choice, tmp_path, Progress.silent()), variants)
    said = "it has 32 positions, too few for a prompt of 30 tokens and 4 new ones; set benchmark.new_tokens"
    assert {row["reason"] for row in of(measured, "few")} == {said}
    assert all(row["tokens_per_second"] > 0 and not row["reason"] for row in of(measured, "one"))
    enough = measure_variants(Conditions({"median": 29}, settings, choice, tmp_path, Progress.silent()), variants[:1])
    assert all(row["tokens_per_second"] > 0 and not row["reason"] for row in enough)


def test_a_scheme_that_is_not_available_is_reported_in_its_rows(models: Path, choice: DeviceChoice, tmp_path: Path):
    variants = [student(models, "one", "int3"), student(models, "two")]
    measured = measure_variants(Conditions(LENGTHS, QUICK, choice, tmp_path, Progress.silent()), variants)
    assert all("int3" in row["reason"] and row["tokens_per_second"] is None for row in of(measured, "one int3"))
    assert all(row["tokens_per_second"] > 0 for row in of(measured, "two"))


def test_thread_counts_are_rows_and_the_process_keeps_its_own(models: Path, choice: DeviceChoice, tmp_path: Path):
    settings = QUICK.model_copy(update={"threads": (1, 2), "batch_sizes": (1,)})
    conditions = Conditions({"median": 5}, settings, choice, tmp_path, Progress.silent())
    measured = measure_variants(conditions, [student(models)])
    assert [row["threads"] for row in measured] == [1, 2]
    assert torch.get_num_threads() == choice.threads


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_quantized_variant_is_written_once_and_computes_near_its_original(
    models: Path, choice: DeviceChoice, tmp_path: Path, scheme: str
):
    variant = student(models, "one", scheme)
    ready = standalone(variant, choice, tmp_path)
    written = (Path(ready.source.where) / "model.safetensors").stat().st_mtime_ns
    assert standalone(variant, choice, tmp_path) == ready
    assert (Path(ready.source.where) / "model.safetensors").stat().st_mtime_ns == written
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        exact = load(student(models), choice)[0](ids).logits
        rough = load(ready, choice)[0](ids).logits
        base = load(student(models, "student"), choice)[0](ids).logits
    assert 0 < (rough - exact).norm() < 0.5 * (base - exact).norm()


def test_quantized_weights_that_were_altered_are_made_anew(models: Path, choice: DeviceChoice, tmp_path: Path):
    variant, told = student(models, "one", "int8"), []
    weights = Path(standalone(variant, choice, tmp_path).source.where) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    standalone(variant, choice, tmp_path, told.append)
    assert len(weights.read_bytes()) == len(whole)
    assert "model.safetensors missing or altered; it is quantized anew" in told[0]


def test_another_adapter_of_the_same_name_is_quantized_anew(models: Path, choice: DeviceChoice, tmp_path: Path):
    one, two = (standalone(student(models, name, "int8"), choice, tmp_path).source.where for name in ("one", "two"))
    assert one != two


@pytest.mark.parametrize("tree", [{"batchsizes": [1]}, {"batch_sizes": []}, {"new_tokens": 1}, {"quantize": ["int3"]}])
def test_settings_refuse_what_cannot_be_measured(tree: dict[str, Any]):
    with pytest.raises(ValidationError):
        BenchmarkSettings.model_validate(tree)

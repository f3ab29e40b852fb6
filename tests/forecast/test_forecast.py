"""A forecast covers every planned run, adds up, and says what fits and what to change when it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from kdsuite.config import CONFIGS, Settings, changed, load
from kdsuite.forecast.build import forecast
from kdsuite.forecast.footprint import TOKENIZER_MEMORY
from kdsuite.forecast.rows import Forecast, amount, as_json, describe, span
from kdsuite.forecast.scene import Machine, Scene
from kdsuite.forecast.speeds import Load
from kdsuite.forecast.times import GENERATION_OVERHEAD, teacher_tokens
from kdsuite.models.costs import KNOWN, Shape, shape_of
from kdsuite.plan import expand
from kdsuite.tasks.sizes import task_size
from machines import Rates

TERA = 1e12


def machine(gigabytes: float, device: str = "mps", dtype: str = "float32") -> Machine:
    return Machine(device, dtype, round(gigabytes * 1e9), Rates(TERA, TERA, 1e-12))


def thesis(mode: str) -> Settings:
    return load(CONFIGS / "experiment.yaml", mode, env_file=None)


def expected(settings: Settings, gigabytes: float = 1000, **narrow) -> Forecast:
    return forecast(settings, expand(settings, **narrow), machine(gigabytes))


@pytest.mark.parametrize("mode", ["fast", "full"])
def test_every_planned_run_is_in_exactly_one_row(mode: str) -> None:
    ids = [id for row in expected(thesis(mode)).runs for id in row.run_ids]
    assert sorted(ids) == sorted(spec.run_id for spec in expand(thesis(mode)))


def test_rows_have_the_grid_and_the_seeds() -> None:
    rows = {(row.task, row.method): row for row in expected(thesis("full")).runs}
    kd1 = rows["squad", "KD1"]
    assert (kd1.per_seed, kd1.seeds, len(kd1.run_ids)) == (16, [42, 123, 456], 48)
    assert rows["sst2", "B0"].per_seed == 1
    assert kd1.seconds == pytest.approx(48 * rows["squad", "B0"].seconds_each)


def test_time_is_operations_by_speed() -> None:
    """SST-2 B0: 500 sentences once, adapters and recomputation (3 forward passes' worth), then 1,272 answers,
    of which the first 20 tokens are read once."""
    b0 = next(row for row in expected(thesis("fast")).runs if (row.task, row.method) == ("sst2", "B0"))
    training = 3 * 2 * 1.03e9 * 500 * 54.5 / TERA
    answers = 2 * 1.03e9 * (200 + 1072) * (67 - 20) / TERA
    assert b0.seconds_each == pytest.approx(training + answers, rel=0.1)


def test_a_fraction_of_the_training_examples_takes_that_share_of_the_training_and_the_teacher_answers_once() -> None:
    whole = changed(thesis("fast"), {"benchmark.blocks": 2})
    parts = changed(whole, {"tasks.sst2.fractions": [0.1, 0.5, 1]})
    before, after = expected(whole), expected(parts)
    rows = {(row.method, row.fraction): row for row in after.runs if row.task == "sst2"}
    tenth, half, all_of_it = (rows["KD1", fraction] for fraction in (0.1, 0.5, 1))
    assert (half.per_seed, half.seeds) == (all_of_it.per_seed, all_of_it.seeds)
    assert all_of_it.seconds_each - half.seconds_each == pytest.approx(1.25 * (half.seconds_each - tenth.seconds_each))
    assert [row for row in after.runs if row.fraction == 1] == before.runs
    assert after.passes == before.passes
    assert any("KD1 on 10 %" in line for line in describe(after, machine(1000)))


def test_a_plan_of_one_method_costs_less_and_needs_no_teacher_outputs() -> None:
    everything, baseline = expected(thesis("fast")), expected(thesis("fast"), methods=["B0"])
    assert baseline.seconds < everything.seconds and baseline.bytes < everything.bytes
    assert not [row for row in baseline.disk if row.kind == "cache"]
    assert not [row for row in baseline.passes if "teacher" in row.what]


def test_labels_are_scored_and_only_answers_are_generated() -> None:
    passes = [row.what for row in expected(thesis("fast")).passes]
    assert [what.split(", ")[:2] for what in passes] == [
        ["teacher outputs", "sst2"],
        ["teacher outputs", "squad"],
        ["teacher answers", "squad"],
        ["benchmark", "sst2"],
        ["benchmark", "squad"],
    ]


def test_reasons_are_generated_once_and_learned_in_longer_batches() -> None:
    settings = changed(thesis("fast"), {"methods": ["B0", "DSS"], "dss.max_new_tokens": 100, "dss.weights": [0, 1]})
    told, plain = expected(settings), expected(settings, methods=["B0"])
    passes = {row.what.split(",")[0] + row.what.split(",")[1]: row for row in told.passes}
    reasons = passes["teacher rationales sst2"]
    # 500 prompts with a request of 94 characters, and 100 tokens each, 4 at a time
    assert reasons.tokens == pytest.approx(500 * (54 + 94 / 4 + 100), rel=0.05)
    steps = 125 * 100 * (2 * 7.5e9 * 4 / TERA + GENERATION_OVERHEAD)
    assert reasons.seconds == pytest.approx(steps + 2 * 7e9 * 500 * (54 + 94 / 4) / TERA, rel=0.1)
    b0, dss = (next(r for r in told.runs if (r.task, r.method) == ("sst2", name)) for name in ("B0", "DSS"))
    assert b0.seconds_each is not None and dss.seconds_each is not None
    more = 3 * 2 * 1.03e9 * 500 * (54 + 94 / 4 + 100) / TERA / 2  # of two runs one is B0's
    assert dss.seconds_each - b0.seconds_each == pytest.approx(more, rel=0.1)
    needs = [{row.stage: row.bytes for row in one.memory if "TinyLlama" in row.model} for one in (told, plain)]
    assert needs[0]["train"] > needs[1]["train"] and needs[0]["evaluate"] == needs[1]["evaluate"]
    assert not [row for row in plain.passes if "rationales" in row.what]


def test_reasons_that_leave_a_prompt_no_room_are_asked_with_a_token_at_least() -> None:
    """Such a plan cannot be run, but it can be read."""
    seen: list[int] = []

    class Seen(Rates):
        def reading(self, shape: Shape, load: Load) -> float:
            seen.append(load.tokens)
            return super().reading(shape, load)

    settings = changed(thesis("fast"), {"methods": ["DSS"], "tasks.sst2.max_length": 64, "dss.max_new_tokens": 96})
    forecast(settings, expand(settings), replace(machine(1000), speeds=Seen(TERA, TERA, 1e-12)))
    assert min(seen) >= 1


@pytest.mark.parametrize(("method", "asked"), [("DSS", "reasons"), ("GKD", "what students write")])
def test_what_a_teacher_behind_a_url_is_asked_includes(method: str, asked: str) -> None:
    small = load(CONFIGS / "small.yaml", env_file=None)

    def tokens(methods: list[str]) -> int:
        settings = changed(small, {"methods": methods})
        return teacher_tokens(Scene.of(settings, expand(settings), machine(1000)))

    more = tokens(["B0", "KD1", method]) - tokens(["B0", "KD1"])
    sizes = {task: task_size(task, small.tasks[task]) for task in small.tasks}
    if asked == "reasons":
        settings = changed(small, {"methods": ["DSS"]})
        scene = Scene.of(settings, expand(settings), machine(1000))
        [request] = scene.requests
        assert more == pytest.approx(sum(s.train * scene.explained(t, request).tokens for t, s in sizes.items()), abs=2)
    else:  # half of the batches, where answers are free
        squad = small.tasks["squad"]
        seen = len(small.seeds) * squad.training.epochs * sizes["squad"].train
        assert more == pytest.approx(0.5 * seen * sizes["squad"].tokens, abs=2)


def test_downloads_are_those_of_the_hub_in_the_dtype_that_is_stored_there(tmp_path: Path) -> None:
    sizes = {row.what: row.bytes for row in expected(thesis("full")).disk if row.kind == "download"}
    assert sizes["meta-llama/Llama-3.1-8B-Instruct"] == pytest.approx(16.1e9, rel=0.01)
    assert set(sizes) == {"meta-llama/Llama-3.1-8B-Instruct", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"}
    assert not [row for row in expected(load(env_file=None)).disk if row.kind == "download"]


def test_a_laptop_of_16_gb_is_told_what_fits_and_what_to_change() -> None:
    laptop = expected(thesis("full"), gigabytes=11.5)
    assert laptop.teacher == "Qwen/Qwen2.5-3B-Instruct"
    assert "Llama-3.1-8B-Instruct alone are more than the memory" in laptop.advice[0]
    verdicts = {(row.stage, row.model.split("/")[1][:5]): row.fits for row in laptop.memory}
    assert verdicts["cache", "Qwen2"] is False
    assert verdicts["train", "TinyL"] is True
    [line] = [line for line in laptop.advice if line.startswith("cache")]
    assert line == "cache fits with --set dtype=bfloat16"


def test_what_is_advised_does_fit() -> None:
    for gigabytes in (4, 6, 8, 12, 16, 24):
        for line in (told := expected(thesis("full"), gigabytes)).advice:
            stage, fits, sets = line.partition(" fits with ")
            if not fits:
                continue
            changes = dict(item.split("=") for item in sets.replace("--set ", "").split())
            tree = load(CONFIGS / "experiment.yaml", "full", [f"{k}={v}" for k, v in changes.items()], None)
            assert all(row.fits for row in expected(tree, gigabytes).memory if row.stage == stage), told


def test_where_nothing_helps_that_is_said_with_the_models_that_are_too_large() -> None:
    lines = {line.split(":")[0]: line for line in expected(thesis("full"), gigabytes=1).advice}
    instead = "; take a smaller model (--set models.students.S1.name=…), or a machine with more memory"
    assert lines["train"] == f"train: no setting makes it fit{instead}"


def folders(tmp_path: Path, config: str, **models: str) -> Settings:
    """A configuration with folders for models, of which only config.json matters here."""
    known = json.loads(KNOWN.read_text("utf-8"))
    for role, name in models.items():
        (tmp_path / role).mkdir()
        (tmp_path / role / "config.json").write_text(json.dumps(known[name]))
    names = {"models.teacher.name": str(tmp_path / "teacher"), "models.students.S1.name": str(tmp_path / "S1")}
    return changed(load(CONFIGS / config, env_file=None), names | {"models.teacher.fallback": None})


PAIR = {"teacher": "Qwen/Qwen2.5-1.5B-Instruct", "S1": "Qwen/Qwen2.5-0.5B-Instruct"}


@pytest.mark.parametrize("config", ["local.yaml", "small.yaml", "experiment.yaml"])
@pytest.mark.parametrize("models", [PAIR, {"S1": PAIR["S1"]}], ids=["both", "teacher missing"])
def test_a_configuration_of_folders_is_told_of_no_model_of_the_hub(
    config: str, models: dict[str, str], tmp_path: Path
) -> None:
    settings = folders(tmp_path, config, **models)
    for gigabytes in (2, 4, 8, 16, 32, 64):
        told = expected(settings, gigabytes)
        assert [line for line in told.advice if "Qwen/" in line] == []
        assert [row.what for row in told.disk if row.kind == "download"] == []
    nothing = [line for line in expected(settings, 1).advice if "no setting" in line]
    assert nothing and all("take the folder of a smaller model (--set models." in line for line in nothing)


def test_a_fallback_on_the_hub_is_not_proposed_where_the_models_are_folders(tmp_path: Path) -> None:
    settings = folders(tmp_path, "small.yaml", **PAIR)
    settings = changed(settings, {"models.teacher.fallback": PAIR["S1"], "dtype": "bfloat16"})
    lines = expected(settings, 3.3).advice
    assert any(line.startswith("cache: no setting makes it fit; take the folder") for line in lines), lines


def test_without_network_no_model_of_the_hub_is_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    def proposed() -> list[str]:
        return [line for line in expected(thesis("full"), 3).advice if "Qwen2.5-0.5B" in line]

    assert proposed()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not proposed()


@pytest.mark.parametrize(
    ("gigabytes", "stage", "key"),
    [
        (16, "cache", "tasks.squad.teacher_training.enabled=false"),
        (16, "train", "tasks.squad.training.gradient_checkpointing=true"),
        (8, "train", "models.lora.enabled=true"),
    ],
)
def test_real_models_in_the_configuration_for_tiny_ones_are_told_what_spares_memory(
    gigabytes: int, stage: str, key: str, tmp_path: Path
) -> None:
    settings = folders(tmp_path, "local.yaml", **PAIR)
    told = expected(settings, gigabytes)
    assert {row.fits for row in told.memory if row.stage == stage} == {False}
    [line] = [line for line in told.advice if line.startswith(f"{stage} fits with ")]
    sets = line.removeprefix(f"{stage} fits with ").replace("--set ", "").split()
    assert key in sets
    tree = changed(settings, {key: yaml.safe_load(value) for key, value in (s.split("=") for s in sets)})
    assert all(row.fits for row in expected(tree, gigabytes).memory if row.stage == stage)


def test_a_laptop_of_16_gb_takes_the_small_pair_in_float32_in_hours() -> None:
    """11.5 GB are what Metal lets a process have of 16; a CPU has more."""
    small = load(CONFIGS / "small.yaml", env_file=None)
    told = expected(small, 11.5)
    assert {row.fits for row in told.memory} == {True} and told.advice == []
    slow = Machine("cpu", "float32", 10**12, Rates(1e11, 1e11, 2.5e-10))  # a core
    assert 3600 < forecast(small, expand(small), slow).seconds < 86_400


def test_a_teacher_that_nearly_fits_is_told_what_spares_the_fallback() -> None:
    first = expected(thesis("full"), gigabytes=25).advice[0]
    assert first.endswith("it would fit with --set dtype=bfloat16")
    assert expected(thesis("full"), gigabytes=40).teacher == "meta-llama/Llama-3.1-8B-Instruct"


def test_an_unknown_model_has_runs_but_no_figures() -> None:
    settings = changed(thesis("fast"), {"models.students.S1.name": "nobody/knows"})
    unknown = expected(settings)
    assert {row.seconds_each is None for row in unknown.runs if row.student == "S1"} == {True}
    assert any("nobody/knows: its configuration is not on this machine" in line for line in unknown.basis)
    assert any("?" in line for line in describe(unknown, machine(1000)))


def test_a_second_student_doubles_the_runs_and_stays_in_memory() -> None:
    settings = changed(thesis("fast"), {"models.students.S2": {"name": "Qwen/Qwen2.5-0.5B-Instruct"}})
    one, two = expected(thesis("fast")), expected(settings)
    assert len([row for row in two.runs if row.student == "S2"]) == 10
    peaks = [next(r.bytes or 0 for r in f.memory if r.stage == "train") for f in (one, two)]
    assert peaks[1] - peaks[0] == 4 * 494_032_768 + TOKENIZER_MEMORY * 151_936


def test_text_and_json_have_the_same_sums() -> None:
    whole = expected(thesis("fast"), 11.5)
    tree = json.loads(as_json(whole, machine(11.5)))
    assert tree["seconds"] == pytest.approx(whole.seconds)
    assert tree["disk_bytes"] == sum(row["bytes"] for row in tree["disk"])
    assert tree["machine"] == {"device": "mps", "dtype": "float32", "memory_bytes": 11_500_000_000}
    assert describe(whole, machine(11.5))[-1] == (
        f"18 runs: about {span(whole.seconds)}, {amount(whole.bytes)} of disk"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"), (0.2, "< 1 s"), (59, "59 s"), (61, "1 min 1 s"), (600, "10 min"), (3599.9, "60 min"),
        (3700, "1 h 2 min"), (40_000, "11 h"), (90_000, "1 d 1 h"), (4e8, "13 years"),
    ],
)  # fmt: skip
def test_durations_in_words(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(None, "?"), (12, "12 B"), (1500, "1.5 kB"), (25e6, "25 MB"), (16.06e9, "16 GB")]
)
def test_amounts_in_words(size: float | None, text: str) -> None:
    assert amount(size if size is None else int(size)) == text


def test_every_students_quantized_copies_are_counted_whole_on_the_disk() -> None:
    """Linear maps in fewer bits, embedding and head as they are."""
    two = changed(thesis("fast"), {"models.students.S2": {"name": "Qwen/Qwen2.5-0.5B-Instruct"}})

    def left(settings: Settings, student: str) -> int:
        [row] = [row for row in expected(settings).disk if f"runs of {student}:" in row.what]
        assert row.bytes is not None
        return row.bytes

    for student, name in (("S1", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"), ("S2", "Qwen/Qwen2.5-0.5B-Instruct")):
        shape = shape_of(name)
        assert shape is not None
        added = left(two, student) - left(changed(two, {"benchmark.quantize": []}), student)
        tables = 4 * (shape.parameters - shape.body_parameters)
        assert added == pytest.approx(2 * ((1 + 0.5625) * shape.body_parameters + 2 * tables), rel=1e-6)


def served(settings: Settings, **teacher: object) -> Settings:
    tree = settings.model_dump()
    tree["models"]["teacher"] = {"url": "http://localhost:8000/v1", "model": "large", "tokenizer": "here"} | teacher
    return Settings.model_validate(tree)


def test_beside_a_teacher_behind_a_url_a_smaller_student_is_advised() -> None:
    settings = served(thesis("fast"))
    settings = changed(settings, {"models.students.S1.name": "Qwen/Qwen2.5-3B-Instruct", "methods": ["B0"]})
    lines = expected(settings, 5).advice
    assert any(line.startswith("benchmark fits with ") and "models.students.S1.name=" in line for line in lines), lines
    assert not [line for line in lines if "models.teacher" in line]


def test_a_teacher_behind_a_url_may_be_called_as_a_student_is() -> None:
    name = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
    told = expected(served(thesis("fast"), model=name, price_per_million_tokens=2.0))
    assert [line for line in told.basis if line.startswith(f"{name} at http://localhost:8000: about ")]
    assert [row.what for row in told.disk if row.kind == "download"] == [name]

"""A plan on a machine of the table: what it takes per GPU, side by side, through storage, and what it waits for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kdsuite import cli
from kdsuite.config import CONFIGS, Settings, changed, load
from kdsuite.errors import SettingsError
from kdsuite.forecast.build import forecast
from kdsuite.forecast.paper import GPUS, READ, TRAINED, OnPaper, machine_of
from kdsuite.forecast.placing import makespan
from kdsuite.forecast.rows import Forecast, JobRow, amount, span
from kdsuite.forecast.speeds import Load
from kdsuite.models.costs import KNOWN, Shape
from kdsuite.plan import expand

LLAMA = json.loads(KNOWN.read_text("utf-8"))["meta-llama/Llama-3.1-8B-Instruct"]
LARGE = LLAMA | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}  # Llama-3.1-70B's
H100 = OnPaper("H100-80GB", GPUS["H100-80GB"], 8)


@pytest.fixture
def full(tmp_path: Path) -> Settings:
    """The thesis experiment with a teacher of 70B parameters, of which only the configuration is here."""
    (tmp_path / "config.json").write_text(json.dumps(LARGE))
    return changed(
        load(CONFIGS / "experiment.yaml", "full", env_file=None),
        {"models.teacher.name": str(tmp_path), "models.teacher.fallback": None},
    )


def told(settings: Settings, machine: str = "8xH100-80GB") -> Forecast:
    return forecast(settings, expand(settings), machine_of(machine))


def test_a_model_is_split_over_the_fewest_gpus_that_hold_it() -> None:
    small, large = Shape.of(LLAMA), Shape.of(LARGE)
    assert (H100.split(small), H100.split(large)) == (1, 4)
    assert OnPaper("H200-141GB", GPUS["H200-141GB"], 8).split(large) == 2
    assert (
        OnPaper("L40S-48GB", GPUS["L40S-48GB"], 2).split(large) == 2
    )  # all there are; memory says that it does not fit


def test_large_batches_reach_the_stated_share_and_small_ones_wait_for_launches() -> None:
    shape = Shape.of(LLAMA)
    large, small = (Load(n, 512, 0.0) for n in (64, 1))
    assert H100.reading(shape, large) == pytest.approx(READ * H100.gpu.peak)
    assert H100.training(shape, large) == pytest.approx(TRAINED * H100.gpu.peak)
    assert H100.training(shape, Load(1, 16, 0.0)) < H100.training(shape, small) <= H100.training(shape, large)


def test_a_step_of_writing_reads_all_weights_and_splitting_costs_the_sums() -> None:
    shape = Shape.of(LLAMA)
    weights = 2 * (shape.body_parameters + shape.width * shape.vocabulary)
    assert H100.writing(shape, Load(1, 0, 1.0)) >= weights / H100.gpu.bandwidth
    large, one = Shape.of(LARGE), Load(4, 512, 0.0)
    assert H100.reading(large, one) < 4 * READ * H100.gpu.peak


def test_the_plan_has_memory_per_gpu_jobs_traffic_and_what_to_change_first(full: Settings) -> None:
    plan = told(full)
    assert plan.placed is not None
    [cache] = [row for row in plan.memory if row.stage == "cache"]
    assert cache.gpus == 4 and cache.fits and 35e9 < (cache.bytes or 0) < 45e9
    jobs = {job.what: job for job in plan.placed.jobs}
    assert sum(job.count for job in jobs.values()) == len(expand(full)) + 2 * len(full.tasks)
    asking, run = jobs["squad, asking the teacher"], jobs["squad KD1 S1"]
    cached = next(row.bytes for row in plan.disk if row.what == "teacher outputs, squad")
    assert (asking.count, asking.gpus) == (2, 4)  # a teacher on each half of the machine shares the parts
    assert asking.writes == cached // 2 and asking.reads == pytest.approx(2 * 70.6e9, rel=0.01)
    assert run.reads - jobs["squad B0 S1"].reads == cached
    first, *others = plan.placed.sooner.values()
    assert first > 0 and first >= max(others)
    assert plan.placed.seconds < plan.seconds


def test_twice_the_gpus_take_less_time_but_not_less_than_half(full: Settings) -> None:
    one, two = told(full, "8xH100-80GB").placed, told(full, "16xH100-80GB").placed
    assert one is not None and two is not None
    assert 0.5 * one.seconds <= two.seconds < one.seconds


def test_too_few_gpus_do_not_hold_a_large_teacher(full: Settings) -> None:
    assert {row.fits for row in told(full, "1xA100-80GB").memory if row.stage == "cache"} == {False}


def test_a_dtype_that_the_table_is_not_about_is_refused(full: Settings) -> None:
    with pytest.raises(SettingsError, match="dtype float32: a machine on paper computes in bfloat16"):
        told(changed(full, {"dtype": "float32"}))


@pytest.mark.parametrize("name", ["8xH100-80", "H100", "0xH100-80GB", "8x", ""])
def test_a_machine_that_is_not_in_the_table_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(SettingsError, match=r"no such machine.*say N×NAME as 8xH100-80GB, of .*A100-80GB"):
        machine_of(name)


def test_jobs_of_several_gpus_wait_until_so_many_are_free() -> None:
    one, four = JobRow("one", 5, 1, 10.0, 0, 0), JobRow("four", 1, 4, 4.0, 0, 0)
    assert makespan([one], 4) == 20.0
    assert makespan([one, four], 4) == 24.0
    assert makespan([], 4) == 0.0


def test_what_the_page_shows_is_what_the_command_prints(tmp_path: Path, capsys, monkeypatch) -> None:
    page = (CONFIGS.parent / "docs" / "scale.md").read_text("utf-8")
    page = page[page.index("## On paper") :]
    command, shown = re.findall(r"^```(?:bash)?\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[:2]
    (tmp_path / "llama-3.1-70b").mkdir()
    (tmp_path / "llama-3.1-70b" / "config.json").write_text(json.dumps(LARGE))
    monkeypatch.chdir(tmp_path)
    words = command.replace("\\\n", " ").replace("configs/", f"{CONFIGS}/").split()
    assert cli.main(words[1:]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in shown.splitlines() if line and line not in printed] == []


def test_what_the_page_says_of_its_plan_is_what_the_plan_says(full: Settings) -> None:
    page = " ".join((CONFIGS.parent / "docs" / "scale.md").read_text("utf-8").split())
    larger = changed(full, {"models.teacher.batch_size": 64, "evaluation.batch_size": 256})
    larger = changed(larger, {f"tasks.{task}.training.micro_batch_size": 16 for task in larger.tasks})
    plan, other = told(full), told(larger)
    assert plan.placed is not None and other.placed is not None
    assert f"it is {span(other.placed.seconds)} instead of {span(plan.placed.seconds)}, and then twice" in page
    cached = sum(row.bytes or 0 for row in plan.disk if row.kind == "cache")
    assert f"The cache has {amount(cached)}." in page
    read, written = (sum(job.count * getattr(job, what) for job in plan.placed.jobs) for what in ("reads", "writes"))
    assert f"All jobs read {read / 1e12:.1f} TB in all" in page and f"write {written / 1e12:.1f} TB" in page


def test_the_command_measures_nothing_and_says_what_it_assumes(full: Settings, capsys, monkeypatch) -> None:
    monkeypatch.setattr("kdsuite.forecast.calibration.Measured._seconds", None)  # would be called
    command = ["plan", "--config", str(CONFIGS / "experiment.yaml"), "--mode", "full", "--machine", "8xH100-80GB"]
    command += ["--set", f"models.teacher.name={full.models.teacher.name}", "--set", "models.teacher.fallback=null"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    expected = "on paper: 8xH100-80GB", "on each of 4", "first bottleneck:", "assumed of each H100-80GB", "side by side"
    assert [part for part in expected if part not in said] == []


SERVED = {"url": "http://localhost:8000/v1", "model": "large", "tokenizer": "somewhere"}


def test_of_a_teacher_behind_a_url_the_students_are_placed(full: Settings) -> None:
    tree = full.model_dump() | {"methods": ["B0", "KD1"]}
    tree["models"]["teacher"] = SERVED
    plan = told(Settings.model_validate(tree))
    assert plan.placed is not None and not [job for job in plan.placed.jobs if "teacher" in job.what]
    assert {"sst2 B0 S1", "squad KD1 S1"} <= {job.what for job in plan.placed.jobs}


def test_micro_batches_of_any_size_are_tried_larger(full: Settings) -> None:
    sizes = {"tasks.sst2.training.batch_size": 24, "tasks.sst2.training.micro_batch_size": 4}
    plan = told(changed(full, sizes))  # four times as many do not divide the batch, three times as many do
    assert plan.placed is not None and plan.placed.sooner["4 times the micro-batch in training"] > 0


def test_what_a_teacher_is_asked_is_told_by_the_task_whatever_that_is_called(full: Settings) -> None:
    tree = full.model_dump()
    tree["tasks"]["answers"] = tree["tasks"].pop("sst2")
    usual, named = told(full).placed, told(Settings.model_validate(tree)).placed
    assert usual is not None and named is not None
    jobs = [{job.what: job.seconds for job in plan.jobs} for plan in (usual, named)]
    assert jobs[1]["answers, asking the teacher"] == jobs[0]["sst2, asking the teacher"]


def test_jobs_on_fractions_of_the_examples_are_told_apart(full: Settings) -> None:
    plan = told(changed(full, {"tasks.sst2.fractions": [0.1, 1]}))
    assert plan.placed is not None
    names = [job.what for job in plan.placed.jobs]
    assert len(set(names)) == len(names) and "sst2 KD1 on 10 % S1" in names

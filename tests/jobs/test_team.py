"""A job over two processes is that of one but for rounding; the error, or the end, of one of them is that of all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdsuite.config import TEACHER, Settings
from kdsuite.errors import ModelError, RunError, SettingsError
from kdsuite.evaluate.predict import label_scores
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.data import encoded, evaluation_set
from kdsuite.jobs.models import base, chat, source
from kdsuite.jobs.teaching import teacher_of
from kdsuite.jobs.team import LOST, dismiss, lead
from kdsuite.jobs.training import execute
from kdsuite.models import spread
from kdsuite.models.loading import load_trained
from kdsuite.models.source import ModelSource
from kdsuite.pipeline import run
from kdsuite.plan import RunSpec, expand, refuse_unspreadable
from kdsuite.runtime import device
from kdsuite.runtime.progress import Progress, Work
from kdsuite.runtime.ranks import here
from kdsuite.teacher.local import OutputSettings
from kdsuite.train.checkpoint import Checkpoints
from spread_work import fail_at_another, five_steps

B0 = RunSpec("B0", "mine", "little", 42)


def settings_of(models: dict[str, Path], devices: int, **changes: Any) -> Settings:
    task = {"preset": "sst2", "train_size": 21, "dev_size": 8, "validation_size": 12, "max_length": 400}
    task["training"] = {"epochs": 1, "batch_size": 5, "learning_rate": 1e-2, "logging_steps": 1}
    tree: dict[str, Any] = {
        "threads": 1,
        "device": "cpu",
        "dtype": "float32",
        "devices_per_job": devices,
        "seeds": [42],
        "methods": ["B0", "KD1"],
        "tasks": {"mine": task},
        "models": {
            "teacher": {"name": str(models["teacher"])},
            "students": {"little": {"name": str(models["student"])}},
            "lora": {"dropout": 0.0},
        },
        "kd1": {"temperatures": [2.0], "alphas": [0.5], "top_k": 16},
    }
    return Settings.model_validate(tree | changes)


def bench_of(results: Path, settings: Settings) -> Bench:
    return Bench(settings, results, device.choose("cpu", "float32", 1), Progress.silent())


KEPT = OutputSettings(top_k=16, temperatures=(2.0,), layers=(1, 2, 3))


def asked_of_teacher(bench: Bench) -> list[dict[str, torch.Tensor]]:
    records = teacher_of(bench, "mine", KEPT).outputs(encoded(bench, "mine", TEACHER, "train"))
    return [{name: torch.from_numpy(values) for name, values in record.items()} for record in records]


def answers_of_teacher(bench: Bench) -> list[str]:
    teacher = replace(teacher_of(bench, "mine", OutputSettings()), max_new_tokens=8)
    return [text for text, _ in teacher.answers(encoded(bench, "mine", TEACHER, "train")[:6])]


@pytest.fixture(scope="module")
def alone(models, tmp_path_factory, float32_by_default) -> dict[str, Any]:
    """What one process makes of it."""
    bench = bench_of(tmp_path_factory.mktemp("alone"), settings_of(models, 1))
    all_weights, _, _ = five_steps(bench, adapters=False)
    weights, losses, _ = five_steps(bench)
    said = {"teacher": asked_of_teacher(bench), "answers": answers_of_teacher(bench)}
    return {"bench": bench, "weights": weights, "losses": losses, "all": all_weights, **said}


@pytest.fixture(scope="module")
def two(models, alone, tmp_path_factory) -> Iterator[Bench]:
    """The bench of a process that leads another one; who ends that has to `lead` again."""
    bench = bench_of(tmp_path_factory.mktemp("two"), settings_of(models, 2))
    lead(bench)
    yield bench
    dismiss()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 3}, "its num_key_value_heads are 3; set devices_per_job"),
        ({"model_type": "gpt2"}, "transformers has no plan for it; set devices_per_job to 1, or take another model"),
        (None, "it is an adapter; give the folder of the merged model"),
    ],
)
def test_a_teacher_that_cannot_be_divided_is_refused_before_it_is_loaded(
    models: dict[str, Path], tmp_path: Path, monkeypatch, change: dict[str, Any] | None, words: str
) -> None:
    monkeypatch.setattr(spread, "here", lambda: SimpleNamespace(size=2))
    folder = tmp_path / "teacher"
    shutil.copytree(models["teacher"], folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text()) if change != {"model_type": "gpt2"} else {}
    (folder / "config.json").write_text(json.dumps(config | (change or {})))
    source = ModelSource("big", str(folder), base=None if change else ModelSource("base", str(folder)))
    with pytest.raises(ModelError, match=rf"model 'big' \(\w+\) cannot be divided over 2 devices: {words}"):
        spread.split(source, torch.device("cpu"), torch.float32)


@pytest.mark.slow
def test_five_steps_in_shards_are_those_of_one_process(alone: dict[str, Any], two: Bench) -> None:
    everything, _, _ = five_steps(two, adapters=False)
    for name, weight in alone["all"].items():
        torch.testing.assert_close(everything[name], weight, rtol=0, atol=1e-5)
    weights, losses, least = five_steps(two)
    assert here().size == 2 and least > 0  # of every shard
    assert weights.keys() == alone["weights"].keys() and len(losses) == 5
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-5)
    assert losses == pytest.approx(alone["losses"], abs=1e-5)


@pytest.mark.slow
def test_a_divided_teacher_says_what_a_whole_one_does(alone: dict[str, Any], two: Bench) -> None:
    """Distributions, the states of every layer, answers; and no process has all of its weights."""
    said = asked_of_teacher(two)
    assert sum(p.to_local().numel() for p in base(two, TEACHER).model.layers.parameters() if hasattr(p, "to_local")) > 0
    for one, other in zip(said, alone["teacher"], strict=True):
        assert one.keys() == other.keys() > {"hidden_1", "hidden_2", "hidden_3", "topk_logprobs", "log_tail"}
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-5)
        assert all(one[f"hidden_{layer}"].abs().sum() > 0 for layer in KEPT.layers)
    assert answers_of_teacher(two) == alone["answers"] and any(alone["answers"])
    halved = [p for p in base(two, TEACHER).parameters() if p.ndim == 2]
    assert all(2 * p.to_local().numel() <= p.numel() + p.shape[-1] for p in halved)


@pytest.mark.slow
def test_an_error_of_another_process_is_told_by_the_one_that_leads(two: Bench) -> None:
    with pytest.raises(RunError, match=r"^rank 1 of 2: ValueError: a tensor of the wrong shape$"):
        fail_at_another(two)
    assert here().spent


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory, float32_by_default) -> Path:
    """What a whole command leaves that nothing happened to."""
    results = tmp_path_factory.mktemp("whole")
    outcome = run(settings_of(models, 2), results, ("prepare", "cache", "train"), progress=Progress.silent())
    assert (outcome.completed, outcome.failed) == (4, [])
    return results


@pytest.mark.slow
def test_a_command_over_two_devices_leaves_what_one_over_one_does(whole: Path, alone: dict[str, Any]) -> None:
    """The command's runs are those of the loop: B0's five steps, and what the teacher said of every example."""
    saved = load_file(whole / "models" / B0.run_id / "adapter_model.safetensors")
    assert len(saved) == len(alone["weights"])
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(saved[name.replace(".default.", ".")], weight, rtol=0, atol=1e-5)
    [shard] = whole.glob("teacher_cache/mine/*/part-00000.safetensors")
    known = torch.cat([record["topk_logprobs"] for record in alone["teacher"]])
    torch.testing.assert_close(load_file(shard)["topk_logprobs"], known, rtol=1e-5, atol=1e-5)


class Deadly(Progress):
    """After the third step of the first training, the other process is killed."""

    lines: list[str]
    killed = False

    def say(self, line: str) -> None:
        self.lines.append(line)

    def _changed(self, work: Work) -> None:
        if work.label == B0.run_id and work.done == 3 and not self.killed:
            self.killed = True
            for child in active_children():
                child.kill()
                child.join()


@pytest.mark.slow
def test_a_job_that_lost_a_process_goes_on_from_its_checkpoint(
    models, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it leaves is what it would have left, byte for byte; and one process predicts with it what two did."""
    ended: list[int] = []
    monkeypatch.setattr("kdsuite.jobs.team.os._exit", ended.append)  # who started this process would see it
    settings = settings_of(models, 2)
    monkeypatch.setattr(Checkpoints, "due", True)
    progress = Deadly.silent()
    progress.lines = []
    bench = Bench(settings, tmp_path, device.choose("cpu", "float32", 1), progress)
    lead(bench)
    with pytest.raises(RunError, match=r"^rank 1 of 2: its process has ended$"):
        execute(bench, B0)
    assert ended == [LOST]
    assert "the process of device 1 has ended, and so does what it took part in" in progress.lines
    lead(bench)
    execute(bench, B0)
    assert "going on at step 2 of 5" in progress.lines
    left, other = (results / "models" / B0.run_id / "adapter_model.safetensors" for results in (tmp_path, whole))
    assert left.read_bytes() == other.read_bytes()
    dismiss()
    came, data = source(bench, "little"), evaluation_set(bench, "mine", "little", "validation")
    model = load_trained(came, left.parent, torch.device("cpu"), torch.float32)
    scores = label_scores(model, chat(bench, "little"), data.encoded, 2, 4)
    rows = map(json.loads, (bench.layout.run(B0.run_id) / "predictions.jsonl").read_text().splitlines())
    assert scores.flatten().tolist() == pytest.approx(
        [s for row in rows for s in row["label_logprobs"].values()], abs=1e-4
    )


def test_what_cannot_be_spread_is_refused_before_anything_is_done(models) -> None:
    def refused(why: str, **changes: Any) -> None:
        settings = settings_of(models, 2, **changes)
        with pytest.raises(SettingsError, match=why):
            refuse_unspreadable(settings, expand(settings))
        alone = settings_of(models, 1, **changes)
        refuse_unspreadable(alone, expand(alone))

    refused("dtype float16 cannot be used with devices_per_job=2", dtype="float16")
    refused("device cuda:1, dtype", device="cuda:1")
    task = {"preset": "sst2", "teacher_training": {"enabled": True}}
    refused("the teacher of mine cannot be fine-tuned with devices_per_job=2", tasks={"mine": task})
    refused(r"KD3 on mine asks the teacher while it trains.*kd3\.cache=true", methods=["KD3"], kd3={"cache": False})
    refused("GKD on mine asks the teacher while it trains", methods=["GKD"], tasks={"mine": {"preset": "squad"}})
    fine = settings_of(models, 2, methods=["B0", "KD1", "KD2", "KD3", "GKD"])
    refuse_unspreadable(fine, expand(fine))


def test_more_devices_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(device.GPUS, "3,5")
    device.refuse_fewer(torch.device("cuda"), 2)
    with pytest.raises(SettingsError, match=r"devices_per_job is 3, but there is 2 \(cuda\); set it to 2 or less"):
        device.refuse_fewer(torch.device("cuda"), 3)
    with device.only(["5"]):
        assert device.gpus(torch.device("cuda")) == ["5"]
    assert device.gpus(torch.device("cuda")) == ["3", "5"]

"""The cache stage: what it depends on, what it says, what it refuses, and what KD2 learns of it."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from kdsuite import cli, pipeline
from kdsuite.config import Settings
from kdsuite.errors import SettingsError
from kdsuite.forecast.footprint import teacher_outputs
from kdsuite.forecast.scene import Machine, Scene
from kdsuite.jobs import asking, data, teaching
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.training import gather
from kdsuite.methods.terms import Distiller
from kdsuite.models.loading import save_trained
from kdsuite.plan import RunSpec, expand
from kdsuite.runtime import device
from kdsuite.runtime.progress import Progress
from kdsuite.store.records import Registry
from kdsuite.tasks import cleaning
from kdsuite.tasks import template as template_module
from kdsuite.tasks.short_answer import ShortAnswer
from kdsuite.teacher import local
from kdsuite.teacher.inspection import inspect
from kdsuite.train.loop import Loop
from machines import Rates


def make(folders: dict[str, Path], **sections: Any) -> Settings:
    task = {
        "train_size": 24, "dev_size": 8, "validation_size": 12, "max_length": 400, "quality_floor": 0,
        "max_new_tokens": 4, "training": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3},
    }  # fmt: skip
    tree = {
        "threads": 1,
        "seeds": [42],
        "tasks": {"sst2": task, "squad": task},
        "models": {
            "teacher": {"name": str(folders["teacher"])},
            "students": {"S1": {"name": str(folders["student"])}},
            "lora": {"enabled": False},
        },
        "kd1": {"temperatures": [2.0], "alphas": [0.5], "top_k": 16},
    }
    return Settings.model_validate(tree | sections)


def shop(settings: Settings, results: Path) -> Bench:
    progress = Progress.silent()
    choice = device.choose(settings.device, settings.dtype, settings.threads)
    return Bench(settings, results, choice, progress)


def run(settings: Settings, results: Path, stages=("cache", "train"), **narrow) -> pipeline.Outcome:
    return pipeline.run(settings, results, stages, progress=Progress.silent(), **narrow)


@pytest.fixture(scope="module")
def done(tmp_path_factory, models) -> Path:
    results = tmp_path_factory.mktemp("results")
    outcome = run(make(models), results, ("cache",))
    assert outcome.failed == []
    return results


def test_the_key_changes_with_all_that_the_outputs_depend_on(tmp_path, models) -> None:
    def key(task: str = "squad", **sections: Any) -> str:
        made = shop(make(models, **sections), tmp_path / "r")
        return teaching.cache_folder(made, task).name

    kd1 = {"temperatures": [2.0], "alphas": [0.5], "top_k": 16}
    base = key()
    assert key() == base
    assert key(kd1=kd1 | {"alphas": [0.1, 0.9]}) == base  # α does not concern the teacher
    assert key(kd1=kd1 | {"top_k": 8}) != base
    assert key(kd1=kd1 | {"temperatures": [2.0, 4.0]}) != base
    assert key(kd1=kd1 | {"dtype": "float16"}) != base
    assert key(kd3={"layers": "last"}) != base
    assert key(dtype="bfloat16") != base
    teacher = {"name": str(models["teacher"]), "revision": "v2"}
    students = {"S1": {"name": str(models["student"])}}
    assert key(models={"teacher": teacher, "students": students, "lora": {"enabled": False}}) != base

    assert key(seeds=[1, 2]) == base
    own = make(models).tasks["squad"].model_dump(mode="json", exclude_unset=True)
    tuned = {"squad": own | {"teacher_training": {"enabled": True}}}
    first, other = (key(tasks=tuned, seeds=seeds) for seeds in ([1, 2], [2, 1]))
    assert first != other != base  # the teacher is tuned with the first
    assert key(tasks=tuned, seeds=[1, 3]) == first

    template = tmp_path / "template"
    shutil.copytree(models["teacher"], template)
    for file in template.glob("*.jinja"):
        file.write_text(file.read_text().replace("user", "User"))
    other = {"teacher": {"name": str(template)}, "students": students, "lora": {"enabled": False}}
    assert key(models=other) != base


def test_what_standardised_logits_need_is_kept_where_they_are_asked_for_and_trained_on(tmp_path, models) -> None:
    kd1 = {"temperatures": [2.0], "alphas": [0.5], "top_k": 16}
    asked = make(models, kd1=kd1 | {"standardise": True, "divergence": "taid"}, kd3={"loss": "procrustes"})
    plain, more = (teaching.cache_key(shop(s, tmp_path), "squad")["outputs"] for s in (make(models), asked))
    assert more == plain | {"standardised": True} and "standardised" not in plain
    assert run(asked, tmp_path, tasks=["squad"], methods=["KD1", "KD3"]).failed == []
    assert "standardised" in teaching.teacher_cache(shop(asked, tmp_path), "squad")["squad-train-0"]


def test_fingerprints_cover_the_prompts_as_a_role_reads_them_and_no_day(
    tmp_path, models, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    dated = tmp_path / "dated"
    shutil.copytree(models["student"], dated)
    template = dated / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}" + template.read_text())
    students = {"S1": {"name": str(dated)}}
    settings = make(models, models={"teacher": {"name": str(models["teacher"])}, "students": students})

    def fingerprints() -> dict[str, str]:
        return data.fingerprints(shop(settings, tmp_path / "r"), "sst2")

    today = fingerprints()
    request.getfixturevalue("tomorrow")
    assert fingerprints() == today
    monkeypatch.setattr(template_module, "CLOCK", datetime(2020, 1, 1))
    changed = fingerprints()
    assert {role for role in today if today[role] != changed[role]} == {"S1"}


@pytest.mark.parametrize("changed", [{}, {"standardise": True}, {"targets": "auto"}])
def test_what_it_will_take_is_said_before_and_is_what_it_takes(tmp_path, models, changed: dict[str, Any]) -> None:
    said: list[str] = []
    settings = make(models, kd1={"temperatures": [2.0], "alphas": [0.5], "top_k": 16} | changed)
    made = shop(settings, tmp_path)
    made.progress.say = said.append  # pyright: ignore[reportAttributeAccessIssue]
    asking.build_teacher_outputs(made, "squad")
    [line] = [line for line in said if "are free" in line]
    assert "24 examples of" in line
    told = float(line.split("examples of ")[1].split(" kB")[0]) * 1e3 * 24
    shards = sum(p.stat().st_size for p in teaching.cache_folder(made, "squad").glob("*.safetensors"))
    assert told == pytest.approx(shards, abs=24 * 50 + 2000)  # what is said is rounded; the shard's header
    scene = Scene.of(settings, expand(settings, ["squad"]), Machine("cpu", "float32", 10**12, Rates(1e12, 1e12, 1e-12)))
    learned = teaching.taught(made, "squad", "teacher")
    positions = fmean(e.choices.count(e.gold) for e in learned)
    scene = replace(scene, sizes={"squad": replace(scene.sizes["squad"], train=len(learned), positions=positions)})
    assert teacher_outputs(scene, "squad") == pytest.approx(shards, abs=2000)


def test_too_little_space_is_told_before_anything_is_computed(tmp_path, models, monkeypatch) -> None:
    monkeypatch.setattr(asking.files, "free_bytes", lambda path: 1000)
    outcome = run(make(models), tmp_path, ("cache",), tasks=["squad"])
    [(_, reason)] = outcome.failed
    assert "need" in reason and "only 0 MB are free" in reason and "kd1.top_k" in reason
    assert not list((tmp_path / "teacher_cache").rglob("*.safetensors"))


def test_answers_are_kept_raw_with_their_confidence_and_cleaned_anew_when_the_rules_change(
    tmp_path, models, monkeypatch
) -> None:
    settings = make(models)
    run(settings, tmp_path, ("cache",), tasks=["squad"])
    made = shop(settings, tmp_path)
    before = teaching.answers(made, "squad")
    assert all(0 < row["confidence"] <= 1 for row in before)

    monkeypatch.setattr(asking, "RULES", cleaning.RULES + 1)
    monkeypatch.setattr(ShortAnswer, "clean", lambda self, raw, example: raw[:3])

    def nobody(*_: Any) -> Any:
        raise AssertionError("the teacher is not asked again")

    monkeypatch.setattr(local, "generate", nobody)
    run(settings, tmp_path, ("cache",), tasks=["squad"])
    after = teaching.answers(shop(settings, tmp_path), "squad")
    assert [row["raw"] for row in after] == [row["raw"] for row in before]
    assert [row["answer"] for row in after] == [row["raw"][:3] for row in after]


@pytest.fixture
def free(tmp_path, monkeypatch) -> dict[str, Any]:
    """A task of free answers in the folder of the call."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    rows = [{"prompt": f"Say {n}.", "completion": f"{n}."} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"kind": "generation", "source": "rows.jsonl", "dev_size": 4, "validation_size": 4, "max_new_tokens": 2}
    return task | {"training": {"epochs": 1, "batch_size": 8}}


def nobody(*_: Any) -> Any:
    raise AssertionError("the teacher is not asked again")


def test_answers_and_runs_are_scored_anew_when_a_metric_of_ones_own_is_mended(
    tmp_path, models, monkeypatch, free
) -> None:
    settings = {"g": free | {"metrics": ["always_of_this_test:always", "chrf"]}}

    def done(score: float) -> tuple[float, float, float]:
        """Of the answers, their mean, and a run's metric in percent."""
        (tmp_path / "always_of_this_test.py").write_text(f"def always(said, right):\n    return {score}\n")
        sys.modules.pop("always_of_this_test", None)
        made = shop(make(models, tasks=settings, methods=["B0", "KD2"]), tmp_path / "r")
        assert run(made.settings, made.results).failed == []
        [said] = {row["scores"]["always"] for row in teaching.answers(made, "g")}
        record = made.registry.read("KD2_g_S1_seed42")
        assert record
        return said, teaching.quality(made, "g")["always"], record["metrics"]["validation"]["always"]

    assert done(0.25) == (0.25, 25.0, 25.0)
    monkeypatch.setattr(asking, "_generated", nobody)
    assert done(0.5) == (0.5, 50.0, 50.0)


def test_answers_are_scored_anew_by_other_metrics_and_patterns(tmp_path, models, monkeypatch, free) -> None:
    def scored(**changes: Any) -> tuple[Any, ...]:
        made = shop(make(models, tasks={"g": free | changes}, methods=["B0", "KD2"]), tmp_path / "r")
        assert run(made.settings, made.results, ("cache",)).failed == []
        assert teaching.lesson_examples(made, "g", "S1", "KD2")
        return tuple(teaching.answers(made, "g")[0]["scores"]), teaching.quality(made, "g")["metric"]

    assert scored() == (("rouge_l", "chrf"), "rouge_l")
    monkeypatch.setattr(asking, "_generated", nobody)
    assert scored(metrics=["token_f1", "chrf"]) == (("token_f1", "chrf"), "token_f1")
    assert scored(extract=r"(\d+)") == (("exact_match", "rouge_l"), "exact_match")
    assert scored() == (("rouge_l", "chrf"), "rouge_l")


def test_the_filter_decides_what_kd2_learns(done, models) -> None:
    def lessons(**kd2: Any) -> set[str]:
        return set(teaching.lessons(shop(make(models, kd2=kd2), done), "sst2", "KD2"))

    rows = {row["id"]: row for row in teaching.answers(shop(make(models), done), "sst2")}
    assert lessons() == set(rows)
    agreeing = {id for id, row in rows.items() if row["scores"]["accuracy"] == 1.0}
    assert lessons(filter="agrees_with_gold") == agreeing != set(rows)
    median = sorted(row["confidence"] for row in rows.values())[12]
    sure = {id for id, row in rows.items() if row["confidence"] >= median}
    assert lessons(filter="confident", min_confidence=median) == sure
    assert 0 < len(sure) < len(rows)


def test_the_share_that_is_learned_is_in_the_runs_record(tmp_path, done, models) -> None:
    results = tmp_path / "results"
    shutil.copytree(done, results)
    settings = make(models, kd2={"filter": "agrees_with_gold"})
    outcome = run(settings, results, tasks=["sst2"], methods=["KD2"])
    assert outcome.failed == []
    record = Registry(results).read("KD2_sst2_S1_seed42")
    assert record is not None
    expected = len(teaching.lessons(shop(settings, results), "sst2", "KD2")) / 24
    assert record["teacher"]["answers_learned_share"] == pytest.approx(expected)


@pytest.mark.parametrize("dropped", [(), (0, 5, 6, 17)])
def test_kd2_learns_in_the_batches_of_b0_without_what_is_dropped(done, models, monkeypatch, dropped) -> None:
    """By the lengths of the gold targets, whatever the teacher said: same examples, same order, same steps."""
    bench = shop(make(models), done)
    said = {e.id: "many words " * (i % 4) + "more" for i, e in enumerate(data.splits(bench, "squad")["train"])}
    learned = {id: text for i, (id, text) in enumerate(said.items()) if i not in dropped}
    monkeypatch.setattr(teaching, "lessons", lambda *_: learned)
    given = {method: gather(bench, RunSpec(method, "squad", "S1", 42))[0] for method in ("B0", "KD2")}

    def batches(method: str) -> list[list[str]]:
        loop = Loop(Distiller(torch.nn.Linear(1, 1), 1, {}), given[method], bench.choice, print)
        return [[e.id for e in batch] for batch in loop.epoch()]

    plain, taught = batches("B0"), batches("KD2")
    assert [[id for id in batch if id in learned] for batch in plain] == taught
    assert len(plain) == 3 and sum(len(batch) for batch in taught) == 24 - len(dropped)
    assert [len(e) for e in given["B0"].examples] != [len(e) for e in given["KD2"].examples]


def test_a_filter_that_lets_nothing_through_fails_the_run_with_advice(tmp_path, done, models) -> None:
    results = tmp_path / "results"
    shutil.copytree(done, results)
    settings = make(models, kd2={"filter": "confident", "min_confidence": 1.0})
    outcome = run(settings, results, ("train",), tasks=["sst2"], methods=["KD2"])
    [(run_id, reason)] = outcome.failed
    assert run_id == "KD2_sst2_S1_seed42"
    assert "kd2.filter confident" in reason and "kd2.min_confidence" in reason


def test_features_computed_online_train_like_cached_ones_and_leave_no_hidden_states_on_disk(tmp_path, models) -> None:
    losses = {}
    for cached in (True, False):
        results = tmp_path / str(cached)
        settings = make(models, kd3={"cache": cached, "layers": [[1, 2], [2, 3]]}, methods=["KD3", "KD1+KD3"])
        outcome = run(settings, results, tasks=["squad"])
        assert outcome.failed == []
        history = (results / "raw_runs" / "KD3_squad_S1_l1_seed42" / "history.csv").read_text().splitlines()
        losses[cached] = [float(cell) for cell in (row.split(",")[5] for row in history[1:]) if cell]
        outputs = teaching.output_settings(shop(settings, results), "squad")
        assert outputs.layers == ((2, 3) if cached else ())
    assert losses[True] == pytest.approx(losses[False], abs=2e-3)


def test_a_pair_of_layers_that_is_not_there_is_told_before_anything_is_trained(tmp_path, models) -> None:
    with pytest.raises(SettingsError, match=r"kd3.layers: no pair \[2, 9\]"):
        run(make(models, kd3={"layers": [[2, 9]]}), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_inspection_says_what_is_there_and_verification_finds_what_was_altered(done, models, tmp_path) -> None:
    results = tmp_path / "results"
    shutil.copytree(done, results)
    text = "\n".join(inspect(results)[0])
    identity = data.fingerprints(shop(make(models), results), "squad")["data"][:8]
    for part in (
        "complete: 24 examples",
        "teacher:",
        "generated",
        "16 tokens per position",
        "accuracy",
        f"S1 ({models['student'].name}): ",
        f"generated ({identity})",
    ):
        assert part in text
    assert inspect(results, verify=True)[1] == []
    begun = next((results / "teacher_cache" / "squad").glob("*/manifest.json")).parent
    writing = shutil.copytree(begun, begun.with_name(f".tmp-12-0a1b2c3d-{begun.name}"))  # somebody is
    (begun / "rationales-0.json").symlink_to("gone")
    assert ".tmp-" not in "\n".join(inspect(results)[0]) and inspect(results, verify=True)[1] == []
    shutil.rmtree(writing)

    shard = next((results / "teacher_cache" / "squad").rglob("part-00000.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    next((results / "teacher_cache" / "sst2").rglob("answers.jsonl")).unlink()
    found = inspect(results, verify=True)[1]
    assert [problem.rsplit("/", 1)[1] for problem in found] == [
        "part-00000.safetensors: altered",
        "answers.jsonl: missing",
    ]


def test_inspection_by_command(done, tmp_path, capsys) -> None:
    assert cli.main(["cache", "--inspect", "--results", str(done)]) == 0
    assert "complete: 24 examples" in capsys.readouterr().out
    results = tmp_path / "results"
    shutil.copytree(done, results)
    manifest = next(results.rglob("teacher_cache/*/*/manifest.json"))
    manifest.write_text(json.dumps({"key": {}}))
    assert cli.main(["cache", "--verify", "--results", str(results)]) == 1
    assert "manifest.json: cannot be read; `kdsuite cache` makes it anew" in capsys.readouterr().err
    next(results.rglob("teacher_cache/*/*/quality.json")).write_text("{")
    assert cli.main(["cache", "--inspect", "--results", str(results)]) == 1
    assert "quality.json cannot be read" in capsys.readouterr().out
    assert cli.main(["cache", "--inspect", "--results", str(tmp_path / "empty")]) == 0
    assert "no teacher outputs in" in capsys.readouterr().out


@pytest.fixture
def other(tmp_path: Path, models: dict[str, Path], qwen_model, qwen_chat) -> dict[str, Path]:
    """The teacher's family as student, whose tokens are the teacher's own: all is covered."""
    folder = tmp_path / "other"
    folder.mkdir()
    save_trained(qwen_model, qwen_chat, folder)
    return models | {"student": folder}


def covered(results: Path, task: str) -> dict[str, Any]:
    quality = json.loads(next(results.glob(f"teacher_cache/{task}/*/quality.json")).read_text())
    return quality.get("coverage", {})


@pytest.mark.parametrize("task", ["sst2", "squad"])
def test_the_coverage_is_that_of_the_student_that_bears_the_name_now(tmp_path: Path, models, other, task: str) -> None:
    """Printed, stored, inspected and recorded; also after the first student is back."""
    results, kd3 = tmp_path / "results", {"layers": "last"}
    shares = []
    for folders in (models, other, models):
        settings = make(folders, methods=["B0", "KD1", "KD2"], kd3=kd3)
        progress = Progress(stream=(said := io.StringIO()), live=False)
        outcome = pipeline.run(settings, results, ("cache", "train"), tasks=[task], progress=progress)
        assert outcome.failed == []
        share = covered(results, task)["S1"]
        shares.append(share["vocabulary"])
        assert share["vocabulary"] == teaching.vocabulary_map(shop(settings, results), "S1").share
        assert share["model"] == folders["student"].name
        assert f"{share['vocabulary']:.1%} of its vocabulary" in said.getvalue()
        assert f"S1 ({folders['student'].name}): {share['aligned']:.1%}" in "\n".join(inspect(results)[0])
        for run_id in (f"KD1_{task}_S1_T2_a0.5_seed42", f"KD2_{task}_S1_seed42"):
            record = Registry(results).read(run_id)
            assert record is not None
            assert record["teacher"]["quality"]["coverage"]["S1"] == share
    assert shares[0] == shares[2] < 0.95 < shares[1]


def test_coverage_of_another_student_is_neither_shown_nor_recorded_nor_kept(tmp_path: Path, models, other) -> None:
    """Where only training is asked for, and where no method needs the outputs any more."""
    results = tmp_path / "results"
    run(make(models, methods=["B0", "KD1"]), results, ("cache",), tasks=["squad"])
    changed = make(other, methods=["B0", "KD1"])
    assert run(changed, results, ("train",), tasks=["squad"]).failed == []
    record = Registry(results).read("KD1_squad_S1_T2_a0.5_seed42")
    assert record is not None
    assert "coverage" not in record["teacher"]["quality"]
    assert covered(results, "squad")["S1"]["model"] == models["student"].name  # as the inspection says
    run(make(other, methods=["B0", "KD2"]), results, ("cache",), tasks=["squad"])
    assert covered(results, "squad") == {}


def test_another_template_of_the_same_student_is_another_coverage(tmp_path: Path, models, other) -> None:
    results, settings = tmp_path / "results", make(other, methods=["B0", "KD1"])
    run(settings, results, ("cache",), tasks=["sst2"])
    first = covered(results, "sst2")["S1"]
    template = other["student"] / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    run(settings, results, ("cache",), tasks=["sst2"])
    assert covered(results, "sst2")["S1"]["student"] != first["student"]

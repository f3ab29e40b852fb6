"""A teacher behind a URL, end to end: its cache is that of the model it serves, KD1 and KD2 learn from it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kdsuite import cli, pipeline
from kdsuite.config import ServedTeacherSettings, Settings
from kdsuite.errors import ModelError, SettingsError
from kdsuite.jobs import teaching
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.data import splits
from kdsuite.jobs.importing import import_file
from kdsuite.jobs.models import journal
from kdsuite.runtime import device
from kdsuite.runtime.progress import Progress
from kdsuite.store.files import fingerprint
from kdsuite.store.records import Registry
from kdsuite.teacher.inspection import inspect
from teacher_server import StandIn, serving

KEY = "sk-plantedPlantedPlanted"
pytestmark = pytest.mark.usefixtures("impatient")
TASK = {
    "train_size": 12, "dev_size": 4, "validation_size": 4, "max_length": 400, "quality_floor": 0,
    "max_new_tokens": 4, "training": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3},
}  # fmt: skip


def make(models: dict[str, Path], teacher: dict[str, Any], **sections: Any) -> Settings:
    students = {"S1": {"name": str(models["student"])}}
    tree = {
        "threads": 1,
        "dtype": "float32",
        "seeds": [42],
        "methods": ["KD1", "KD2"],
        "tasks": {"squad": TASK},
        "models": {"teacher": teacher, "students": students, "lora": {"enabled": False}},
        "kd1": {"temperatures": [2.0], "alphas": [0.5], "top_k": 16},
    }
    return Settings.model_validate(tree | sections)


def at(server: StandIn, models: dict[str, Path], **others: Any) -> dict[str, Any]:
    return {"url": server.url, "model": "big", "tokenizer": str(models["teacher"]), **others}


def bench(settings: Settings, results: Path) -> Bench:
    return Bench(settings, results, device.choose("cpu", "float32", 1), Progress.silent())


def run(settings: Settings, results: Path, *stages: str, said: Any = None) -> pipeline.Outcome:
    return pipeline.run(settings, results, stages, progress=Progress(stream=said or io.StringIO(), live=False))


def test_the_configurations_of_the_page_are_some() -> None:
    page = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)]
    teachers = [block.get("models", block)["teacher"] for block in blocks]
    assert len([ServedTeacherSettings.model_validate(teacher) for teacher in teachers]) == 6


def test_what_identifies_a_local_teacher_is_what_it_always_was(models, tmp_path) -> None:
    settings = make(models, {"name": str(models["teacher"])})
    key = teaching.cache_key(bench(settings, tmp_path), "squad")
    about = {"name", "revision", "system", "chat_template_kwargs", "fallback"}
    assert set(key["teacher"]) == {"model", "weights"} and set(key["teacher"]["model"]) == about
    assert key["dtype"] == "float32"


@pytest.mark.slow
def test_kd1_and_kd2_learn_from_a_url_what_they_learn_from_the_model(tmp_path, models, server) -> None:
    both = {"sst2": TASK, "squad": TASK}
    there = make(models, at(server, models), tasks=both)
    here = make(models, {"name": str(models["teacher"])}, tasks=both)
    for settings, folder in ((there, "there"), (here, "here")):
        assert run(settings, tmp_path / folder, "cache", "train").failed == []
    for task in both:
        one, other = (
            teaching.teacher_cache(bench(settings, tmp_path / folder), task)
            for settings, folder in ((there, "there"), (here, "here"))
        )
        assert len(one) == len(other) == 12
        for example in teaching.taught(bench(here, tmp_path / "here"), task, "teacher"):
            for name in ("topk_logprobs", "class_scores") if task == "sst2" else ("topk_logprobs",):
                np.testing.assert_allclose(one[example.id][name], other[example.id][name], atol=1e-3)
    records = {folder: Registry(tmp_path / folder) for folder in ("there", "here")}
    for run_id in ("KD1_squad_S1_T2_a0.5_seed42", "KD2_sst2_S1_seed42", "teacher_sst2", "teacher_squad"):
        one, other = (records[folder].read(run_id) or {} for folder in ("there", "here"))
        assert one["metrics"] == other["metrics"]
    teacher = (records["there"].read("KD1_squad_S1_T2_a0.5_seed42") or {})["teacher"]
    assert (teacher["name"], teacher["served"], teacher["top_k"]) == ("big", "vllm 1.0", 16)
    estimated = "16 log-probabilities per position, the rest estimated at T = 2"
    for folder, told in (("there", True), ("here", False)):
        run({"there": there, "here": here}[folder], tmp_path / folder, "report")
        table = (tmp_path / folder / "summary" / "table_4_1_main_results.csv").read_text().splitlines()
        noted = [line.split(",")[0] for line in table if estimated in line]
        assert noted == (["squad"] if told else []), table  # labels are scored exactly
    assert "teacher: big (vllm 1.0)" in "\n".join(inspect(tmp_path / "there", verify=True)[0])


def test_a_server_that_is_killed_is_asked_for_what_is_missing_only(tmp_path, models, qwen_model, qwen_chat) -> None:
    with serving("vllm", qwen_model, qwen_chat) as server:
        settings, port = make(models, at(server, models, concurrency=2)), server.server_address[1]

        def die(handler: Any, body: Any) -> bool:
            if len(server.asked) < 12:
                return False
            handler.close_connection = True
            return True

        server.faults.append(die)
        outcome = run(settings, tmp_path, "cache")
        [(_, reason)] = outcome.failed
        assert "see to the server, and the same command goes on" in reason
        before = [body for _, body in server.asked if body.get("prompt_logprobs") == 16 or body["max_tokens"] > 1]
    with serving("vllm", qwen_model, qwen_chat, port=port) as server:
        assert run(settings, tmp_path, "cache").failed == []
        after = [body for _, body in server.asked if body.get("prompt_logprobs") == 16 or body["max_tokens"] > 1]
        count = len(server.asked)
        assert run(settings, tmp_path, "cache").failed == []
        assert len(server.asked) - count <= 5  # what it is and can
    keys = [fingerprint(body) for body in [*before, *after]]
    repeated = len(keys) - len(set(keys))
    assert repeated <= 1  # the trial of a few tokens
    assert not list((tmp_path / "teacher_cache" / "squad").glob("asked*"))


def test_what_one_model_answered_is_never_taken_for_anothers(tmp_path, models, qwen_model, qwen_chat) -> None:
    asked: dict[str, list[str]] = {"a": [], "b": []}
    for name, most in (("a", 12), ("b", 10_000), ("a", 10_000)):
        with serving("vllm", qwen_model, qwen_chat, name) as server:

            def die(handler: Any, body: Any, server: StandIn = server, most: int = most) -> bool:
                handler.close_connection = len(server.asked) >= most
                return handler.close_connection

            server.faults.append(die)
            outcome = run(make(models, at(server, models, model=name, concurrency=1)), tmp_path, "cache")
            assert bool(outcome.failed) == (most == 12)
            for _, body in server.asked:
                if body.get("prompt_logprobs") == 16 or body["max_tokens"] > 1:
                    asked[name].append(fingerprint({key: value for key, value in body.items() if key != "model"}))
    assert {*asked["a"]} == {*asked["b"]}
    assert all(len(keys) - len({*keys}) <= 1 for keys in asked.values())  # the trial of a few tokens
    assert not list((tmp_path / "teacher_cache" / "squad").glob("asked*"))


def test_what_was_answered_is_known_by_all_that_changes_what_a_teacher_says(tmp_path, models) -> None:
    teacher = {"url": "http://127.0.0.1:9", "model": "a", "tokenizer": str(models["teacher"])}

    def kept_at(**changed: Any) -> Path | None:
        return journal(bench(make(models, teacher | changed), tmp_path), "squad").path

    for change in (
        {"model": "b"},
        {"tokenizer": str(models["student"])},
        {"api": "openai"},
        {"system": "Be brief."},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ):
        assert kept_at(**change) != kept_at()
    others = {"url": "http://127.0.0.1:8", "key_env": "K", "price_per_million_tokens": 1.0, "concurrency": 2}
    assert kept_at(**others) == kept_at()


def test_what_is_cached_is_trained_on_without_the_server(tmp_path, models, qwen_model, qwen_chat) -> None:
    with serving("vllm", qwen_model, qwen_chat) as server:
        settings = make(models, at(server, models))
        assert run(settings, tmp_path, "cache").failed == []
    outcome = run(settings, tmp_path, "train")
    assert outcome.failed == [] and outcome.completed == 3


def test_what_was_imported_is_trained_on_though_a_server_is_there(tmp_path, models, qwen_model, qwen_chat) -> None:
    with serving("vllm", qwen_model, qwen_chat) as server:
        settings, port = make(models, at(server, models), methods=["KD2"]), server.server_address[1]
    shop = bench(settings, tmp_path)
    answers = [{"id": e.id, "answer": "an answer"} for e in splits(shop, "squad")["train"]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    import_file(shop, "squad", tmp_path / "a.jsonl")
    with serving("vllm", qwen_model, qwen_chat, port=port):
        outcome = run(settings, tmp_path, "train")
    [(name, reason)] = outcome.failed
    assert name == "teacher_squad" and "is vllm 1.0 now, what is cached was imported; `kdsuite cache` asks" in reason
    assert outcome.completed == 2  # zero-shot and KD2


@pytest.mark.parametrize("api", ["openai", "ollama"])
def test_a_chat_route_teaches_kd2_and_refuses_kd1(tmp_path, models, qwen_model, qwen_chat, api) -> None:
    with serving(api, qwen_model, qwen_chat) as server:
        with pytest.raises(SettingsError, match="KD1 on squad needs .* distributions, .*vLLM, SGLang, llama.cpp"):
            run(make(models, at(server, models)), tmp_path, "cache")
        assert not (tmp_path / "teacher_cache" / "squad").exists()
        assert run(make(models, at(server, models), methods=["KD2"]), tmp_path, "cache", "train").failed == []
        with pytest.raises(SettingsError, match="teacher on sst2 needs the teacher's class_scores"):
            run(make(models, at(server, models), methods=["B0"], tasks={"sst2": TASK}), tmp_path, "cache")
    lines = "\n".join(inspect(tmp_path)[0])
    assert "answers only" in lines and f"teacher: big ({api}" in lines


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"methods": ["KD3"]}, "needs the teacher's states.*only a model that is loaded here has them"),
        ({"kd1": {"standardise": True}}, "all of the teacher's logits, which no server tells"),
        ({"kd1": {"targets": "auto"}}, "from drawn tokens needs all of the teacher's probabilities, which no server"),
    ],
)
def test_what_no_server_can_tell_is_refused_without_asking_one(models, tmp_path, sections, problem) -> None:
    teacher = {"url": "http://127.0.0.1:9", "model": "big", "tokenizer": str(models["teacher"])}
    with pytest.raises(SettingsError, match=problem):
        run(make(models, teacher, **sections), tmp_path, "cache")


def test_a_tokenizer_that_does_not_fit_is_told_before_anything_is_asked(tmp_path, models, server) -> None:
    teacher = at(server, models) | {"tokenizer": str(models["student"])}
    with pytest.raises(ModelError, match="is not that of the served model"):
        run(make(models, teacher), tmp_path, "cache")
    assert len(server.asked) <= 4


def test_more_log_probabilities_than_the_server_tells_are_refused_before_anything_is_asked(
    tmp_path, models, server
) -> None:
    server.cap = 15
    with pytest.raises(ModelError, match="max allowed: 15; start it with --max-logprobs 16, or set kd1.top_k lower"):
        run(make(models, at(server, models)), tmp_path, "cache")


def test_another_version_of_the_server_is_another_teacher(tmp_path, models, server) -> None:
    settings = make(models, at(server, models), methods=["KD2"])
    run(settings, tmp_path, "cache")
    server.version = "2.0"
    with pytest.raises(ModelError, match=r"is vllm 2.0 now, what is cached is of 1.0; `kdsuite cache`"):
        teaching.served_teacher(bench(settings, tmp_path), "squad").generate([[1, 2]], 1)
    run(settings, tmp_path, "cache")
    assert len(list((tmp_path / "teacher_cache" / "squad").glob("*/manifest.json"))) == 2


def test_the_address_the_key_and_the_price_are_no_part_of_what_a_result_is_of(
    tmp_path, models, server, monkeypatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    said = io.StringIO()
    first = make(models, at(server, models), methods=["KD2"])
    run(first, tmp_path, "cache")
    asked = len(server.asked)
    other = {"key_env": "MY_KEY", "price_per_million_tokens": 2.0, "concurrency": 1}
    assert run(make(models, at(server, models, **other), methods=["KD2"]), tmp_path, "cache", said=said).skipped == 1
    assert len(server.asked) - asked <= 4
    assert f"Bearer {KEY}" in server.keys


@pytest.mark.slow
def test_the_key_is_in_nothing_that_is_written_or_said(tmp_path, models, server, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    task = {key: value for key, value in TASK.items() if key != "training"}
    sets = [
        f"models.teacher={at(server, models, key_env='MY_KEY')}",
        f"models.students={{S1: {{name: '{models['student']}'}}}}",
        "models.lora.enabled=false", "methods=[KD2]", "seeds=[1]", "dtype=float32", "threads=1",
        f"tasks={{squad: {task | {'training': {'epochs': 1, 'batch_size': 4}}}}}",
    ]  # fmt: skip
    options = [part for item in sets for part in ("--set", item)]
    assert cli.main(["run", *options, "--set", "benchmark.blocks=1", "--set", "benchmark.memory=false"]) == 0
    assert cli.main(["plan", *options]) == 0 and cli.main(["doctor", *options]) == 0
    server.faults.append(lambda handler, body: handler.send({"error": f"no {KEY}"}, 400) or True)
    assert cli.main(["cache", *options, "--set", "tasks.squad.sample_seed=3"]) != 0
    out, err = capsys.readouterr()
    assert KEY not in out + err and "<MY_KEY>" in err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"report.html", "run.json", "plan.json"} <= {path.name for path in files}
    assert [str(path) for path in files if KEY.encode() in path.read_bytes()] == []
    assert "million tokens read and written" in out and "offers answers, class_scores" in out


@pytest.mark.slow
def test_reasons_come_from_a_url_that_only_answers(models, qwen_model, qwen_chat, tmp_path: Path) -> None:
    said = io.StringIO()
    with serving("openai", qwen_model, qwen_chat) as server:
        settings = make(models, at(server, models), methods=["KD2", "DSS"], dss={"max_new_tokens": 5})
        assert not run(settings, tmp_path, "prepare", "cache", said=said).failed
    assert re.search(r"teacher big: [\d,]+ tokens read and [\d,]+ written so far", said.getvalue())
    assert not list(tmp_path.rglob("asked*"))
    assert not run(settings, tmp_path, "train").failed  # without a server
    record = Registry(tmp_path).read("DSS_squad_S1_w1_seed42")
    assert record and 0 < record["teacher"]["rationales_learned_share"] <= 1 and record["teacher"]["top_k"] is None


@pytest.mark.slow
def test_what_a_student_writes_is_scored_at_a_url(tmp_path, models, server) -> None:
    settings = make(models, at(server, models), methods=["GKD"], gkd={"lambdas": [1.0]})
    assert not run(settings, tmp_path, "prepare", "cache", "train").failed
    record = Registry(tmp_path).read("GKD_squad_S1_p1_seed42")
    assert record and record["status"] == "completed"
    asked = [body["prompt"] for path, body in server.asked if body.get("prompt_logprobs")]
    cached = {(*e.prompt, *e.targets) for e in teaching.taught(bench(settings, tmp_path), "squad", "teacher")}
    assert any(tuple(prompt) not in cached for prompt in asked[2:])  # texts that were no gold answers

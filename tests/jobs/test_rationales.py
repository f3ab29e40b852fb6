"""DSS from configuration to report, on every kind of task; the teacher's reasons are asked once, kept, and mended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdsuite import pipeline
from kdsuite.config import Settings
from kdsuite.errors import RunError, SettingsError
from kdsuite.jobs import teaching
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.teaching import identity
from kdsuite.jobs.training import gather
from kdsuite.methods.dss import DssSettings
from kdsuite.plan import RunSpec, expand, refuse_gaps
from kdsuite.report.drawing import look
from kdsuite.runtime import device
from kdsuite.runtime.progress import Progress
from kdsuite.teacher import local
from kdsuite.teacher.inspection import inspect

KINDS = {"classification": {"labels": ["a", "b"]}, "short_answer": {}, "generation": {}}
SAID = [("because it is word 1", True), ("since the text", False), ("  \n ", True), ("It is so.", True)]


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A teacher that says something, and the last line of each question that it was asked."""
    heard: list[str] = []

    def written(model: Any, chat: Any, prompts: list[list[int]], *_: int) -> list[tuple[str, float, bool]]:
        heard.extend(chat.decode(prompt) for prompt in prompts)
        return [(text, -1.0, whole) for text, whole in (SAID[len(prompt) % 4] for prompt in prompts)]

    monkeypatch.setattr(local, "written", written)
    return heard


@pytest.fixture
def make(tmp_path: Path, models: dict[str, Path]) -> Callable[..., Settings]:
    texts = ["x" * (i + 1) for i in range(40)]
    rows = [
        {"text": f"text {x}", "label": "ab"[i % 2], "question": f"what {x}?", "answer": f"word {i}",
         "prompt": f"say {x}", "completion": f"word {i}"}
        for i, x in enumerate(texts)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"source": str(tmp_path / "rows.jsonl"), "max_new_tokens": 4, "training": {"epochs": 1, "batch_size": 8}}

    def made(student: str = "student", kinds: tuple[str, ...] = ("short_answer",), **sections: Any) -> Settings:
        tree = {
            "threads": 1,
            "dtype": "float32",
            "seeds": [1],
            "methods": ["B0", "DSS"],
            "tasks": {kind: task | {"kind": kind} | KINDS[kind] for kind in kinds},
            "models": {
                "teacher": {"name": str(models["teacher"])},
                "students": {"S1": {"name": str(models[student])}},
                "lora": {"enabled": False},
            },
            "dss": {"weights": [0, 1], "max_new_tokens": 12},
            "report": {"permutations": 100},
        }
        return Settings.model_validate(tree | sections)

    return made


def run(settings: Settings, results: Path, *stages: str) -> pipeline.Outcome:
    return pipeline.run(settings, results, stages or ("prepare", "cache"), progress=Progress.silent())


def shop(settings: Settings, results: Path) -> Bench:
    choice = device.choose(settings.device, settings.dtype, settings.threads)
    return Bench(settings, results, choice, Progress.silent())


@pytest.mark.slow
@pytest.mark.parametrize("student", ["student", "teacher"])  # another tokenizer, the same one
def test_every_kind_of_task_is_explained_and_a_weight_of_0_is_b0(tmp_path, make, student: str) -> None:
    settings, results = make(student, tuple(KINDS)), tmp_path / "r"
    assert run(settings, results, "prepare", "cache", "train").failed == []
    weights = {path.parent.name: path.read_bytes() for path in results.glob("models/*/model.safetensors")}
    for kind in KINDS:
        b0, none, explained = (
            f"{name}_{kind}_S1_{at}seed1" for name, at in (("B0", ""), ("DSS", "w0_"), ("DSS", "w1_"))
        )
        assert weights[b0] == weights[none] != weights[explained]
        records = {
            run_id: json.loads((results / f"raw_runs/{run_id}/run.json").read_text()) for run_id in (b0, explained)
        }
        assert records[b0]["timing"]["steps"] == records[explained]["timing"]["steps"]
        assert 0.6 < records[explained]["teacher"]["rationales_learned_share"] < 0.9  # a quarter is empty
        assert records[explained]["teacher"]["seconds"] > 0


@pytest.mark.slow
def test_the_report_has_it_with_its_own_name_colour_and_loss(tmp_path, make) -> None:
    assert (
        run(make(dss={"weights": [0.5], "max_new_tokens": 12}), tmp_path, "prepare", "cache", "train", "report").failed
        == []
    )
    page = (tmp_path / "report.html").read_text()
    assert "distilling step by step" in page and look("DSS").color.lower() in page
    assert "\nshort_answer,S1,DSS," in (tmp_path / "summary" / "table_4_1_main_results.csv").read_text()


def test_the_answers_are_learned_in_the_batches_of_b0_and_the_reasons_beside_them(tmp_path, make) -> None:
    settings = make(kinds=("classification",))
    run(settings, tmp_path / "r")
    bench = shop(settings, tmp_path / "r")
    b0, dss = (
        gather(bench, RunSpec(name, "classification", "S1", 1, point))[0]
        for name, point in (("B0", {}), ("DSS", {"rationale_weight": 1.0}))
    )
    assert dss.examples == b0.examples and (dss.order or dss.examples) == (b0.order or b0.examples)
    assert dss.teacher is None and not b0.beside
    said = {json.loads(line)["id"]: json.loads(line) for line in texts(tmp_path / "r").read_text().splitlines()}
    assert (
        {e.id for e in dss.beside} == {id for id, row in said.items() if row["rationale"]} < {e.id for e in b0.examples}
    )
    assert all(set(e.choices) == {0} for e in dss.beside), "a reason is one text, also where labels are scored"


def texts(results: Path) -> Path:
    [path] = results.glob("teacher_cache/*/*/rationales-*.jsonl")
    return path


def test_the_teacher_is_asked_once_and_the_question_asks_for_the_reason(tmp_path, make, asked) -> None:
    settings = make(dss={"request": "Why?", "max_new_tokens": 12})
    run(settings, tmp_path / "r")
    assert len(asked) == len(set(asked)) == 31
    assert all("what x" in text and "Answer with a few words.\n\nWhy?" in text for text in asked)
    asked.clear()
    run(settings, tmp_path / "r")
    run(make(dss={"request": "Why?", "max_new_tokens": 12, "weights": [3]}), tmp_path / "r")
    assert asked == []
    for other in ({"request": "Why not?", "max_new_tokens": 12}, {"request": "Why?", "max_new_tokens": 13}):
        run(make(dss=other), tmp_path / "r")
        assert len(asked) == 31
        asked.clear()
    assert len(list((tmp_path / "r").glob("teacher_cache/*/*/rationales-*.jsonl"))) == 3
    run(make(dss={"weights": [0]}), tmp_path / "r")
    assert asked == [], "a weight of 0 needs no reasons"


def test_nothing_is_left_of_a_build_that_was_stopped_but_what_was_said(tmp_path, make, asked, monkeypatch) -> None:
    settings, whole = (
        make(models=make().models.model_dump() | {"teacher": {**make().models.teacher.model_dump(), "batch_size": 8}}),
        local.written,
    )
    run(settings, tmp_path / "whole")
    asked.clear()

    def stopped(*given: Any) -> Any:
        if len(asked) >= 16:
            raise KeyboardInterrupt
        return whole(*given)

    monkeypatch.setattr(local, "written", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "r")
    monkeypatch.setattr(local, "written", whole)
    run(settings, tmp_path / "r")
    assert len(asked) == len(set(asked)) == 31
    assert texts(tmp_path / "r").read_bytes() == texts(tmp_path / "whole").read_bytes()
    names = {path.name for path in texts(tmp_path / "r").parent.iterdir()}
    assert len(names) == 3 and "seconds.json" in names


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing", "record"])
def test_damaged_reasons_are_found_refused_and_made_anew(tmp_path, make, asked, damage: str) -> None:
    settings, results = make(), tmp_path / "r"
    run(settings, results)
    path = texts(results)
    good, record = path.read_bytes(), path.with_suffix(".json")
    assert inspect(results, verify=True)[1] == []
    [line] = [line for line in inspect(results)[0] if "rationales" in line]
    assert "31 rationales" in line and "12 tokens" in line and settings.section(DssSettings).request in line
    if damage == "missing":
        path.unlink()
    elif damage == "record":
        record.write_text(record.read_text().replace("31", "32"))
    else:
        path.write_bytes(good[:-40] if damage == "truncated" else good.replace(b"because", b"BECAUSE"))
    assert inspect(results, verify=True)[1] != []
    spec = RunSpec("DSS", "short_answer", "S1", 1, {"rationale_weight": 1.0})
    with pytest.raises(RunError, match="rationales of short_answer are not there; run `kdsuite cache`"):
        gather(shop(settings, results), spec)
    asked.clear()
    run(settings, results)
    assert len(asked) == 31 and path.read_bytes() == good and inspect(results, verify=True)[1] == []


def test_what_only_the_teacher_has_answered_is_explained_too(tmp_path, make, asked) -> None:
    rows = [json.dumps({"text": f"new {i}"}) + "\n" for i in range(6)]
    (tmp_path / "new.jsonl").write_text("".join(rows))
    task = make(kinds=("classification",)).tasks["classification"].model_dump(exclude_unset=True)
    settings = make(tasks={"classification": task | {"unlabeled": str(tmp_path / "new.jsonl")}})
    run(settings, tmp_path / "r")
    assert len(asked) == 31 + 6
    material, _ = gather(
        shop(settings, tmp_path / "r"), RunSpec("DSS", "classification", "S1", 1, {"rationale_weight": 1.0})
    )
    assert len(material.examples) == 37 and {e.id for e in material.beside} < {e.id for e in material.examples}


def test_where_nothing_can_be_learned_that_is_told(tmp_path, make, monkeypatch) -> None:
    monkeypatch.setattr(local, "written", lambda model, chat, prompts, *_: [("\ufffd", 0.0, False)] * len(prompts))
    settings = make(dss={"max_new_tokens": 12})
    outcome = run(settings, tmp_path / "r", "prepare", "cache", "train")
    assert [run_id for run_id, _ in outcome.failed] == ["DSS_short_answer_S1_w1_seed1"]
    assert "none of the teacher's rationales of short_answer can be learned by S1" in outcome.failed[0][1]


def test_other_methods_know_nothing_of_it(tmp_path, make) -> None:
    """Neither their cache nor their runs are others because DSS is planned, or asks otherwise."""
    plain = shop(make(methods=["B0", "KD1", "KD2"]), tmp_path)
    more = shop(make(methods=["B0", "KD1", "KD2", "DSS"], dss={"request": "Why?"}), tmp_path)
    assert teaching.cache_key(plain, "short_answer") == teaching.cache_key(more, "short_answer")
    for spec in (RunSpec("B0", "short_answer", "S1", 1), RunSpec("KD2", "short_answer", "S1", 1)):
        assert identity(plain, spec) == identity(more, spec)
    same, other = (
        identity(shop(make(dss={"weights": weights, "request": request}), tmp_path), spec)
        for spec in [RunSpec("DSS", "short_answer", "S1", 1, {"rationale_weight": 1.0})]
        for weights, request in (([1.0, 2.0], "Why?"), ([1.0], "How?"))
    )
    assert same == identity(more, RunSpec("DSS", "short_answer", "S1", 1, {"rationale_weight": 1.0})) != other


def test_a_teacher_that_cannot_explain_is_refused_before_any_work(make) -> None:
    settings = make(kinds=("classification",))
    with pytest.raises(SettingsError, match="DSS on classification needs the teacher's rationales"):
        refuse_gaps(settings, expand(settings), {"answers", "class_scores"})


@pytest.mark.parametrize("wrong", [{"weights": [-1]}, {"weights": []}, {"request": " "}, {"max_new_tokens": 0}])
def test_settings_that_mean_nothing_are_refused(make, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"dss.{next(iter(wrong))}"):
        make(dss=wrong)

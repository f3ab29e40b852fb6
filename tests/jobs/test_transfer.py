"""Inputs without targets: the teacher answers them, methods that learn from it learn there, and B0 is as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdsuite import pipeline
from kdsuite.config import Settings, changed
from kdsuite.errors import RunError, SettingsError
from kdsuite.evaluate import predict
from kdsuite.jobs import teaching, transfer
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.data import encoded_answers
from kdsuite.jobs.data import splits as splits_of
from kdsuite.plan import expand
from kdsuite.runtime.device import choose
from kdsuite.runtime.progress import Progress
from kdsuite.tasks.example import task_of
from kdsuite.tasks.splits import make_splits
from kdsuite.teacher.inspection import inspect

WORDS = {"billing": "refund", "technical": "crash", "other": "thanks"}


def rows(path: Path, count: int, first: int = 0, labelled: bool = True) -> str:
    found = []
    for number in range(first, first + count):
        label = sorted(WORDS)[number % 3]
        row = {"text": f"{WORDS[label]} number {number}", "question": f"what of {number}?", "prompt": f"say {number}"}
        right = {"label": label, "answer": WORDS[label], "completion": WORDS[label]}
        found.append(json.dumps(row | (right if labelled else {})) + "\n")
    path.write_text("".join(found))
    return str(path)


def settings(folder: Path, models: dict[str, Path], kind: str, methods: list[str], **task: Any) -> Settings:
    labels = {"labels": sorted(WORDS)} if kind == "classification" else {}
    mine = {"kind": kind, "source": rows(folder / "rows.jsonl", 60), "max_new_tokens": 4, **labels, **task}
    return Settings.model_validate(
        {
            "threads": 1,
            "dtype": "float32",
            "seeds": [1],
            "methods": methods,
            "tasks": {"mine": mine | {"training": {"epochs": 1, "batch_size": 8}}},
            "models": {
                "teacher": {"name": str(models["teacher"])},
                "students": {"S1": {"name": str(models["student"])}},
                "lora": {"enabled": False},
            },
            "kd1": {"temperatures": [2], "alphas": [0.5]},
        }
    )


def done(chosen: Settings, results: Path) -> dict[str, dict[str, Any]]:
    outcome = pipeline.run(chosen, results, ("prepare", "cache", "train"), progress=Progress.silent())
    assert outcome.failed == []
    return {path.parent.name: json.loads(path.read_text()) for path in results.glob("raw_runs/*/run.json")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "short_answer", "generation"])
def test_methods_that_learn_from_the_teacher_take_more_steps_and_b0_is_as_it_was(tmp_path, models, kind: str) -> None:
    methods = ["B0", "KD1", "KD2", "KD3"]
    raw = rows(tmp_path / "raw.jsonl", 40, first=1000, labelled=False)
    plain = done(settings(tmp_path, models, kind, methods), tmp_path / "plain")
    more = done(settings(tmp_path, models, kind, methods, unlabeled=raw), tmp_path / "more")
    left = done(settings(tmp_path, models, kind, methods, unlabeled=raw, transfer="labelled"), tmp_path / "left")
    for run_id, record in plain.items():
        same = not run_id.startswith("KD")
        assert (record["fingerprint"] == more[run_id]["fingerprint"]) == same, run_id
        assert record["fingerprint"] == left[run_id]["fingerprint"], run_id
        steps = [found[run_id]["timing"].get("steps", 0) for found in (plain, more)]
        assert (steps[0] == steps[1]) if same else (steps[0] < steps[1]), (run_id, steps)
    name = "B0_mine_S1_seed1"
    assert (tmp_path / "plain" / "raw_runs" / name / "predictions.jsonl").read_bytes() == (
        tmp_path / "more" / "raw_runs" / name / "predictions.jsonl"
    ).read_bytes()


def test_what_is_reported_or_selected_on_is_never_learned(tmp_path, models) -> None:
    same = rows(tmp_path / "raw.jsonl", 70, labelled=False)  # 60 of them are the task's own
    done(settings(tmp_path, models, "classification", ["B0", "KD2"], unlabeled=same), tmp_path / "r")
    made = (tmp_path / "r" / "processed_data" / "mine" / "unlabeled.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["inputs"]["text"].split()[-1] for line in made) == [str(n) for n in range(60, 70)]


def test_a_cache_that_was_stopped_asks_nothing_twice(tmp_path, models, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = rows(tmp_path / "raw.jsonl", 40, first=1000, labelled=False)
    chosen = settings(tmp_path, models, "short_answer", ["B0", "KD2"], unlabeled=raw)
    asked: list[int] = []
    ask, generate = transfer.asked, predict.generate

    def generated(model: Any, chat: Any, prompts: list[list[int]], *more: Any) -> Any:
        if sum(asked) >= 16 and stop:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return generate(model, chat, prompts, *more)

    def counted(*about: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(predict, "generate", generated)
            return ask(*about)

    monkeypatch.setattr(transfer, "asked", counted)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        done(chosen, tmp_path / "r")
    stop = False
    found = done(chosen, tmp_path / "r")
    assert sum(asked) == 40
    spent = [json.loads(path.read_text())["seconds"] for path in tmp_path.glob("r/teacher_cache/mine/*/seconds.json")]
    assert len(spent) == 2  # for these answers, and for all else
    assert found["KD2_mine_S1_seed1"]["teacher"]["seconds"] == pytest.approx(sum(spent))
    told, damaged = inspect(tmp_path / "r", verify=True)
    assert damaged == [] and any("of 40 answers to inputs without target are kept" in line for line in told)
    asked.clear()
    done(chosen, tmp_path / "r")
    assert asked == []


def test_other_sizes_of_the_splits_leave_other_inputs_and_only_new_ones_are_asked(
    tmp_path, models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is trained on is no input without target; so a smaller training split leaves more of them."""
    raw, ask, asked = rows(tmp_path / "raw.jsonl", 70, labelled=False), transfer.asked, []  # 60 are the task's own

    def counted(bench: Bench, label: str, model: Any, chat: Any, data: Any, *more: Any) -> Any:
        asked.append(len(data))
        return ask(bench, label, model, chat, data, *more)

    monkeypatch.setattr(transfer, "asked", counted)
    left = []
    for size in (30, 20, 30, 20):
        chosen = settings(tmp_path, models, "short_answer", ["B0", "KD2"], unlabeled=raw, train_size=size)
        done(chosen, tmp_path / "r")
        bench = Bench(chosen, tmp_path / "r", choose("cpu", "float32", 1), Progress.silent())
        left.append([row["id"] for row in transfer.answered(bench, "mine")])
        assert left[-1] == [e.id for e in splits_of(bench, "mine")["unlabeled"]]
    assert asked == [len(left[0]), 10] and len(left[1]) == len(left[0]) + 10 and left[2:] == left[:2]


def test_answers_are_kept_raw_and_learned_as_todays_rules_clean_them(tmp_path, models, monkeypatch) -> None:
    raw = rows(tmp_path / "raw.jsonl", 12, first=1000, labelled=False)
    chosen = settings(tmp_path, models, "short_answer", ["B0", "KD2"], unlabeled=raw)
    done(chosen, tmp_path / "r")
    monkeypatch.setattr(type(task_of("mine", chosen.tasks["mine"])), "clean", lambda self, raw, example: f"<{raw}>")
    monkeypatch.setattr(transfer, "asked", None)  # the teacher would be
    bench = Bench(chosen, tmp_path / "r", choose("cpu", "float32", 1), Progress.silent())
    transfer.answer_unlabeled(bench, "mine")
    said = transfer.answered(bench, "mine")
    assert len(said) == 12 and all(row["answer"] == f"<{row['raw']}>" for row in said)
    assert {e.target for e in transfer.transferred(bench, "mine")} == {row["answer"] for row in said}


def test_it_is_told_at_once_where_nothing_reads_them_or_they_are_not_there(tmp_path, models) -> None:
    raw = rows(tmp_path / "raw.jsonl", 4, first=1000, labelled=False)
    alone = settings(tmp_path, models, "classification", ["B0"], unlabeled=raw)
    with pytest.raises(SettingsError, match="tasks.mine.unlabeled is read by no method of B0: only those that learn"):
        pipeline.refuse_gaps(alone, expand(alone), {"answers"})
    absent = settings(tmp_path, models, "classification", ["B0", "KD2"], unlabeled=str(tmp_path / "absent.jsonl"))
    with pytest.raises(Exception, match=r"no data file .*absent.jsonl; .*unlabeled names it"):
        done(absent, tmp_path / "r")
    (tmp_path / "raw.jsonl").write_text('{"sentence": "no text"}\n')
    wrong = settings(tmp_path, models, "classification", ["B0", "KD2"], unlabeled=raw)
    with pytest.raises(Exception, match="raw.jsonl, line 1: no column 'text'"):
        done(wrong, tmp_path / "r")


def test_inputs_with_the_ids_of_training_examples_are_examples_of_their_own(tmp_path, models) -> None:
    """Two files count from 0 each: else what is said of the one were learned for the other."""
    chosen = settings(tmp_path, models, "short_answer", ["B0", "KD2"])
    for name, first in (("rows", 0), ("raw", 1000)):
        lines = rows(tmp_path / f"{name}.jsonl", 30, first, labelled=name == "rows")
        numbered = [json.loads(line) | {"id": str(n)} for n, line in enumerate(Path(lines).read_text().splitlines())]
        Path(lines).write_text("".join(json.dumps(row) + "\n" for row in numbered))
    splits = make_splits(task_of("mine", changed(chosen, {"tasks.mine.unlabeled": lines}).tasks["mine"]))
    ids = [example.id for name in ("train", "dev", "validation", "unlabeled") for example in splits[name]]
    assert len(set(ids)) == len(ids) == 60
    assert all(e.inputs["question"].endswith(f"{1000 + int(e.id.split('-')[-1])}?") for e in splits["unlabeled"])


def test_what_the_teacher_said_and_a_model_cannot_learn_is_left_out_and_told(
    tmp_path, models, monkeypatch, capsys
) -> None:
    """An answer that a tokenizer does not spell; one that is no part of a passage that is longer than max_length."""
    raw = rows(tmp_path / "raw.jsonl", 6, first=1000, labelled=False)
    passages = [json.loads(line) for line in Path(raw).read_text().splitlines()]
    passages[0]["context"] = "So it goes. " * 100
    Path(raw).write_text("".join(json.dumps(row) + "\n" for row in passages))
    about = {"unlabeled": raw, "max_length": 120}
    chosen = settings(tmp_path, models, "short_answer", ["B0", "KD2"], **about)
    words = ["none", "fine", "a\u2581b", "", "so", "here"]
    bench = Bench(chosen, tmp_path / "r", choose("cpu", "float32", 1), Progress(live=False))
    monkeypatch.setattr(transfer, "answered", lambda bench, name: said)
    said = [
        {"id": e.id, "answer": answer} for e, answer in zip(splits_of(bench, "mine")["unlabeled"], words, strict=True)
    ]
    assert [e.target for e in transfer.transferred(bench, "mine")] == ["fine", "a\u2581b", "so", "here"]
    assert len(transfer.taught(bench, "mine", "S1")) == len(splits_of(bench, "mine")["train"]) + 3
    told = capsys.readouterr().err
    assert "mine: 1 of 5 of the answers to inputs without target are not learned by teacher: its tokenizer" in told
    assert "mine: 1 of 4 of the answers to inputs without target are not learned by S1: its tokenizer" in told
    train = [example.id for example in splits_of(bench, "mine")["train"]]
    learned = encoded_answers(bench, "mine", "S1", dict(zip(train, ["a\u2581b", "fine"], strict=False)))
    assert [example.id for example in learned] == [train[1]]
    monkeypatch.setattr(teaching, "quality", lambda bench, name: {"f1": 100.0, "exact_match": 100.0})
    monkeypatch.setattr(teaching, "lessons", lambda bench, name, learner: {train[0]: "a\u2581b"})
    with pytest.raises(RunError, match="none of the teacher's answers of mine can be learned by S1"):
        teaching.lesson_examples(bench, "mine", "S1", "KD2")

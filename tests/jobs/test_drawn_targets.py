"""KD1 from drawn entries, from configuration to record: on every kind of task, same and different tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdsuite import pipeline
from kdsuite.config import Settings, changed
from kdsuite.errors import SettingsError
from kdsuite.jobs import asking, teaching
from kdsuite.jobs.bench import Bench
from kdsuite.plan import expand, refuse_gaps
from kdsuite.runtime import device
from kdsuite.runtime.progress import Progress
from kdsuite.teacher.inspection import inspect

LABELS = {"classification": {"labels": ["a", "b"]}}


def make(models: dict[str, Path], student: str, kinds: dict[str, dict[str, Any]], targets: str) -> Settings:
    rows = [
        {"text": f"text {i}", "label": "ab"[i % 2], "question": f"what {i}?", "answer": f"word {i}",
         "prompt": f"say {i}", "completion": f"word {i}"}
        for i in range(32)
    ]  # fmt: skip
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    about = {"source": "rows.jsonl", "max_new_tokens": 4, "training": {"epochs": 1, "batch_size": 8}}
    return Settings.model_validate(
        {
            "threads": 1,
            "dtype": "float32",
            "seeds": [1],
            "methods": ["KD1"],
            "tasks": {kind: {"kind": kind, **about, **own} for kind, own in kinds.items()},
            "models": {
                "teacher": {"name": str(models["teacher"])},
                "students": {"S1": {"name": str(models[student])}},
                "lora": {"enabled": False},
            },
            "kd1": {"temperatures": [2], "alphas": [0.5], "top_k": 16, "targets": targets},
        }
    )


def run(settings: Settings, results: Path) -> None:
    assert pipeline.run(settings, results, ("prepare", "cache", "train"), progress=Progress.silent()).failed == []


def losses(results: Path, kind: str) -> list[str]:
    text = (results / "raw_runs" / f"KD1_{kind}_S1_T2_a0.5_seed1" / "history.csv").read_text()
    return [",".join(line.split(",")[:4]) for line in text.splitlines()]


def bench(settings: Settings, results: Path) -> Bench:
    choice = device.choose(settings.device, settings.dtype, settings.threads)
    return Bench(settings, results, choice, Progress.silent())


@pytest.mark.slow
@pytest.mark.parametrize("student", ["student", "teacher"])  # another tokenizer, the same one
def test_free_answers_are_learned_from_what_suits_the_measured_tail(tmp_path, models, monkeypatch, student) -> None:
    """An untrained teacher's tail is nearly all of its probability."""
    monkeypatch.chdir(tmp_path)
    asked = {
        "topk_sampled": {"generation": {}},
        "sampled": {"short_answer": {}},
        "auto": {"short_answer": {}, **LABELS},
    }
    for targets, kinds in asked.items():
        run(make(models, student, kinds, targets), tmp_path / targets)
    assert losses(tmp_path / "auto", "short_answer") == losses(tmp_path / "sampled", "short_answer")
    record = json.loads((tmp_path / "auto/raw_runs/KD1_short_answer_S1_T2_a0.5_seed1/run.json").read_text())
    [chosen] = record["teacher"]["quality"]["targets"].items()
    tail = chosen[1]["tail"]
    assert chosen == ("T=2", {"tail": tail, "entries": "sampled"}) and 0.5 < tail < 1
    made = bench(make(models, student, asked["auto"], "auto"), tmp_path / "auto")
    line = asking._quality_line(made, "short_answer", teaching.quality(made, "short_answer"))
    assert f"sampled targets at T=2, where {tail:.1%} of the probability is beyond the kept tokens" in line
    assert any("drawn entries: sampled, topk_sampled" in line for line in inspect(tmp_path / "auto")[0])
    cache = teaching.teacher_cache(made, "short_answer")
    [record, *_] = cache.outputs(teaching.taught(made, "short_answer", "teacher"))
    assert record["sampled_ids"].shape[1:] == (2, 16) and record["topk_sampled_ids"].shape[1:] == (2, 8)


def test_where_labels_are_scored_nothing_is_drawn(tmp_path, models, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain, drawn = (bench(make(models, "student", LABELS, t), tmp_path / "r") for t in ("topk_tail", "auto"))
    assert teaching.cache_key(plain, "classification") == teaching.cache_key(drawn, "classification")


def test_draws_are_part_of_what_a_cache_is_known_by_only_where_there_are_any(tmp_path, models, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    def outputs(targets: str) -> dict[str, Any]:
        settings = make(models, "student", {"short_answer": {}}, targets)
        return teaching.cache_key(bench(settings, tmp_path / "r"), "short_answer")["outputs"]

    plain = outputs("topk_tail")
    assert "draws" not in plain
    assert outputs("sampled") == plain | {"draws": ["sampled"]}
    assert outputs("auto") == plain | {"draws": ["sampled", "topk_sampled"]}


@pytest.mark.parametrize(("change", "words"), [({"top_k": 8}, "top_k 8"), ({"dtype": "float16"}, "dtype float16")])
def test_drawn_tokens_of_another_number_than_others_keep_are_refused_before_any_work(
    tmp_path, models, monkeypatch, change: dict[str, Any], words: str
) -> None:
    """What is drawn is drawn for one number of entries; of the likeliest each method reads as many as it asked for."""
    monkeypatch.chdir(tmp_path)
    drawn = changed(
        make(models, "student", {"generation": {}}, "topk_tail"),
        {"methods": ["B0", "KD1", "KD1-drawn"], "variants": {"KD1-drawn": {"kd1": {"targets": "sampled"} | change}}},
    )
    here = {"answers", "class_scores", "distributions", "states", "live"}
    with pytest.raises(SettingsError, match=f"KD1-drawn from drawn tokens has .*{words}.*give all of them the same"):
        refuse_gaps(drawn, expand(drawn), here)
    likeliest = changed(drawn, {"variants.KD1-drawn.kd1.targets": "topk_tail"})
    refuse_gaps(likeliest, expand(likeliest), here)

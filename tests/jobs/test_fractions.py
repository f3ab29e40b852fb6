"""Fractions of the training examples from configuration to report: nested, one teacher for all, the whole as it was."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from kdsuite import pipeline
from kdsuite.config import Settings, changed
from kdsuite.errors import DataError
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.contestants import best_runs
from kdsuite.jobs.looking import look
from kdsuite.jobs.training import gather
from kdsuite.plan import expand
from kdsuite.runtime.device import choose
from kdsuite.runtime.progress import Progress

WORDS = ("refund", "crash", "thanks")
TASKS = {"classification": {"labels": list(WORDS)}, "short_answer": {}}
METHODS = ("B0", "KD1", "KD2")


def settings(folder: Path, models: dict[str, Path], **task) -> Settings:
    rows = [{"text": f"{WORDS[n % 3]} number {n}", "question": f"what of {n}?"} for n in range(60)]
    rows = [row | {"label": WORDS[n % 3], "answer": WORDS[n % 3]} for n, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"source": str(folder / "rows.jsonl"), "max_new_tokens": 4, "fractions": [0.25, 1], **task}
    training = {"epochs": 1, "batch_size": 8}
    roles = {"teacher": {"name": str(models["teacher"])}, "students": {"S1": {"name": str(models["student"])}}}
    return Settings.model_validate(
        {
            "threads": 1,
            "dtype": "float32",
            "seeds": [1],
            "methods": METHODS,
            "tasks": {kind: {"kind": kind, "training": training, **common, **own} for kind, own in TASKS.items()},
            "models": roles | {"lora": {"enabled": False}},
            "kd1": {"temperatures": [2], "alphas": [0.5]},
            "report": {"permutations": 100},
        }
    )


@pytest.mark.slow
def test_fractions_are_trained_and_reported_and_the_whole_is_as_without_them(
    tmp_path: Path, models, monkeypatch
) -> None:
    monkeypatch.setattr("kdsuite.report.build.FIGURES", ())  # but for that of fractions
    chosen, results = settings(tmp_path, models), tmp_path / "r"
    stages = ("prepare", "cache", "train", "report")
    assert pipeline.run(chosen, results, stages, progress=Progress.silent()).failed == []
    steps = {
        path.parent.name: json.loads(path.read_text())["timing"]["steps"]
        for path in results.glob("raw_runs/*seed1*/run.json")
    }
    for kind in TASKS:
        for method in METHODS:
            [whole] = [run for run in steps if run.startswith(f"{method}_{kind}") and run.endswith("seed1")]
            assert (steps[whole], steps[f"{whole}_f0.25"]) == (6, 2), "of 46 examples and of 12, by 8"
        assert len(list((results / "teacher_cache" / kind).glob("*/quality.json"))) == 1, "one teacher's pass for all"
    with (results / "summary" / "data_fractions.csv").open(newline="") as file:
        table = {(row["task"], row["method"], row["n_train"]): row for row in csv.DictReader(file)}
    assert set(table) == {(kind, method, n) for kind in TASKS for method in METHODS for n in ("12", "46")}
    assert {row["ci_low"] for row in table.values()} == {"n/a"}, "a single seed has no interval"
    assert (results / "figures" / "fig_data_fractions.png").exists()
    page = (results / "report.html").read_text(encoding="utf-8")
    assert "KD1 cannot be compared with B0 on 25 % (12 examples), all (46 examples)" in page

    bench = Bench(chosen, results, choose("cpu", "float32", 1), Progress.silent())
    benchmarked = [run.run_id for kind in TASKS for one in best_runs(bench, kind) for run in one.runs]
    assert len(benchmarked) == 2 * (2 + len(METHODS)) and not any("_f0" in run_id for run_id in benchmarked)

    plain = changed(chosen, {f"tasks.{kind}.fractions": [1.0] for kind in TASKS})
    again = pipeline.run(plain, results, ("cache", "train"), progress=Progress.silent())
    assert (again.completed, again.failed) == (0, []), (
        "neither the teacher's outputs nor a run on the whole is made anew"
    )


def test_every_method_learns_the_first_examples_of_the_whole_and_lessons_from_those_alone(
    tmp_path: Path, models
) -> None:
    chosen = settings(tmp_path, models)
    pipeline.run(chosen, tmp_path / "r", ("cache",), progress=Progress.silent())
    bench = Bench(chosen, tmp_path / "r", choose("cpu", "float32", 1), Progress.silent())
    for kind in TASKS:
        given = {}
        for spec in expand(chosen, [kind]):
            if spec.trained:
                given[spec.method, spec.fraction] = gather(bench, spec)[0]
        first = [e.id for e in given["B0", 1.0].examples][:12]
        for method in METHODS:
            some = given[method, 0.25]
            assert some.order is not None and [e.id for e in some.order] == first, (kind, method)
            assert {e.id for e in some.examples} <= set(first)
            whole = [e for e in given[method, 1.0].examples if e.id in first]
            assert [e.input_ids for e in some.examples] == [e.input_ids for e in whole]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"fractions": [0.1, 1]}, "fractions: 0.1 of 46 training examples are 5, less than a batch of 8"),
        (
            {"fractions": [0.05, 1], "training": {"batch_size": 1}},
            "fractions: 0.05 of 46 training examples are 2, none of them '",
        ),
    ],
)
def test_too_few_examples_are_refused_before_any_work(tmp_path: Path, models, task, words: str) -> None:
    chosen = settings(tmp_path, models, **task)
    with pytest.raises(DataError, match=words) as refused:
        pipeline.run(chosen, tmp_path / "r", progress=Progress.silent())
    assert "\n" not in str(refused.value) and refused.value.exit_code == 2
    assert not (tmp_path / "r" / "raw_runs").exists()
    with pytest.raises(DataError, match=words):
        list(look(chosen, ["classification"], choose("cpu", "float32", 1)))


def test_a_look_at_the_task_tells_the_sizes(tmp_path: Path, models) -> None:
    lines = list(look(settings(tmp_path, models), ["classification"], choose("cpu", "float32", 1)))
    assert "  fractions of train: 0.25 12, 1 46" in lines

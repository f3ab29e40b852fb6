"""A cache made elsewhere is taken in if it is what this teacher could have said, and refused by one line if not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from kdsuite import cli
from kdsuite.config import Settings
from kdsuite.errors import DataError
from kdsuite.jobs import teaching
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.data import encoded, splits
from kdsuite.jobs.importing import import_file
from kdsuite.runtime import device
from kdsuite.runtime.progress import Progress
from kdsuite.teacher.inspection import inspect
from kdsuite.teacher.local import LocalTeacher, OutputSettings

TASK = {"train_size": 6, "dev_size": 4, "validation_size": 4, "max_length": 400, "quality_floor": 0}


@pytest.fixture
def bench(tmp_path: Path, models: dict[str, Path]) -> Callable[[str], Bench]:
    def make(task: str) -> Bench:
        teacher = {"url": "http://127.0.0.1:9/v1", "model": "big", "tokenizer": str(models["teacher"])}
        tree = {
            "threads": 1, "dtype": "float32", "seeds": [42], "methods": ["KD1", "KD2"], "tasks": {task: TASK},
            "models": {"teacher": teacher, "students": {"S1": {"name": str(models["student"])}}},
            "kd1": {"temperatures": [2.0], "alphas": [0.5], "top_k": 8},
        }  # fmt: skip
        choice = device.choose("cpu", "float32", 1)
        return Bench(Settings.model_validate(tree), tmp_path / "results", choice, Progress.silent())

    return make


def answers(bench: Bench, name: str, answer: str = "an answer") -> list[dict[str, Any]]:
    return [{"id": e.id, "answer": answer} for e in splits(bench, name)["train"]]


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_answers_are_learned_without_any_server(tmp_path, bench) -> None:
    shop = bench("squad")
    rows = answers(shop, "squad")[::-1]  # in any order
    said = import_file(shop, "squad", write_lines(tmp_path / "a.jsonl", rows))
    assert said.startswith("squad: answers of 6 training examples are taken from")
    assert set(teaching.lessons(shop, "squad", "KD2").values()) == {"an answer"}
    lines = "\n".join(inspect(shop.results, verify=True)[0])
    assert "imported: answers from a.jsonl" in lines and "answers only" in lines


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[1:], "lacks 1 ids, as 'squad-train"),
        (lambda rows: [*rows, {"id": "x", "answer": "y"}], "has unknown 1 ids, as 'x'"),
        (lambda rows: [*rows, rows[0]], "line 7: the id 'squad-train.*' is there twice"),
        (lambda rows: [{"id": "x"}, *rows], "line 1: not an object with id and answer"),
        (lambda rows: [3, *rows], "line 1: not an object with id and answer"),
        (lambda rows: [rows[0] | {"answer": 3}, *rows[1:]], "line 1: answer is a text"),
        (lambda rows: [rows[0] | {"confidence": 1.5}, *rows[1:]], "confidence a number from 0 to 1"),
    ],
)
def test_answers_that_are_not_those_of_the_examples_are_refused(tmp_path, bench, change, problem) -> None:
    shop = bench("squad")
    path = write_lines(tmp_path / "a.jsonl", change(answers(shop, "squad")))
    with pytest.raises(DataError, match=problem):
        import_file(shop, "squad", path)
    assert not teaching.quality(shop, "squad")


def test_an_answer_that_is_no_label_is_refused(tmp_path, bench) -> None:
    shop = bench("sst2")
    with pytest.raises(DataError, match=r"'great' is no label of sst2 \(negative, positive\)"):
        import_file(shop, "sst2", write_lines(tmp_path / "a.jsonl", answers(shop, "sst2", "great")))


def rows_of(bench: Bench, name: str, model: Any, chat: Any) -> list[dict[str, Any]]:
    examples, labels = encoded(bench, name, "teacher", "train"), 2 if name == "sst2" else 0
    said = LocalTeacher(model, chat, OutputSettings(8, labels=labels)).score(examples)
    return [
        {
            "id": e.id,
            "token_ids": e.targets[e.gold_slice],
            **{key: value.tolist() for key, value in record.items() if key.startswith(("topk", "class"))},
        }
        for e, record in zip(examples, said, strict=True)
    ]


@pytest.mark.parametrize("name", ["squad", "sst2"])
def test_outputs_are_those_that_were_exported(tmp_path, bench, qwen_model, qwen_chat, name) -> None:
    shop, path = None, tmp_path / "k.parquet"
    import_file(bench(name), name, write_lines(tmp_path / "a.jsonl", answers(bench(name), name, "negative")))
    shop = bench(name)
    rows = rows_of(shop, name, qwen_model, qwen_chat)
    parquet.write_table(pa.Table.from_pylist(rows[::-1]), path)
    import_file(shop, name, path)
    cache = teaching.teacher_cache(shop, name)
    assert cache.temperatures == (1.0, 2.0)
    for row in rows:
        for key in ("topk_ids", "topk_logprobs", "class_scores"):
            if key in row:
                np.testing.assert_allclose(cache[row["id"]][key], row[key], atol=1e-6)
    lines = "\n".join(inspect(shop.results, verify=True)[0])
    assert "imported: outputs from k.parquet" in lines and "imported: answers from a.jsonl" in lines


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda row: row | {"token_ids": row["token_ids"][:-1]}, "tokens are not those of the target"),
        (lambda row: row | {"token_ids": [5, *row["token_ids"][1:]]}, "tokens are not those of the target"),
        (lambda row: row | {"topk_ids": row["topk_ids"][:-1]}, "positions of 8 tokens"),
        (lambda row: row | {"topk_logprobs": [one[:3] for one in row["topk_logprobs"]]}, "positions of 8 tokens"),
        (lambda row: row | {"topk_logprobs": [one[::-1] for one in row["topk_logprobs"]]}, "the likeliest first"),
        (lambda row: row | {"topk_logprobs": [[float("nan")] * 8 for _ in row["topk_ids"]]}, "are finite"),
        (lambda row: row | {"topk_logprobs": [[-0.1] * 8 for _ in row["topk_ids"]]}, "together at most 1"),
        (lambda row: row | {"topk_ids": [[99999] * 8 for _ in row["topk_ids"]]}, "tokens are from 0 to"),
        (lambda row: row | {"id": "x"}, "lacks 1 ids"),
        (lambda row: {key: value for key, value in row.items() if key != "token_ids"}, "lacks the column token_ids"),
    ],
)  # fmt: skip
def test_outputs_that_this_teacher_cannot_have_said_are_refused(
    tmp_path, bench, qwen_model, qwen_chat, change, problem
) -> None:
    import_file(bench("squad"), "squad", write_lines(tmp_path / "a.jsonl", answers(bench("squad"), "squad")))
    shop = bench("squad")
    rows = rows_of(shop, "squad", qwen_model, qwen_chat)
    changed = [change(rows[0]), *rows[1:]]
    if "token_ids" not in changed[0]:
        changed = [change(row) for row in rows]
    parquet.write_table(pa.Table.from_pylist(changed), tmp_path / "k.parquet")
    with pytest.raises(DataError, match=problem):
        import_file(shop, "squad", tmp_path / "k.parquet")


def test_a_file_that_is_none_of_both_is_told_by_the_command(tmp_path, bench, models, capsys) -> None:
    assert cli.main(["cache", "--import", str(tmp_path / "a.csv"), "--results", str(tmp_path / "r")]) == 2
    assert "say of which task it is: --task sst2 or squad" in capsys.readouterr().err
    (tmp_path / "k.parquet").write_bytes(b"no")
    for name, problem in (("a.csv", "give JSON lines"), ("a.jsonl", "cannot be read"), ("k.parquet", "cannot be read")):
        with pytest.raises(DataError, match=problem):
            import_file(bench("squad"), "squad", tmp_path / name)

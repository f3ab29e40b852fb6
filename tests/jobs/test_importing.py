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

from kdsuite import cli, pipeline
from kdsuite.config import Settings, changed
from kdsuite.errors import DataError, RunError, SettingsError
from kdsuite.jobs import teaching
from kdsuite.jobs.asking import build_teacher_outputs
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.data import encoded, splits
from kdsuite.jobs.importing import import_file
from kdsuite.jobs.teaching import identity
from kdsuite.plan import RunSpec
from kdsuite.runtime import device
from kdsuite.runtime.progress import Progress
from kdsuite.teacher import cached, shards
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


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_end_where_json_lines_do_whatever_an_answer_holds(tmp_path, bench, end) -> None:
    shop, separators = bench("squad"), "one\u2028two\u0085three"
    rows = [row | {"confidence": None} for row in answers(shop, "squad", separators)]
    text = end.join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl").write_bytes(text.encode("utf-8-sig"))
    import_file(shop, "squad", tmp_path / "a.jsonl")
    said = teaching.answers(shop, "squad")
    assert {row["raw"] for row in said} == {separators} and {row["confidence"] for row in said} == {0.0}


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
        (lambda rows: [rows[0] | {"confidence": 10**400}, *rows[1:]], "line 1: not an object with id and answer"),
        (lambda rows: [rows[0] | {"answer": None}, *rows[1:]], "line 1: answer is a text"),
        (lambda rows: [rows[0] | {"answer": "cut \ud83d"}, *rows[1:]], "line 1: answer is a text of whole characters"),
        (lambda rows: [rows[0] | {"id": None}, *rows[1:]], "lacks 1 ids"),
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
        (lambda row: row | {"token_ids": None}, "token_ids are whole numbers, one per token of the target"),
        (lambda row: row | {"token_ids": [None, *row["token_ids"][1:]]}, "token_ids are whole numbers"),
        (lambda row: row | {"topk_ids": None}, "positions have different numbers of tokens, or what are no numbers"),
        (lambda row: row | {"topk_ids": [None, *row["topk_ids"][1:]]}, "positions have different numbers"),
        (lambda row: row | {"topk_ids": [[None] * 8 for _ in row["topk_ids"]]}, "what are no numbers"),
        (lambda row: row | {"topk_logprobs": [[None] * 8 for _ in row["topk_ids"]]}, "are finite"),
        (lambda row: row | {"id": None}, "lacks 1 ids"),
        (lambda row: row | {"topk_ids": row["topk_ids"][:-1]}, "positions of 8 tokens"),
        (lambda row: row | {"topk_logprobs": [one[:3] for one in row["topk_logprobs"]]}, "positions of 8 tokens"),
        (lambda row: row | {"topk_logprobs": [one[::-1] for one in row["topk_logprobs"]]}, "the likeliest first"),
        (lambda row: row | {"topk_logprobs": [[float("nan")] * 8 for _ in row["topk_ids"]]}, "are finite"),
        (lambda row: row | {"topk_logprobs": [[-0.1] * 8 for _ in row["topk_ids"]]}, "together at most 1"),
        (lambda row: row | {"topk_ids": [[*range(99992, 100000)] for _ in row["topk_ids"]]}, "tokens are from 0 to"),
        (lambda row: row | {"topk_ids": [[*one[:-1], one[0]] for one in row["topk_ids"]]}, "a token is there twice"),
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


@pytest.mark.parametrize("scores", [None, [None, None], 0.5])
def test_scores_of_labels_that_are_none_are_refused(tmp_path, bench, qwen_model, qwen_chat, scores) -> None:
    import_file(bench("sst2"), "sst2", write_lines(tmp_path / "a.jsonl", answers(bench("sst2"), "sst2", "negative")))
    shop = bench("sst2")
    rows = [row | {"class_scores": scores} for row in rows_of(shop, "sst2", qwen_model, qwen_chat)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "k.parquet")
    with pytest.raises(DataError, match=r"2 class scores are wanted|log-probabilities are finite"):
        import_file(shop, "sst2", tmp_path / "k.parquet")


def test_a_file_that_is_none_of_both_is_told_by_the_command(tmp_path, bench, models, capsys) -> None:
    assert cli.main(["cache", "--import", str(tmp_path / "a.csv"), "--results", str(tmp_path / "r")]) == 2
    assert "say of which task it is: --task sst2 or squad" in capsys.readouterr().err
    (tmp_path / "k.parquet").write_bytes(b"no")
    for name, problem in (("a.csv", "give JSON lines"), ("a.jsonl", "cannot be read"), ("k.parquet", "cannot be read")):
        with pytest.raises(DataError, match=problem):
            import_file(bench("squad"), "squad", tmp_path / name)


@pytest.mark.parametrize(
    ("sections", "lacking"),
    [
        ({"methods": ["KD1", "KD3"]}, "hidden states, which no file tells"),
        ({"kd1": {"standardise": True}}, "standardised logits, which"),
        ({"kd1": {"targets": "sampled"}}, "drawn tokens, which"),
    ],
)
def test_a_plan_that_reads_what_no_file_tells_is_refused(tmp_path, bench, models, sections, lacking) -> None:
    """Of a teacher that is loaded here, else the runs would fail one by one."""
    shop = bench("squad")
    local = changed(shop.settings, {"models.teacher": {"name": str(models["teacher"])}} | sections)
    shop = Bench(local, tmp_path / "results", shop.choice, Progress.silent())
    parquet.write_table(pa.Table.from_pylist([{"id": "x"}]), tmp_path / "k.parquet")
    with pytest.raises(SettingsError, match=lacking):
        import_file(shop, "squad", tmp_path / "k.parquet")


def other(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What another teacher might have said: other probabilities, and the other label."""
    return [
        row
        | {"topk_logprobs": [[value - 0.5 for value in one] for one in row["topk_logprobs"]]}
        | ({"class_scores": row["class_scores"][::-1]} if "class_scores" in row else {})
        for row in rows
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def run_of(method: str, name: str) -> RunSpec:
    points = {"KD1": {"temperature": 2.0, "alpha": 0.5}}
    return RunSpec("teacher", name) if method == "teacher" else RunSpec(method, name, "S1", 42, points.get(method, {}))


def pending(bench: Bench, name: str) -> set[str]:
    """The methods whose run is not done under what is known now; then all are."""
    specs = [run_of(method, name) for method in ("B0", "KD1", "KD2", "teacher")]
    found = {s.method for s in specs if bench.registry.state(s.run_id, identity(bench, s)) != "completed"}
    for spec in specs:
        if spec.method in found:
            bench.registry.start(spec.run_id, identity(bench, spec), spec.as_dict())
            bench.registry.complete(spec.run_id)
    return found


def parts(bench: Bench, name: str) -> list[str]:
    return sorted(path.name for path in teaching.cache_folder(bench, name).glob("*part-*"))


@pytest.mark.parametrize("name", ["squad", "sst2"])
def test_what_is_imported_again_takes_the_place_of_the_first_and_who_learned_that_is_pending(
    tmp_path, bench, qwen_model, qwen_chat, name
) -> None:
    import_file(bench(name), name, write_lines(tmp_path / "a.jsonl", answers(bench(name), name, "negative")))
    shop = bench(name)
    first = rows_of(shop, name, qwen_model, qwen_chat)
    assert pending(shop, name) == {"B0", "KD1", "KD2", "teacher"}
    by_outputs = {"KD1", "KD2"} if name == "sst2" else {"KD1"}  # answers are read off the scores of labels
    for number, rows in enumerate((first, other(first), first), 1):
        import_file(shop, name, write_rows(tmp_path / f"k{number}.parquet", rows))
        cache = teaching.teacher_cache(shop, name)
        for row in rows:
            for key in ("topk_logprobs", "class_scores"):
                if key in row:
                    np.testing.assert_allclose(cache[row["id"]][key], row[key], atol=1e-6)
        assert pending(shop, name) == by_outputs
        assert len(parts(shop, name)) == 1
        lines, damaged = inspect(shop.results, verify=True)
        assert f"imported: outputs from k{number}.parquet" in "\n".join(lines) and not damaged
    import_file(shop, name, write_lines(tmp_path / "b.jsonl", answers(shop, name, "positive")))
    assert pending(shop, name) == {"KD2"}
    assert set(teaching.lessons(shop, name, "KD2").values()) == {"positive"}
    import_file(shop, name, write_lines(tmp_path / "c.jsonl", answers(shop, name, "positive")))
    assert pending(shop, name) == set()  # of the same bytes


def test_labels_that_were_read_off_imported_scores_are_read_off_the_next(
    tmp_path, bench, qwen_model, qwen_chat
) -> None:
    import_file(bench("sst2"), "sst2", write_lines(tmp_path / "a.jsonl", answers(bench("sst2"), "sst2", "negative")))
    shop = bench("sst2")
    rows = rows_of(shop, "sst2", qwen_model, qwen_chat)
    (teaching.cache_folder(shop, "sst2") / "answers.jsonl").unlink()
    (teaching.cache_folder(shop, "sst2") / "quality.json").unlink()
    learned, reached = [], []
    for number, some in enumerate((rows, other(rows))):
        shop = bench("sst2")
        import_file(shop, "sst2", write_rows(tmp_path / f"k{number}.parquet", some))
        build_teacher_outputs(shop, "sst2")
        learned.append(teaching.lessons(shop, "sst2", "KD2"))
        reached.append(teaching.quality(shop, "sst2")["coverage"]["S1"]["mass"])
    assert all(learned[0][id] != learned[1][id] for id in learned[0])
    assert reached[1] < reached[0]


def test_a_file_that_is_refused_or_an_import_that_is_stopped_leaves_what_was_there(
    tmp_path, bench, qwen_model, qwen_chat, monkeypatch
) -> None:
    import_file(bench("squad"), "squad", write_lines(tmp_path / "a.jsonl", answers(bench("squad"), "squad")))
    shop = bench("squad")
    rows = rows_of(shop, "squad", qwen_model, qwen_chat)
    import_file(shop, "squad", write_rows(tmp_path / "k.parquet", rows))
    build_teacher_outputs(shop, "squad")
    pending(shop, "squad")
    before = {path: path.read_bytes() for path in teaching.cache_folder(shop, "squad").iterdir() if path.is_file()}

    def all_is_as_it_was() -> bool:
        return before == {path: path.read_bytes() for path in before} and not pending(bench("squad"), "squad")

    new = write_rows(tmp_path / "new.parquet", other(rows))
    bad = write_rows(tmp_path / "bad.parquet", [*other(rows)[:-1], rows[-1] | {"token_ids": [5]}])
    with pytest.raises(DataError, match="tokens are not those of the target"):
        import_file(shop, "squad", bad)
    assert all_is_as_it_was() and len(parts(shop, "squad")) == 1
    with monkeypatch.context() as patch:  # killed: nothing more is written, and nothing removed

        def killed(*given: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(cached, "atomic_write_record", killed)
        patch.setattr(cached, "remove_unlisted", lambda *given: None)
        with pytest.raises(KeyboardInterrupt):
            import_file(shop, "squad", new)
    assert len(parts(shop, "squad")) == 2 and teaching.teacher_cache(bench("squad"), "squad").manifest["complete"]
    assert teaching.teacher_cache(bench("squad"), "squad")[rows[0]["id"]]["topk_logprobs"][0, 0] == pytest.approx(
        rows[0]["topk_logprobs"][0][0]
    )
    import_file(shop, "squad", new)
    assert len(parts(shop, "squad")) == 1
    assert pending(bench("squad"), "squad") == {"KD1"}


def test_what_was_imported_and_is_damaged_is_told_and_not_asked_for(tmp_path, bench, qwen_model, qwen_chat) -> None:
    lines = write_lines(tmp_path / "a.jsonl", answers(bench("squad"), "squad"))
    import_file(bench("squad"), "squad", lines)
    shop = bench("squad")
    rows = write_rows(tmp_path / "k.parquet", rows_of(shop, "squad", qwen_model, qwen_chat))
    import_file(shop, "squad", rows)
    [part] = parts(shop, "squad")
    for what, file, again in (("outputs", part, rows), ("answers", "answers.jsonl", lines)):
        path = teaching.cache_folder(shop, "squad") / file
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(RunError, match=f"the {what} of squad were imported and are not what was written; import"):
            build_teacher_outputs(bench("squad"), "squad")
        import_file(bench("squad"), "squad", again)
        build_teacher_outputs(bench("squad"), "squad")


def test_who_knows_of_the_first_import_does_not_learn_the_second(tmp_path, bench, qwen_model, qwen_chat) -> None:
    import_file(bench("squad"), "squad", write_lines(tmp_path / "a.jsonl", answers(bench("squad"), "squad")))
    rows = rows_of(bench("squad"), "squad", qwen_model, qwen_chat)
    import_file(bench("squad"), "squad", write_rows(tmp_path / "k.parquet", rows))
    trains = bench("squad")
    identity(trains, run_of("KD1", "squad"))
    import_file(bench("squad"), "squad", write_rows(tmp_path / "k2.parquet", other(rows)))
    import_file(bench("squad"), "squad", write_lines(tmp_path / "b.jsonl", answers(bench("squad"), "squad", "another")))
    for read in (teaching.teacher_cache, teaching.answers):
        with pytest.raises(RunError, match="of squad were imported anew meanwhile; give the same command again"):
            read(trains, "squad")


def test_nobody_asks_for_a_part_while_a_cache_is_replaced(tmp_path, one_task, monkeypatch) -> None:
    monkeypatch.setattr(shards, "SHARD", 6)
    monkeypatch.setattr(
        pipeline, "import_file", lambda shop, *_: str({path.name for path in shop.locks.folder.iterdir()})
    )
    held = pipeline.import_cache(one_task, tmp_path, "mine", tmp_path / "k.parquet", Progress.silent())
    assert "teacher-mine'" in held and all(f"teacher-mine-part-{number}'" in held for number in range(4))

"""Prepared data: what of them stands in training is told once and kept; another rule of splitting makes them anew."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from kdsuite import pipeline
from kdsuite.config import Settings, changed, task_section
from kdsuite.errors import DataError
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.data import refuse_unreadable, splits
from kdsuite.jobs.looking import look
from kdsuite.runtime import device
from kdsuite.runtime.progress import Progress
from kdsuite.store.files import read_json

TRAIN = [f"sentence {n} of all that are trained on" for n in range(40)]
REPORTED = ["another one that nobody has seen", "nothing to do with them"]


def prepared(settings: Settings, results: Path, reported: list[str]) -> tuple[dict[str, Any], str]:
    """The record of the prepared data, and what was said while they were made or found."""
    for name, texts in (("train.tsv", TRAIN), ("dev.tsv", reported)):
        (results / name).write_text("\n".join(["sentence\tlabel", *(f"{text}\t1" for text in texts)]))
    task = task_section("sst2", source=str(results), dev_size=5)
    settings = settings.model_copy(update={"tasks": {"sst2": task}})
    bench = Bench(settings, results, device.choose("cpu", "float32", 1), Progress(stream=(said := io.StringIO())))
    splits(bench, "sst2")
    return read_json(bench.layout.processed("sst2") / "manifest.json"), said.getvalue()


def test_what_stands_in_training_is_kept_and_told_when_data_are_made(settings: Settings, tmp_path: Path) -> None:
    leaky = [*REPORTED, "Sentence 3 of all that are trained on", "of all that are trained on"]
    record, said = prepared(settings, tmp_path, leaky)
    held_out = {"examples": 5, "repeated": 0, "contained": 0, "mostly_shared": 0, "shares_8_words": 0}
    assert record["in_training_text"]["dev"] == held_out
    assert record["in_training_text"]["validation"]["contained"] == 2
    assert "sst2: not held out, of 4 validation examples: " in said and " 2 whole inside a training text" in said
    assert prepared(settings, tmp_path, leaky) == (record, ""), "found again, in silence"


def test_nothing_is_said_of_clean_data(settings: Settings, tmp_path: Path) -> None:
    record, said = prepared(settings, tmp_path, REPORTED)
    assert set(record["in_training_text"]) == {"dev", "validation"} and said == ""


def test_another_rule_of_splitting_makes_the_data_anew(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = prepared(settings, tmp_path, REPORTED)
    monkeypatch.setattr("kdsuite.tasks.splits.SPLITS_VERSION", 1)
    after, said = prepared(settings, tmp_path, REPORTED)
    assert after["key"] != before["key"] and said == ""


@pytest.mark.parametrize("first", [0, 1])
def test_only_some_rows_may_have_a_passage(one_task: Settings, tmp_path: Path, first: int) -> None:
    def rows(count: int) -> str:
        made = [{"question": f"Who came in {n}?", "answer": "Ada"} for n in range(first, first + count)]
        made = [row | ({"context": f"Ada came in {n}."} if n % 2 else {}) for n, row in enumerate(made, first)]
        return "".join(json.dumps(row) + "\n" for row in made)

    (tmp_path / "rows.jsonl").write_text(rows(40))
    (tmp_path / "test.jsonl").write_text(rows(4))
    task = {"kind": "short_answer", "source": str(tmp_path / "rows.jsonl"), "splits": {"validation": "test.jsonl"}}
    settings = changed(one_task, {"tasks": {"q": task | {"dev_size": 4, "max_length": 20}}})
    bench = Bench(settings, tmp_path / "r", device.choose("cpu", "float32", 1), Progress.silent())
    assert [len(e.inputs) for e in splits(bench, "q")["validation"]] == [1 + (first + n) % 2 for n in range(4)]
    pipeline.write_plan(bench)
    prompt = read_json(bench.layout.plan)["tasks"]["q"]["prompt"]
    assert "\ue000context\ue001" in prompt and "\ue000question\ue001" in prompt
    told = [line for line in look(settings, ["q"], bench.choice) if "of max_length" in line]
    assert len(told) == 2 and all(line.endswith("the run would refuse them") for line in told)


@pytest.mark.parametrize("kind", ["generation", "classification"])
def test_what_is_said_to_be_too_long_is_what_a_run_refuses(one_task: Settings, tmp_path: Path, kind: str) -> None:
    """To the token: the last one of an answer is not read, and all labels stand behind a prompt."""
    labels = ["quite as it was said before", "no"]
    rows = [{"prompt": "Is it?", "text": "Is it?", "who": n} for n in range(40)]
    rows = [row | {"completion": labels[n % 2], "label": labels[n % 2]} for n, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text(json.dumps(rows[0]) + "\n")
    one = {"kind": kind, "source": str(tmp_path / "rows.jsonl"), "splits": {"validation": "test.jsonl"}, "dev_size": 1}
    one |= {"columns": {"group": "who"}, "max_new_tokens": 1} | ({"labels": labels} if kind == "classification" else {})

    def seen(max_length: int) -> tuple[str, bool]:
        """What is told, and whether a run refuses."""
        settings = changed(one_task, {"tasks": {"g": one | {"max_length": max_length}}})
        bench = Bench(settings, tmp_path / "r", device.choose("cpu", "float32", 1), Progress.silent())
        [line] = [line for line in look(settings, ["g"], bench.choice) if line.startswith("  little,")]
        try:
            refuse_unreadable(bench, "g", ["little"])
        except DataError:
            return line, True
        return line, False

    longest = int(seen(2000)[0].split(",")[2].split()[-1])
    found = [seen(max_length) for max_length in range(longest - 2, longest + 20)]
    assert all(line.endswith("the run would refuse them") == refused for line, refused in found)
    assert {refused for _, refused in found} == {True, False}


@pytest.mark.parametrize(
    ("stage", "row", "told"),
    [
        ("cache", {"prompt": "Go on.", "completion": "word " * 60 + "end"}, "the target alone takes"),
        ("train", {"prompt": "word " * 60 + "end", "completion": "So."}, "the prompt is longer than max_length"),
    ],
)
def test_texts_that_are_too_long_are_told_before_a_model_is_loaded(
    one_task: Settings, tmp_path: Path, stage: str, row: dict[str, str], told: str
) -> None:
    rows = [*({"prompt": f"Say {n}.", "completion": f"{n}."} for n in range(30)), row]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text(json.dumps(rows[0]) + "\n")
    one = {"kind": "generation", "source": str(tmp_path / "rows.jsonl"), "max_length": 60, "max_new_tokens": 4}
    one |= {"dev_size": 1, "splits": {"validation": "test.jsonl"}}
    settings, said = changed(one_task, {"tasks": {"g": one}}), io.StringIO()
    with pytest.raises(DataError, match=f"example g-train-30: {told}"):
        pipeline.run(settings, tmp_path / "results", (stage,), progress=Progress(stream=said, live=False))
    assert "loading" not in said.getvalue() and not list((tmp_path / "results").rglob("models/*"))

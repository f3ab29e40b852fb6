"""SQuAD from official files: answers where they say, and a broken question named by its id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdsuite.config import task_section
from kdsuite.errors import DataError
from kdsuite.tasks.example import task_of

TASKS = {"sst2": task_of("sst2", task_section("sst2")), "squad": task_of("squad", task_section("squad"))}

SQUAD = TASKS["squad"]
CONTEXT = "Ada Lovelace lived in London. London is large."


def question(**fields: Any) -> dict[str, Any]:
    answers = [{"text": "London", "answer_start": 22}, {"text": "in London", "answer_start": 19}]
    return {"id": "q1", "question": " Where did Ada live? ", "answers": answers} | fields


def load(folder: Path, content: Any):
    text = content if isinstance(content, str) else json.dumps(content)
    settings = task_section("squad", source=str(folder))
    (folder / str(settings.splits.train)).write_text(text, encoding="utf-8")
    return task_of("squad", settings).load("train")


def of(*questions: dict[str, Any], context: str = CONTEXT) -> dict[str, Any]:
    return {"version": "1.1", "data": [{"paragraphs": [{"context": context, "qas": list(questions)}]}]}


def test_the_first_answer_is_the_target_and_all_are_references(tmp_path: Path) -> None:
    [example] = load(tmp_path, of(question()))
    assert (example.id, example.target, example.answer_start) == ("q1", "London", 22)
    assert example.references == ("London", "in London")
    assert example.inputs == {"context": CONTEXT, "question": "Where did Ada live?"}


def test_white_space_around_an_answer_is_not_learned(tmp_path: Path) -> None:
    [example] = load(tmp_path, of(question(answers=[{"text": " London", "answer_start": 21}])))
    assert example.target == "London"
    assert example.answer_start is not None
    assert CONTEXT[example.answer_start :].startswith("London")


def test_questions_of_one_passage_share_a_group(tmp_path: Path) -> None:
    one, two = load(tmp_path, of(question(), question(id="q2")))
    assert one.group == two.group


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"data": [', r"line 1: not valid JSON"),
        ([], "no row in it"),
        ({"data": [{"title": "x"}]}, "article 0 has no 'paragraphs'"),
        (of(question(answers=[])), "question q1: no answer in column 'answers'"),
        (of(question(answers=[{"text": " ", "answer_start": 0}])), "question q1: the answer is empty"),
        (
            of(question(answers=[{"text": "Paris", "answer_start": 0}])),
            "question q1: the answer 'Paris' is not in its context",
        ),
        (
            of(question(answers=[{"text": "London", "answer_start": 3}])),
            "question q1: the answer 'London' is not at 3 but at 22",
        ),
        (of({"id": "q1", "answers": question()["answers"]}), "question q1: no column 'question'"),
    ],
)
def test_a_bad_file_is_named_with_the_place(tmp_path: Path, content: Any, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        load(tmp_path, content)
    assert "train-v1.1.json" in str(caught.value)


def test_a_missing_file_says_which_keys_name_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data file .*train-v1\.1\.json; set the task's source"):
        task_of("squad", task_section("squad", source=str(tmp_path))).load("train")


def test_scores_take_the_best_reference() -> None:
    assert SQUAD.score("the London", ("Paris", "London")) == {"exact_match": 1.0, "f1": 1.0}
    assert SQUAD.score("in London town", ("Paris", "in London"))["f1"] == pytest.approx(0.8)
    metrics = SQUAD.aggregate(["London", "Rome"], [("London",), ("Paris",)])
    assert metrics == {"f1": 50.0, "exact_match": 50.0, "n": 2}


def test_a_window_replaces_the_context_in_the_prompt(tmp_path: Path) -> None:
    [example] = load(tmp_path, of(question()))
    [message] = SQUAD.messages(example, "London is large.")
    assert "London is large." in message["content"] and "Lovelace" not in message["content"]
    assert "Where did Ada live?" in message["content"]


def test_the_official_validation_file_is_read_whole(real: Path) -> None:
    settings = task_section("squad", source=str(real / "squad"))
    examples = task_of("squad", settings).load("validation")
    assert len(examples) == 10_570
    for example in examples:
        start = example.answer_start
        assert start is not None
        assert example.inputs["context"][start:].startswith(example.references[0].strip())

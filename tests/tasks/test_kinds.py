"""The three kinds of task: what a row becomes, how it is asked, how an answer is scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sacrebleu import sentence_chrf

from kdsuite.config import task_section
from kdsuite.errors import DataError
from kdsuite.tasks.example import Example, Task, task_of


def loaded(path: Path, rows: list[dict[str, Any]], **values: Any) -> tuple[Task, list[Example]]:
    path = path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = task_of("mine", task_section("mine", {"source": str(path), **values}))
    return task, task.load("train") or []


def asked(task: Task, example: Example) -> str:
    [message] = task.messages(example)
    return message["content"]


# --- classification


def test_labels_come_by_name_or_place_and_a_name_wins(tmp_path: Path) -> None:
    said = ["b", 0, "1", True, 2.0, "c"]
    _, examples = loaded(
        tmp_path, [{"text": "t", "label": v} for v in said], kind="classification", labels=["a", "b", "c"]
    )
    assert [e.target for e in examples] == ["b", "a", "b", "b", "c", "c"]
    stars = [{"text": "t", "label": v} for v in (1, "2", 3)]
    _, examples = loaded(tmp_path, stars, kind="classification", labels=[1, 2, 3])
    assert [e.target for e in examples] == ["1", "2", "3"]
    answers = [{"text": "t", "label": v} for v in (True, 0)]
    _, examples = loaded(tmp_path, answers, kind="classification", labels=[1, 0])
    assert [e.target for e in examples] == ["1", "0"]
    answers = [{"text": "t", "label": v} for v in (True, "false")]
    _, examples = loaded(tmp_path, answers, kind="classification", labels=[False, True])
    assert [e.target for e in examples] == ["true", "false"]


@pytest.mark.parametrize("labels", [[1, 2, 3, 4, 5], ["-1", "0", "1"], ["1", "many"]])
def test_where_labels_are_numbers_another_number_is_none(tmp_path: Path, labels: list[Any]) -> None:
    """0 to 4 for one to five stars: by place for 0, by name for 1, both would be 1."""
    named = [{"text": "t", "label": v} for v in labels]
    _, examples = loaded(tmp_path, named, kind="classification", labels=labels)
    assert [e.target for e in examples] == [str(label) for label in labels]
    unnamed = {"text": "t", "label": 2 if "-1" in labels else 0}
    with pytest.raises(DataError, match=rf"'{unnamed['label']}' is none of the labels"):
        loaded(tmp_path, [*named, unnamed], kind="classification", labels=labels)


def test_several_inputs_are_named_in_the_usual_prompt_and_one_is_not(tmp_path: Path) -> None:
    rows = [{"title": "T", "body": "B", "text": "X", "label": "a"}]
    task, [example] = loaded(
        tmp_path, rows, kind="classification", labels=["a", "b"], columns={"input": ["title", "body"]}
    )
    assert asked(task, example).startswith("title: T\n\nbody: B\n\nWhich of these is it: a, b?")
    task, [example] = loaded(tmp_path, rows, kind="classification", labels=["a", "b"])
    assert asked(task, example).startswith("X\n\nWhich of these is it: a, b?")


def test_a_partial_mapping_of_columns_drops_no_other_default(tmp_path: Path) -> None:
    rows = [{"id": 7, "group": "g", "headline": "H", "label": "a"}]
    _, [example] = loaded(
        tmp_path, rows, kind="classification", labels=["a", "b"], columns={"input": {"news": "headline"}}
    )
    assert (example.id, example.group, example.inputs, example.target) == ("7", "g", {"news": "H"}, "a")


def test_macro_f1_is_the_mean_over_labels_and_positive_asks_for_one(tmp_path: Path) -> None:
    gold = [("a",), ("a",), ("b",), ("c",)]
    task, _ = loaded(tmp_path, [{"text": "t", "label": "a"}], kind="classification", labels=["a", "b", "c"])
    found = task.aggregate(["a", "b", "b", "a"], gold)  # F1: 1/2, 2/3, 0
    assert found == {"accuracy": 50.0, "macro_f1": pytest.approx(100 * (1 / 2 + 2 / 3) / 3), "n": 4}
    task, _ = loaded(
        tmp_path, [{"text": "t", "label": "a"}], kind="classification", labels=["a", "b", "c"], positive="b"
    )
    assert task.aggregate(["a", "b", "b", "a"], gold) == {"accuracy": 50.0, "f1": pytest.approx(200 / 3), "n": 4}


def test_macro_f1_is_of_labels_that_are_gold_or_answered(tmp_path: Path) -> None:
    """As scikit-learn has it: of a label that is neither, nothing is known."""
    task, _ = loaded(tmp_path, [{"text": "t", "label": "a"}], kind="classification", labels=["a", "b", "c"])
    assert task.aggregate(["a", "b"], [("a",), ("b",)])["macro_f1"] == 100.0
    assert task.aggregate(["a", "c"], [("a",), ("a",)])["macro_f1"] == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert task.aggregate(["a", "a"], [("a",), ("c",)])["macro_f1"] == pytest.approx(100 * (2 / 3 + 0) / 2)


@pytest.mark.parametrize(
    ("said", "read"),
    [("b", "b"), (1, "b"), (["a", "b"], "ab"), ([1], "b"), (["2", True, 0.0], "cba"), ("", "c"), ([], "c")],
)
def test_references_are_read_as_labels_are_and_empty_ones_are_the_target(tmp_path: Path, said: Any, read: str) -> None:
    rows = [{"text": "t", "label": "c", "right": said}]
    task, [example] = loaded(
        tmp_path, rows, kind="classification", labels=["a", "b", "c"], columns={"references": "right"}
    )
    assert (example.target, example.references) == ("c", tuple(read))
    rows = [{"text": "t", "label": "c", "references": said}]
    assert loaded(tmp_path, rows, kind="classification", labels=["a", "b", "c"])[1][0].references == tuple(read)


def test_a_reference_that_is_no_label_is_told_with_its_column(tmp_path: Path) -> None:
    rows = [{"text": "t", "label": "a", "references": ["a", "bb"]}]
    with pytest.raises(DataError, match=r"line 1: column 'references': 'bb' is none of the labels; did you mean 'b'"):
        loaded(tmp_path, rows, kind="classification", labels=["a", "b"])


@pytest.mark.parametrize("positive", [None, "b"])
def test_any_of_several_references_is_right_for_every_metric(tmp_path: Path, positive: str | None) -> None:
    gold, said = [("a", "b"), ("a", "b"), ("c",), ("b", "c")], ["a", "b", "c", "a"]
    task, _ = loaded(
        tmp_path,
        [{"text": "t", "label": "a"}],
        kind="classification",
        labels=["a", "b", "c"],
        **({"positive": positive} if positive else {}),
    )
    found = task.aggregate(said, gold)
    scores = [task.score(*one)["accuracy"] for one in zip(said, gold, strict=True)]
    assert found["accuracy"] == 75.0 == 100 * sum(scores) / len(scores)
    f1 = {"a": 2 / 3, "b": 2 / 3, "c": 1.0}  # the last is held against its first reference: a wrong a, a missing b
    expected = f1[positive] if positive else sum(f1.values()) / 3
    assert found[task.secondary_metric] == pytest.approx(100 * expected)


# --- short answers


@pytest.mark.parametrize(
    "answers",
    ["red", ["red", "dark red"], [{"text": "red", "answer_start": 4}, "dark red"], {"text": ["red", "dark red"]}],
)
def test_answers_may_be_a_text_a_list_or_squads_mapping(tmp_path: Path, answers: Any) -> None:
    _, [example] = loaded(
        tmp_path, [{"question": "q?", "context": "The red car.", "answers": answers}], kind="short_answer"
    )
    assert (example.target, example.answer_start, example.references[0]) == ("red", 4, "red")


@pytest.mark.parametrize("kind", ["generation", "classification", "short_answer"])
def test_an_input_called_context_is_asked_in_the_usual_prompt(tmp_path: Path, kind: str) -> None:
    row = {"context": "The passage.", "question": "Why?", "completion": "c", "label": "a", "answer": "b"}
    more = {"labels": ["a", "b"]} if kind == "classification" else {}
    task, [example] = loaded(tmp_path, [row], kind=kind, columns={"input": ["context", "question"]}, **more)
    assert asked(task, example).count("The passage.") == asked(task, example).count("Why?") == 1
    assert "another" in task.messages(example, "another")[-1]["content"]


@pytest.mark.parametrize(
    "columns", [{}, {"input": ["context", "question"]}, {"input": {"context": "text", "q": "question"}}]
)
def test_a_passage_is_read_as_it_is_however_it_is_named(tmp_path: Path, columns: dict[str, Any]) -> None:
    column = "text" if isinstance(columns.get("input"), dict) else "context"
    row = {"question": "q?", column: " The red car.", "answers": {"text": ["red"], "answer_start": [5]}}
    _, [example] = loaded(tmp_path, [row], kind="short_answer", columns=columns)
    assert (example.inputs["context"], example.answer_start) == (" The red car.", 5)


def test_numbers_among_answers_are_written_as_they_are_alone(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": answer} for i, answer in enumerate((3.0, [3.0], [{"text": 3.0}], [3]))]
    _, examples = loaded(tmp_path, rows, kind="short_answer")
    assert [(e.target, e.references) for e in examples] == [("3", ("3",))] * 4


def test_without_a_context_a_question_is_just_asked_and_the_first_line_is_the_answer(tmp_path: Path) -> None:
    task, [example] = loaded(tmp_path, [{"question": "Capital of Peru?", "answer": "Lima"}], kind="short_answer")
    assert asked(task, example) == "Question: Capital of Peru?\n\nAnswer with a few words."
    assert task.clean("\n Lima \nBecause", example) == "Lima"
    assert example.answer_start is None


def test_an_answer_that_is_no_span_of_its_context_is_kept(tmp_path: Path) -> None:
    _, [example] = loaded(tmp_path, [{"question": "Is it?", "context": "It is.", "answer": "yes"}], kind="short_answer")
    assert (example.target, example.answer_start) == ("yes", None)


def test_a_target_scores_full_however_its_accents_are_written(tmp_path: Path) -> None:
    for kind, names in (("short_answer", ("question", "answer")), ("generation", ("prompt", "completion"))):
        rows = [dict(zip(names, ("Which café?", "le cafe\u0301 noir"), strict=True))]
        task, [example] = loaded(tmp_path, rows, kind=kind)
        assert example.target == "le caf\u00e9 noir"
        scores = task.score(example.target, example.references)
        assert all(score == pytest.approx(1.0) for score in scores.values())


@pytest.mark.parametrize("said", ["four", ["four"], 4, [4]])
def test_references_are_a_text_or_a_list_and_numbers_are_texts(tmp_path: Path, said: Any) -> None:
    for kind, names in (("short_answer", ("question", "answer")), ("generation", ("prompt", "completion"))):
        rows = [dict(zip(names, ("2 + 2?", "4"), strict=True)) | {"right": said}]
        _, [example] = loaded(tmp_path, rows, kind=kind, columns={"references": "right"})
        assert example.references == ("four" if "four" in str(said) else "4",)


# --- generation


def test_rouge_and_chrf_are_those_of_their_libraries_and_take_the_best_reference(tmp_path: Path) -> None:
    task, _ = loaded(tmp_path, [{"prompt": "p", "completion": "c"}], kind="generation")
    said, right = "the cat sat", ["a dog ran", "the cat was sitting"]
    scores = task.score(said, right)
    assert scores["rouge_l"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))  # Lin 2004: LCS "the cat"
    assert scores["chrf"] == pytest.approx(sentence_chrf(said, right).score / 100)
    assert task.score("", right) == {"rouge_l": 0.0, "chrf": 0.0}


def test_exact_match_compares_what_the_pattern_finds_last(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "2 and 3 are 5\n#### 5"}]
    task, [example] = loaded(tmp_path, rows, kind="generation", extract=r"####\s*(-?\d+)")
    assert (task.metric, task.secondary_metric) == ("exact_match", "rouge_l")
    score = lambda said: task.score(said, example.references)["exact_match"]  # noqa: E731
    assert [score(said) for said in ("#### 5", "#### 4 … #### 5", "#### 5 … #### 4", "5", "")] == [1, 1, 0, 0, 0]


def test_a_metric_of_ones_own_is_found_in_the_folder_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lengths_of_this_test.py").write_text(
        "def shorter(said, right):\n    return min(1.0, len(said) / max(map(len, right)))\n"
    )
    task, [example] = loaded(
        tmp_path,
        [{"prompt": "p", "completion": "four"}],
        kind="generation",
        metrics=["lengths_of_this_test:shorter", "exact_match"],
    )
    assert task.aggregate(["fo", "four"], [example.references] * 2) == {"shorter": 75.0, "exact_match": 50.0, "n": 2}


def test_unlabeled_chats_end_with_the_users_turn_or_are_read_up_to_it(tmp_path: Path) -> None:
    asked, answer = [{"role": "user", "content": "Hi"}], {"role": "assistant", "content": "Hello"}
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in (asked, [*asked, answer])))
    task, [example] = loaded(
        tmp_path, [{"messages": [*asked, answer]}], kind="generation", unlabeled=str(tmp_path / "raw.jsonl")
    )
    assert {str(task.messages(e)) for e in (example, *task.load("unlabeled"))} == {str(asked)}
    with pytest.raises(
        DataError, match="line 1: column 'messages' should end with the user's and the assistant's turn"
    ):
        loaded(tmp_path, [{"messages": asked}], kind="generation")


@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_chat_rows_are_asked_as_they_are_and_their_last_turn_is_learned(tmp_path: Path, form: str) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?"), ("assistant", "4 ")]
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    row = {
        "messages": [{"role": role, "content": text} for role, text in turns],
        "conversations": [{"from": names[role], "value": text} for role, text in turns],
    }
    task, [example] = loaded(tmp_path, [{form: row[form]}], kind="generation")
    assert example.target == "4"
    assert task.messages(example) == row["messages"][:-1]
    assert task.pattern(example.inputs) == "\ue000messages\ue001"


def test_what_a_prompt_names_are_columns_but_for_what_its_kind_offers(tmp_path: Path) -> None:
    rows = [{"context": "C", "labels": "L", "question": "Q", "completion": "c", "label": "b"}]
    prompt = "{{ context }} {{ labels }} {{ question }}"
    task, [example] = loaded(tmp_path, rows, kind="generation", prompt=prompt)
    assert asked(task, example) == "C L Q" and task.settings.identity()["read"] == ["context", "labels"]
    task, [example] = loaded(tmp_path, rows, kind="classification", labels=["a", "b"], prompt=prompt)
    assert asked(task, example) == "C ['a', 'b'] Q"
    task, [example] = loaded(tmp_path, [*rows], kind="short_answer", prompt=prompt, columns={"target": "label"})
    assert asked(task, example) == "C L Q" and list(example.inputs) == ["context", "labels", "question"]
    task, _ = loaded(
        tmp_path, rows, kind="generation", prompt=prompt, columns={"input": ["context", "labels", "question"]}
    )
    assert "read" not in task.settings.identity(), "such runs were right, and stay what they are"


def test_a_prompt_names_its_columns_and_runs_no_code(tmp_path: Path) -> None:
    rows = [{"title": "A {{ 1 }}", "body": "B", "completion": "c"}]
    task, [example] = loaded(tmp_path, rows, kind="generation", prompt="{{ title }} — {{ body | upper }}\n")
    assert asked(task, example) == "A {{ 1 }} — B"
    assert task.pattern(example.inputs) == "\ue000title\ue001 — \ue000BODY\ue001"
    task, [example] = loaded(tmp_path, rows, kind="generation", prompt="{{ title.split(' ')[1] }}")
    assert asked(task, example) == "{{" and task.pattern(example.inputs) == "", "of a name there is no second word"
    with pytest.raises(Exception, match="the prompt cannot be rendered: access to attribute '__class__'"):
        loaded(tmp_path, rows, kind="generation", prompt="{{ title.__class__.__mro__ }}")

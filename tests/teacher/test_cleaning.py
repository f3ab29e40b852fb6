"""Raw teacher answers become spans of the passage, without a look at the gold answers."""

from __future__ import annotations

import json

import pytest

from kdsuite.tasks.metrics import percent, squad_exact_match, squad_f1
from kdsuite.teacher.cleaning import STOPS, clean_answer

CONTEXT = "The Denver Broncos defeated the Carolina Panthers 24–10 in Santa Clara, California, on February 7, 2016."


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ("Denver Broncos", "Denver Broncos"),
        ("  the denver broncos. ", "The Denver Broncos"),
        ("Denver Broncos\nHuman: Context: another passage", "Denver Broncos"),
        ("Denver Broncos Human: What else?", "Denver Broncos"),
        ("The answer is: Santa Clara, California", "Santa Clara, California"),
        ('"February 7, 2016"', "February 7, 2016"),
        ("Peyton Manning", "Peyton Manning"),
        ("", ""),
        ("\n\n", ""),
    ],
)
def test_the_first_answer_is_kept_and_snapped_to_the_context(raw: str, answer: str) -> None:
    assert clean_answer(raw, CONTEXT) == answer


def test_part_of_a_word_is_not_a_span() -> None:
    assert clean_answer("rolina", CONTEXT) == "rolina"


def test_real_answers_come_clean_without_the_gold(real) -> None:
    passages = json.loads((real / "squad" / "train-v1.1-partial.json").read_text(encoding="utf-8"))["data"]
    contexts = {q["id"]: p["context"] for a in passages for p in a["paragraphs"] for q in p["qas"]}
    path = real / "teacher_answers" / "qwen2.5-3b-instruct_squad.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    cleaned = [clean_answer(row["teacher_answer"], contexts[row["id"]]) for row in rows]
    exact = percent([max(squad_exact_match(c, g) for g in r["gold_answers"]) for c, r in zip(cleaned, rows, strict=True)])
    f1 = percent([max(squad_f1(c, g) for g in r["gold_answers"]) for c, r in zip(cleaned, rows, strict=True)])
    assert exact >= 35
    assert f1 >= 55
    assert not any(stop in answer or "\n" in answer for answer in cleaned for stop in STOPS)

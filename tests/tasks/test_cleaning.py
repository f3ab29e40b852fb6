"""Raw answers become spans of the passage, without a look at the gold answers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsuite.tasks.cleaning import clean_answer
from kdsuite.tasks.metrics import percent, squad_exact_match, squad_f1

CONTEXT = (
    "The Denver Broncos defeated the Carolina Panthers 24–10 in Santa Clara, California, on February 7, 2016."
    " Dr. J. P. Smith of the U.S. Army paid £5,000 (7%) for a seat. The stadium, named after John (Jack) "
    "O'Neill (1901–1980), opened in 2014. Its old roof was red brick, its new one is of glass."
)
WINNER = "Who won the game?"


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ("Denver Broncos", "Denver Broncos"),
        ("  the denver broncos. ", "The Denver Broncos"),
        ("Denver Broncos\nHuman: Context: another passage", "Denver Broncos"),
        ("Denver Broncos Human: What else?", "Denver Broncos"),
        ("Denver BroncosHuman: What else?", "Denver Broncos"),
        ("Denver Broncos. You are an AI assistant", "Denver Broncos"),
        ("Denver Broncos Based on the context provided, they won", "Denver Broncos"),
        ("Denver Broncos. They were good.", "Denver Broncos"),
        ("The answer is: Santa Clara, California", "Santa Clara, California"),
        ("According to the given context,\nDenver Broncos", "Denver Broncos"),
        ("Denver Broncos, according to the context", "Denver Broncos"),
        ('"February 7, 2016"', "February 7, 2016"),
        ("**red brick**", "red brick"),
        ("Peyton Manning", "Peyton Manning"),
        ("24-10", "24–10"),
        ("", ""),
        ("\n\n", ""),
        ("Human: Who won?", ""),
        ("The context does not explicitly mention who won.", ""),
        ("The winner isn't mentioned in the given passage.", ""),
    ],
)
def test_the_first_answer_is_kept_and_snapped_to_the_context(raw: str, answer: str) -> None:
    assert clean_answer(raw, CONTEXT, WINNER) == answer


@pytest.mark.parametrize("raw", ["Dr. J. P. Smith", "The U.S. Army", "Dr. J. P. Smith of the U.S. Army"])
def test_abbreviations_and_initials_end_no_sentence(raw: str) -> None:
    assert clean_answer(raw + ". He is known.", CONTEXT, "Who?").casefold() == raw.casefold()


@pytest.mark.parametrize(
    ("question", "raw", "answer"),
    [
        (WINNER, "The game was won by the Denver Broncos.", "Denver Broncos"),
        (
            "Where did the Broncos defeat the Panthers?",
            "The Broncos defeated the Panthers in Santa Clara.",
            "Santa Clara",
        ),
        ("When did the stadium open?", "The stadium, in California, opened in 2014.", "2014"),
        ("How much has Smith paid for a seat?", "Smith paid £5,000 for a seat.", "£5,000"),
        ("Whom was the stadium named after?", "The stadium is named after John (Jack).", "John (Jack)"),
        ("What was the old roof?", "The old roof was red brick.", "red brick"),
        ("For whom did Smith work?", "Smith worked for the U.S.", "U.S."),
        ("How large a part did Smith pay?", "The part that Smith did pay was 7%.", "7%"),
    ],
)
def test_a_sentence_that_restates_the_question_is_narrowed_to_what_it_adds(
    question: str, raw: str, answer: str
) -> None:
    assert clean_answer(raw, CONTEXT, question) == answer


PIECES = st.text() | st.sampled_from([*CONTEXT.split(), "\n", "\u2028", "Human:", "The answer is", "İ", "ß", "(", "$"])
COPIED = "Its old roof was red brick, its new one is of glass."


def test_a_whole_sentence_of_the_passage_with_run_on_text_is_narrowed_too() -> None:
    ran_on = COPIED + "\nHuman: Context: another passage"
    assert clean_answer(ran_on, CONTEXT, "What is the new roof, what was the old one?") == "red brick"


@pytest.mark.parametrize(
    ("raw", "question"),
    [
        ("old roof was red brick", "What was the old roof?"),
        (COPIED, "What is the new roof, what was the old one?"),
        ("opened in 2014. Its old roof was red brick", "When did the stadium open?"),
        ("its new one is of glass.", "Which one is new?"),
        (", named after John (Jack) O'Neill (1901–1980), opened in 2014.", "Was the stadium named after John?"),
        ("paid £5,000 (7%) for a seat.", "How much has Smith paid for a seat?"),
    ],
)
def test_a_span_of_the_passage_comes_through_even_if_it_restates_the_question(raw: str, question: str) -> None:
    assert clean_answer(raw, CONTEXT, question) == raw.removesuffix(".")


def test_a_full_stop_that_belongs_to_an_abbreviation_is_kept() -> None:
    assert clean_answer("Smith of the U.S.", CONTEXT, "Whom did the U.S. Army pay?") == "Smith of the U.S."


@given(
    words=st.lists(st.sampled_from(CONTEXT.split()) | PIECES, min_size=1),
    cut=st.tuples(st.integers(0), st.integers(1)),
    asked=st.lists(st.sampled_from(CONTEXT.split())).map(" ".join),
)
def test_any_span_of_its_passage_keeps_its_score(words: list[str], cut: tuple[int, int], asked: str) -> None:
    first = cut[0] % len(words)
    span = " ".join(words[first : first + 1 + cut[1] % len(words)])
    assert squad_exact_match(clean_answer(span, " ".join(words), asked), span) == 1.0


@pytest.mark.parametrize("raw", ["rolina", "ROLINA"])
def test_part_of_a_word_is_not_completed_nor_snapped(raw: str) -> None:
    assert clean_answer(raw, CONTEXT, WINNER) == raw


@given(raw=st.lists(PIECES).map(" ".join), context=st.text() | st.just(CONTEXT), question=st.text() | st.just(WINNER))
def test_any_text_becomes_one_line_that_is_never_longer(raw: str, context: str, question: str) -> None:
    answer = clean_answer(raw, context, question)
    assert len(answer.splitlines()) <= 1
    assert len(answer) <= len(raw)


def squad(path: Path) -> list[tuple[str, str, str, list[str]]]:
    """Id, context, question and gold answers of a SQuAD file."""
    return [
        (q["id"], p["context"], q["question"], [a["text"] for a in q["answers"]])
        for article in json.loads(path.read_text(encoding="utf-8"))["data"]
        for p in article["paragraphs"]
        for q in p["qas"]
    ]


def test_no_gold_answer_is_broken(real: Path) -> None:
    files = [real / "squad" / name for name in ("dev-v1.1.json", "train-v1.1-partial.json")]
    answers = [(a, context, q) for path in files for _, context, q, gold in squad(path) for a in gold]
    assert len(answers) > 55_000
    assert [a for a, *asked in answers if squad_exact_match(clean_answer(a, *asked), a) < 1] == []


def test_real_answers_come_clean_without_the_gold(real: Path) -> None:
    asked = {id: (context, q) for id, context, q, _ in squad(real / "squad" / "train-v1.1-partial.json")}
    path = real / "teacher_answers" / "qwen2.5-3b-instruct_squad.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    cleaned = [clean_answer(row["teacher_answer"], *asked[row["id"]]) for row in rows]
    exact = [max(squad_exact_match(c, g) for g in r["gold_answers"]) for c, r in zip(cleaned, rows, strict=True)]
    f1 = [max(squad_f1(c, g) for g in r["gold_answers"]) for c, r in zip(cleaned, rows, strict=True)]
    assert percent(exact) >= 50
    assert percent(f1) >= 68
    run_on = re.compile(r"\n|Human\b|You are an|AI assistant|(?:Context|Question|Answer|Assistant|User):|<\|")
    assert [answer for answer in cleaned if run_on.search(answer)] == []

"""The official SQuAD scores and F1, against cases computed by hand."""

from __future__ import annotations

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from kdsuite.tasks.metrics import binary_f1, normalize_answer, percent, rouge_l, squad_exact_match, squad_f1, words


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("  a  an the ", ""),
        ("U.S.A.", "usa"),
        ("theatre and another", "theatre and another"),  # articles inside words stay
        ("Saint-Étienne", "saintétienne"),
    ],
)
def test_normalisation_is_the_official_one(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


def test_exact_match_is_of_normalised_strings() -> None:
    assert squad_exact_match("the Tower.", "tower") == 1.0
    assert squad_exact_match("towers", "tower") == 0.0


def test_f1_counts_repeated_words() -> None:
    assert squad_f1("new new york", "new york") == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert squad_f1("york", "new york") == pytest.approx(2 / 3)
    assert squad_f1("", "new york") == 0.0
    assert squad_f1("rome", "new york") == 0.0


def test_binary_f1_by_hand_and_at_its_boundaries() -> None:
    assert binary_f1([True, True, False], [True, False, True]) == 0.5
    assert binary_f1([False, False], [True, False]) == 0.0
    assert binary_f1([False], [False]) == 0.0
    assert binary_f1([True], [True]) == 1.0


def test_no_scores_are_not_a_score() -> None:
    assert percent([1.0, 0.0]) == 50.0
    with pytest.raises(ValueError, match="no scores"):
        percent([])


# --- ROUGE-L

ASCII = st.text(st.characters(max_codepoint=127), max_size=60) | st.lists(
    st.sampled_from("the Cats were_running runs runner 3.5 Cities -- U.S.A. easily don't".split())
).map(" ".join)


@given(said=ASCII, right=ASCII)
def test_rouge_of_ascii_is_the_librarys_own(said: str, right: str) -> None:
    own = RougeScorer(["rougeL"], use_stemmer=True).score(right, said)["rougeL"].fmeasure
    assert rouge_l(said, [right]) == own


@given(st.text(max_size=40))
def test_every_text_with_a_letter_or_a_digit_is_like_itself(text: str) -> None:
    assert rouge_l(text, [text]) == float(regex.search(r"[\p{L}\p{N}]", text.lower()) is not None)


@pytest.mark.parametrize(
    ("said", "right", "score"),
    [
        ("Кошка сидела на коврике", "кошка спала на коврике.", 3 / 4),
        ("جلست القطة", "القطة جلست على", 2 / 5),
        ("東京タワー", "東京駅", 2 * (2 / 5) * (2 / 3) / (2 / 5 + 2 / 3)),
        ("GPT4は東京", "gpt4 東京", 2 * (3 / 4) / (3 / 4 + 1)),
        ("แมว", "แมว", 1.0),
        ("Café", "cafe", 0.0),
        ("ΟΔΟΣ", "οδος", 1.0),
        ("👍", "👍", 0.0),
    ],
)
def test_rouge_by_hand_in_other_scripts(said: str, right: str, score: float) -> None:
    assert rouge_l(said, [right]) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Über-Größe, naïve cities", ["über", "größe", "naïve", "cities"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("서울에 갔다", ["서울에", "갔다"]),
        ("日本abc 12人々ヴ", ["日", "本", "abc", "12", "人", "々", "ヴ"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("❤️ \u0301", []),
    ],
)
def test_words_are_letters_with_their_marks_and_single_signs_where_nothing_parts_words(
    text: str, found: list[str]
) -> None:
    assert words(text) == found

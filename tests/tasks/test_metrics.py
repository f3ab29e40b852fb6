"""The official SQuAD scores and F1, against cases computed by hand."""

from __future__ import annotations

import pytest

from kdsuite.tasks.metrics import binary_f1, normalize_answer, percent, squad_exact_match, squad_f1


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

"""The generated corpora: repeatable, disjoint, consistent, and not solved by counting words."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.optimize import minimize

from kdsuite.extras.offline import corpora as generated
from kdsuite.extras.offline.corpora import FORMS, HURRY, NAMES, OVERLOOKED, film_opinions, passages, pretraining_text

MAKERS = [film_opinions, passages, pretraining_text]


@pytest.mark.parametrize("make", MAKERS)
def test_the_seed_alone_decides(make):
    assert make(40, 3) == make(40, 3)
    assert make(40, 3) != make(40, 4)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("n", [0, 1, 5])
def test_as_many_as_asked_for(make, n):
    assert len(make(n, 0)) == n


def test_no_sentence_repeats_so_that_splits_of_one_call_are_disjoint():
    sentences = [row["sentence"].casefold() for row in film_opinions(6000, 0)]
    assert len(set(sentences)) == len(sentences)


def test_labels_are_balanced_and_in_random_order():
    labels = [row["label"] for row in film_opinions(400, 0)]
    assert Counter(labels) == {"positive": 200, "negative": 200}
    assert 60 < labels[:200].count("positive") < 140


def test_the_label_follows_from_the_text():
    for row in film_opinions(2000, 5):
        assert _label(row["sentence"]) == row["label"], row


def test_counting_words_is_clearly_below_the_rules():
    rows = film_opinions(4000, 0)
    accuracy = _bag_of_words_accuracy([r["sentence"] for r in rows], [r["label"] for r in rows])
    assert 0.6 < accuracy < 0.85  # of the held-out half; the rules above reach 1


def test_contexts_are_unique_and_asked_three_times():
    counts = Counter(row["context"] for row in passages(6000, 0))
    assert set(counts.values()) == {3}
    order = [row["context"] for row in passages(300, 0)]
    assert len([1 for a, b in zip(order, order[1:], strict=False) if a != b]) == 99  # a context's questions together


def test_questions_of_a_context_ask_for_different_things():
    rows = passages(2000, 1)
    assert len({(row["context"], row["answer"]) for row in rows}) == len(rows)
    assert {row["question"].split()[0] for row in rows} == {"Where", "When", "What", "Who", "Which"}


@pytest.mark.parametrize("what", ["answer", "said"])
def test_what_is_learned_and_scored_is_found_once_and_where_it_says(what):
    for row in passages(3000, 2):
        start, answer = row[f"{what}_start"], row[what]
        assert row["context"][start : start + len(answer)] == answer
        assert row["context"].count(answer) == 1


def test_an_annotator_in_a_hurry_mistakes_contrasts_only_and_most_of_them():
    rows = film_opinions(6000, 0)
    contrasts = [_contrasts(row["sentence"]) for row in rows]
    slips = [row["said"] != row["label"] for row in rows]
    assert np.mean(contrasts) == pytest.approx(FORMS["contrast"] / 100, abs=0.02)
    assert not any(slip for slip, contrast in zip(slips, contrasts, strict=True) if not contrast)
    assert np.sum(slips) / np.sum(contrasts) == pytest.approx(HURRY["films"], abs=0.03)
    assert {row["said"] for row in rows} == {"positive", "negative"}


def test_an_annotator_in_a_hurry_tells_another_fact_of_the_passage_for_most_that_are_overlooked():
    rows = passages(3000, 0)
    overlooked = [any(row["answer"] in NAMES[values] for values in OVERLOOKED) for row in rows]
    slips = [row["said"] != row["answer"] for row in rows]
    assert not any(slip for slip, over in zip(slips, overlooked, strict=True) if not over)
    assert np.sum(slips) / np.sum(overlooked) == pytest.approx(HURRY["passages"], abs=0.03)
    for row, slip in zip(rows, slips, strict=True):
        others = [r["answer"] for r in rows if r["context"] == row["context"] and r["answer"] != row["answer"]]
        assert not slip or row["said"] == min(others, key=str(row["context"]).index)


def test_pretraining_text_gives_nothing_away():
    documents = pretraining_text(600, 0)
    contexts = {row["context"] for row in passages(2000, 0)}
    assert not any("positive" in d or "negative" in d for d in documents)
    assert not any(d.split("\n")[0] in contexts for d in documents)


def test_notes_repeat_the_passage():
    for document in [d for d in pretraining_text(200, 1) if "\nVerdict:" not in d]:
        context, *lines = document.split("\n")
        assert all(line.endswith((":", "?")) for line in lines[::2])
        assert all(line in context for line in lines[1::2])


def _contrasts(sentence: str) -> bool:
    return " but " in sentence or "though " in sentence.lower()


def _label(sentence: str) -> str:
    """The label by the rules of the module's docstring, read off the text alone."""
    text = sentence
    for remark in generated.FILMS["remarks"]:
        text = text.replace(remark, "")
    text = text.strip().rstrip(".").lower()
    for opener in generated.FILMS["openers"]:
        text = text.removeprefix(f"{opener}, ")
    if text.startswith(("although ", "even though ")):
        leaning = _leaning(text.split(", ")[1])
    elif ", but " in text:
        leaning = _leaning(text.split(", but ")[1])
    else:
        leaning = _leaning(text.split(", and ")[0])
    return "positive" if leaning > 0 else "negative"


def _leaning(clause: str) -> int:
    films, words = generated.FILMS, set(clause.split())
    praised, blamed = (bool(words & set(films[kind])) for kind in ("praise", "blame"))
    assert praised != blamed
    sign = praised - blamed
    return -sign if words & set(films["negations"]) else sign


def _bag_of_words_accuracy(sentences: list[str], labels: list[str]) -> float:
    """Held-out accuracy of a logistic regression on word counts (L2 of 1)."""
    words = [Counter(s.lower().replace(".", "").replace(",", "").split()) for s in sentences]
    index = {word: i for i, word in enumerate(sorted(set().union(*words)))}
    features = np.zeros((len(words), len(index)))
    for row, counts in enumerate(words):
        for word, count in counts.items():
            features[row, index[word]] = count
    signs = np.array([1.0 if label == "positive" else -1.0 for label in labels])
    half = len(signs) // 2

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs[:half] * (features[:half] @ weights)
        slopes = -signs[:half] / (1 + np.exp(margins))
        return np.logaddexp(0, -margins).sum() + 0.5 * weights @ weights, features[:half].T @ slopes + weights

    weights = minimize(loss, np.zeros(len(index)), jac=True, method="L-BFGS-B").x
    return float(np.mean((features[half:] @ weights > 0) == (signs[half:] > 0)))

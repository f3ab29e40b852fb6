"""Scores of one prediction and their averages.

The SQuAD functions follow the official evaluation script v1.1 (Rajpurkar et al. 2016, arXiv:1606.05250).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = set(string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space, in this order."""
    text = "".join(c for c in text.lower() if c not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def squad_exact_match(prediction: str, reference: str) -> float:
    """1 if the normalised strings are equal, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(reference))


def squad_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the bags of normalised words, 0–1."""
    predicted, gold = normalize_answer(prediction).split(), normalize_answer(reference).split()
    same = sum((Counter(predicted) & Counter(gold)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def binary_f1(predicted: Sequence[bool], gold: Sequence[bool]) -> float:
    """F1 of the positive class, 0–1; 0 when there is nothing to find or nothing was found."""
    true_positives = sum(p and g for p, g in zip(predicted, gold, strict=True))
    return 2 * true_positives / (sum(predicted) + sum(gold)) if true_positives else 0.0


def percent(scores: Sequence[float]) -> float:
    """Mean of 0–1 scores in percent. ValueError for an empty sequence: no data is not a score of 0."""
    if not scores:
        raise ValueError("no scores to average")
    return 100.0 * sum(scores) / len(scores)

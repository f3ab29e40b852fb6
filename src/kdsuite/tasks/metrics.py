"""Scores of one prediction and their averages.

The SQuAD functions follow the official evaluation script v1.1 (Rajpurkar et al. 2016, arXiv:1606.05250). ROUGE-L is the
F-measure of the longest common subsequence of words (Lin 2004) by `rouge-score`, with words of every script; chrF is of
characters, order 6, β = 2 (Popović 2015) by `sacrebleu`, sentence by sentence.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import regex

from kdsuite.config.nearest import nearest

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = set(string.punctuation)
_UNPARTED = (  # scripts that put no blanks between words: Thai, Lao, Burmese, Khmer; Japanese and Chinese
    "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = regex.compile(rf"(?:(?![{_UNPARTED}])[\p{{L}}\p{{N}}]\p{{M}}*)+|[\p{{L}}\p{{N}}]\p{{M}}*")


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


def held_against(label: str, references: Sequence[str]) -> str:
    """The gold label of a predicted one: itself if it is one of several that are right, else the first of these."""
    return label if label in references else references[0]


def binary_f1(predicted: Sequence[bool], gold: Sequence[bool]) -> float:
    """F1 of the positive class, 0–1; 0 when there is nothing to find or nothing was found."""
    true_positives = sum(p and g for p, g in zip(predicted, gold, strict=True))
    return 2 * true_positives / (sum(predicted) + sum(gold)) if true_positives else 0.0


def percent(scores: Sequence[float]) -> float:
    """Mean of 0–1 scores in percent. ValueError for an empty sequence: no data is not a score of 0."""
    if not scores:
        raise ValueError("no scores to average")
    return 100.0 * sum(scores) / len(scores)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L's F-measure with the reference that it is greatest with, 0–1."""
    return max(_rouge().score(reference, prediction)["rougeL"].fmeasure for reference in references)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

    class Words(Tokenizer):
        """The library drops all letters but a–z; its stems are English, so other words are left as they are."""

        own = DefaultTokenizer(use_stemmer=True)

        def tokenize(self, text: str) -> list[str]:
            return [stem for word in words(text) for stem in (self.own.tokenize(word) if word.isascii() else [word])]

    return RougeScorer(["rougeL"], tokenizer=Words())


def words(text: str) -> list[str]:
    """Runs of letters and digits with their marks, in lower case; single ones where no blanks part words."""
    return _WORD.findall(text.lower())


def chrf(prediction: str, references: Sequence[str]) -> float:
    """chrF with the reference that it is greatest with, 0–1."""
    from sacrebleu import sentence_chrf

    return sentence_chrf(prediction, list(references)).score / 100.0


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if it is one of the references, sign by sign, else 0."""
    return float(prediction in references)


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """SQuAD's F1 with the reference that it is greatest with, 0–1."""
    return max(squad_f1(prediction, reference) for reference in references)


METRICS: dict[str, Callable[[Any, Any], float]] = {m.__name__: m for m in (rouge_l, chrf, exact_match, token_f1)}
_sources: dict[str, tuple[Any, str]] = {}  # of metrics as they were loaded, whatever their files say since


def named_metric(name: str) -> Callable[[Any, Any], float]:
    """A metric by its name, or a person's own by `package:function`; modules in the current folder are found, too.

    ValueError if there is none.
    """
    if name in METRICS:
        return METRICS[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"unknown metric {name!r}{nearest(name, METRICS)}; one of your own is `package:function`")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        found: Any = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"metric {name!r} cannot be loaded: {error}") from None
    if isinstance(found, Callable):
        return found
    raise ValueError(f"metric {name!r} is no function")


def metric_source(name: str) -> str | None:
    """Identifies the code of a person's own metric: hashes of the file that it is in and of the module that names it.

    None for a metric of this package. ValueError if there is none of that name.
    """
    found = named_metric(name)
    if name in METRICS:
        return None
    if name not in _sources or _sources[name][0] is not found:
        files = {_file(what) for what in (inspect.unwrap(found), import_module(name.partition(":")[0]))} - {None}
        hashes = sorted(hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files if file)
        _sources[name] = found, " ".join(hashes)
    return _sources[name][1]


def _file(what: Any) -> str | None:
    """The Python file of a function or module; None where there is none."""
    try:
        file = inspect.getsourcefile(what)
    except TypeError:
        return None
    return file if file and Path(file).is_file() else None  # a notebook's cell is no file

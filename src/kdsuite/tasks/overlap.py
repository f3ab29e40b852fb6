"""Whether what is measured on stands in what is trained on: texts that stand whole inside others, and shared runs.

Words are what blanks and punctuation separate, in one case. Only texts of `LONG` words and more count as standing in
another: shorter ones do so by chance. (GLUE's 872 reported sentences of SST-2 are held out; 516 of them hold a training
phrase of two words and more, 27 one of four and more.) Runs of eight words with a threshold of 70 % are those of
PaLM's check (Chowdhery et al. 2022, arXiv:2204.02311, section 8).
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

from kdsuite.tasks.example import UNLABELED, Example

LONG = 4  # words
RUN = 8  # words
MOST = 0.7  # of a text's runs

Words = tuple[str, ...]


class Standing:
    """Texts, to be found where they stand whole, as words, inside others.

    They are known by their first `LONG` words and by their lengths, so that finding them costs little where many begin
    alike, and is exact.
    """

    def __init__(self, texts: AbstractSet[Words]):
        self.texts = texts
        self._lengths: dict[Words, set[int]] = {}
        for text in texts:
            self._lengths.setdefault(text[:LONG], set()).add(len(text))
        self._starts = {len(start) for start in self._lengths}

    def inside(self, text: Words) -> Iterator[Words]:
        """Those that stand in `text`; itself, if it is one of them; some more than once."""
        for at in range(len(text)):
            for words in self._starts:
                for length in self._lengths.get(text[at : at + words], ()):
                    if (found := text[at : at + length]) in self.texts:
                        yield found


def overlaps(splits: Mapping[str, Sequence[Example]]) -> dict[str, dict[str, int]]:
    """How many examples of `dev` and of `validation` are found in training text: also what the teacher learns from, and
    what it answers to be learned.

    Counts, by split: `examples`; `repeated`: all inputs are those of a training example; of the longest input alone
    (the passage, the sentence; where only some have it, of the others their own longest): `contained`, it stands whole
    inside a training example's; `mostly_shared`, `MOST` and more of its runs of eight words are found there;
    `shares_8_words`, one is.
    """
    training = [*(splits.get("teacher_train") or splits["train"]), *splits.get(UNLABELED, ())]
    names = dict.fromkeys(name for e in training for name in e.inputs)
    field = max(names, key=lambda name: sum(len(e.inputs.get(name, "")) for e in training))
    trained = {words(text) for text in {_longest(e, field) for e in training}}
    whole = {_inputs(e) for e in training}
    runs = np.append(np.sort(_runs(list(trained))[0]), np.uint64(0))  # the last is no run, but where the search may end
    counts: dict[str, dict[str, int]] = {}
    for split in ("dev", "validation"):
        times = Counter(_longest(e, field) for e in splits[split])  # a passage has several questions
        texts, examples = [words(text) for text in times], np.array(list(times.values()))
        sought = Standing({text for text in texts if len(text) >= LONG})
        stand = {found for text in trained for found in sought.inside(text)}
        hashes, owners = _runs(texts)
        total = np.bincount(owners, minlength=len(texts))  # [texts]
        found = runs[np.searchsorted(runs[:-1], hashes)] == hashes
        shared = np.bincount(owners[found], minlength=len(texts))
        counts[split] = {
            "examples": len(splits[split]),
            "repeated": sum(_inputs(e) in whole for e in splits[split]),
            "contained": int(examples[[text in stand for text in texts]].sum()),
            "mostly_shared": int(examples[(total > 0) & (shared >= MOST * total)].sum()),
            "shares_8_words": int(examples[shared > 0].sum()),
        }
    return counts


def told(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A line for each split of which something is found; single runs of words happen by chance and are none."""
    lines = []
    for split, found in counts.items():
        facts = {
            "repeated in training": found["repeated"],
            "whole inside a training text": found["contained"],
            f"with {MOST:.0%} of their runs of {RUN} words there": found["mostly_shared"],
        }
        if any(facts.values()):
            said = ", ".join(f"{count:,} {what}" for what, count in facts.items() if count)
            lines.append(f"not held out, of {found['examples']:,} {split} examples: {said}")
    return lines


def words(text: str) -> Words:
    return tuple(map(sys.intern, re.findall(r"\w+", text.casefold())))


def _inputs(example: Example) -> Words:
    return tuple(text.strip().casefold() for text in example.inputs.values())


def _longest(example: Example, field: str) -> str:
    return example.inputs.get(field) or max(example.inputs.values(), key=len)


def _runs(texts: Sequence[Words]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of all runs of eight words [N], and which text each is of [N]."""
    owners = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    ids = np.fromiter((hash(word) for text in texts for word in text), np.int64, len(owners)).view(np.uint64)
    count = max(len(ids) - RUN + 1, 0)
    hashes = np.zeros(count, np.uint64)
    for start in range(RUN):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + ids[start : start + count]  # modulo 2^64
    within = owners[:count] == owners[RUN - 1 :][:count]
    return hashes[within], owners[:count][within]

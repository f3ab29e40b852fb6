"""How many answers per second does a teacher give in batches that share their passages, against one by one?

Prompts have SQuAD's proportions: a passage of 190 tokens with 5 questions, each question behind it with the rest
of the template 25 tokens long; an answer has 6 tokens. Both sides are the suite's `generate`, whose batch of one is
what `model.generate` does with a prompt. The answers must be the same before anything is timed.

    python benchmarks/answers.py [--quick] [--repeats 2]
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from measure import Finding, Work, arguments, keep, machine, side_by_side, spread, table
from shapes import SMALL, STUDENT, TINY, Shape, model

from kdsuite.extras.offline.tokenizers import sentencepiece_tokenizer
from kdsuite.models.generation import generate
from kdsuite.tasks.encoding import ChatTokenizer

PASSAGE, QUESTIONS, REST, ANSWER = 190, 5, 25, 6  # tokens, but for the number of questions
BATCH = 16
HEADER = ("answered", "answers / CPU s", "answers / wall s", "CPU ratio")


def prompts(passages: int, vocabulary: int) -> list[list[int]]:
    """Random ids, ordinary tokens only, the questions in random order."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(passages):
        passage = rng.integers(260, vocabulary, PASSAGE).tolist()
        made += [[*passage, *rng.integers(260, vocabulary, REST).tolist()] for _ in range(QUESTIONS)]
    return [made[i] for i in rng.permutation(len(made))]


def compare(shape: Shape, passages: int, repeats: int) -> tuple[list[list[str]], Finding]:
    """A row per side, and their ratio."""
    words = [f"word {a}{b}" for a in "abcdefgh" for b in "abcdefgh"]
    chat = ChatTokenizer(sentencepiece_tokenizer(words, 320))
    vocabulary = len(chat.tokenizer)
    teacher = model(replace(shape, vocabulary=vocabulary)).eval().requires_grad_(False)
    asked = prompts(passages, vocabulary)
    sides = {f"batches of {BATCH}, passages shared": BATCH, "one by one": 1}
    said = {name: [text for text, _ in generate(teacher, chat, asked, ANSWER, size)] for name, size in sides.items()}
    first, other = said
    assert said[first] == said[other], "answers depend on the batch"
    work: dict[str, Work] = {
        name: partial(generate, teacher, chat, asked, ANSWER, size) for name, size in sides.items()
    }
    times = side_by_side(work, repeats, warm=True)
    ratio = Finding.of_ratio(
        f"teacher answers, {shape.name}, batches with shared passages", "one by one", "CPU time",
        times[other].cpu, times[first].cpu, at_least=6,
    )  # fmt: skip
    rows = [
        [
            f"{shape.name}, {name}",
            spread([len(asked) / s for s in t.cpu], 1),
            spread([len(asked) / s for s in t.wall], 1),
            f"{Finding.of_ratio('', '', '', t.cpu, times[first].cpu).median:.1f}×",
        ]
        for name, t in times.items()
    ]
    return rows, ratio


def main() -> None:
    options = arguments(__doc__, 2).parse_args()
    torch.set_num_threads(1)
    cases, repeats = [(SMALL, 8), (STUDENT, 2)], options.repeats
    if options.quick:
        cases, repeats = [(TINY, 2)], 1
    compared = [compare(shape, passages, repeats) for shape, passages in cases]
    print(f"{machine()}; medians of {repeats} repeats (smallest–largest); the same answers\n")
    print(table(HEADER, [row for rows, _ in compared for row in rows]))
    keep([finding for _, finding in compared], options.findings)


if __name__ == "__main__":
    main()

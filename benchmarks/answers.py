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
from measure import Finding, Work, arguments, asked, ratio, show, side_by_side, spread
from shapes import SMALL, STUDENT, TINY, Shape, model, some_chat

from kdsuite.models.generation import generate

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
    chat = some_chat()
    vocabulary = len(chat.tokenizer)
    teacher = model(replace(shape, vocabulary=vocabulary)).eval().requires_grad_(False)
    given = prompts(passages, vocabulary)
    sides = {f"batches of {BATCH}, passages shared": BATCH, "one by one": 1}
    said = {name: [text for text, _ in generate(teacher, chat, given, ANSWER, size)] for name, size in sides.items()}
    first, other = said
    assert said[first] == said[other], "answers depend on the batch"
    work: dict[str, Work] = {
        name: partial(generate, teacher, chat, given, ANSWER, size) for name, size in sides.items()
    }
    times = side_by_side(work, repeats, warm=True)
    finding = Finding.of_ratio(
        f"teacher answers, {shape.name}, batches with shared passages", "one by one", "CPU time",
        times[other].cpu, times[first].cpu, at_least=6,
    )  # fmt: skip
    rows = [
        [
            f"{shape.name}, {name}",
            spread([len(given) / s for s in t.cpu], 1),
            spread([len(given) / s for s in t.wall], 1),
            ratio(t.cpu, times[first].cpu),
        ]
        for name, t in times.items()
    ]
    return rows, finding


def main() -> None:
    options = asked(arguments(__doc__, 2))
    cases = [(TINY, 2)] if options.quick else [(SMALL, 8), (STUDENT, 2)]
    rows, findings = zip(*(compare(shape, passages, options.repeats) for shape, passages in cases), strict=True)
    show(options, HEADER, sum(rows, []), findings, "; the same answers")


if __name__ == "__main__":
    main()

"""The leak check: what is measured on and stands in training text is found, and nothing else."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsuite.tasks.example import Example
from kdsuite.tasks.overlap import LONG, MOST, RUN, Standing, overlaps, told

CLEAN = {"repeated": 0, "contained": 0, "mostly_shared": 0, "shares_8_words": 0}
TEXT = st.lists(st.sampled_from("abc"), min_size=1, max_size=14).map(tuple)
LONG_TEXT = st.lists(st.sampled_from([f"w{n}" for n in range(40)]), min_size=12, max_size=30)


def examples(*texts: str, **more: str) -> list[Example]:
    return [Example(f"e{n}", {"text": text} | more, "yes", ("yes",), text) for n, text in enumerate(texts)]


def found(train: list[str], measured: list[str]) -> dict[str, int]:
    """What is found of reported examples; the same as dev must give the same."""
    counts = overlaps({"train": examples(*train), "dev": examples(*measured), "validation": examples(*measured)})
    assert counts["dev"] == counts["validation"]
    assert counts["dev"].pop("examples") == len(measured)
    return counts["dev"]


def stands(part: tuple[str, ...], text: tuple[str, ...]) -> bool:
    return any(text[at : at + len(part)] == part for at in range(len(text) - len(part) + 1))


@given(texts=st.sets(TEXT, max_size=12), inside=TEXT)
def test_exactly_those_texts_are_found_that_stand_inside(texts: set[tuple[str, ...]], inside: tuple[str, ...]) -> None:
    assert set(Standing(texts).inside(inside)) == {text for text in texts if stands(text, inside)}


@settings(deadline=None)
@given(train=st.lists(TEXT, min_size=1, max_size=8), measured=st.lists(TEXT, min_size=1, max_size=8))
def test_the_counts_are_those_of_the_definitions(train: list[tuple[str, ...]], measured: list[tuple[str, ...]]) -> None:
    runs = {text[at : at + RUN] for text in train for at in range(len(text) - RUN + 1)}
    shared = [
        [text[at : at + RUN] in runs for at in range(len(text) - RUN + 1)] for text in measured if len(text) >= RUN
    ]
    assert found([" ".join(text) for text in train], [" ".join(text) for text in measured]) == {
        "repeated": sum(text in train for text in measured),
        "contained": sum(len(text) >= LONG and any(stands(text, other) for other in train) for text in measured),
        "mostly_shared": sum(sum(of) >= MOST * len(of) for of in shared),
        "shares_8_words": sum(any(of) for of in shared),
    }


@given(data=st.data(), train=st.lists(LONG_TEXT, min_size=1, max_size=6), clean=LONG_TEXT)
def test_a_planted_leak_is_found_in_any_case_and_punctuation(data, train: list[list[str]], clean: list[str]) -> None:
    text = data.draw(st.sampled_from(train))
    part = text[data.draw(st.integers(0, len(text) - LONG)) :][: data.draw(st.integers(LONG, len(text)))]
    others = [" ".join(words) for words in train]
    assert found(others, [", ".join(part).upper() + "!"])["contained"] == 1
    assert found(others, [" ".join(text).upper()])["repeated"] == 1
    mended = [*text, "unseen", "words"]
    assert found(others, [" ".join(mended)])["mostly_shared"] == (len(text) - RUN + 1 >= MOST * (len(mended) - RUN + 1))
    assert found(others, [" ".join(f"other{word}" for word in clean)]) == CLEAN


def test_short_texts_stand_in_others_by_chance_and_only_their_repeats_count() -> None:
    train = ["a joy", "the film is a joy to watch"]
    assert found(train, ["the film is"]) == CLEAN
    assert found(train, ["A joy "]) == CLEAN | {"repeated": 1}
    assert found(train, ["the film is a"]) == CLEAN | {"contained": 1}


def test_seven_runs_of_ten_are_most_and_six_are_not() -> None:
    text = [f"w{n}" for n in range(17)]
    runs = {kept: found([" ".join(text[:kept])], [" ".join(text)])["mostly_shared"] for kept in (13, 14)}
    assert runs == {13: 0, 14: 1}


def test_a_run_that_crosses_two_texts_is_none() -> None:
    assert found(["a b c d e", "f g h i j"], ["c d e f g h i j k"]) == CLEAN


def test_of_several_inputs_the_longest_counts_and_every_example_of_it() -> None:
    """A passage of the reported split that is trained on, with other questions."""
    passage = "Ada Lovelace lived in London and wrote the first program there is"
    asked = [examples(passage, question=question)[0] for question in ("Where ?", "Who is it that lived there ?")]
    counts = overlaps({"train": asked[:1], "dev": asked, "validation": examples("nothing of it", question="Where ?")})
    assert counts["dev"] == {"examples": 2, "repeated": 1, "contained": 2, "mostly_shared": 2, "shares_8_words": 2}
    assert counts["validation"] == {"examples": 1} | CLEAN


@pytest.mark.parametrize("order", [1, -1])
def test_where_only_some_have_the_longest_input_the_others_longest_is_looked_for(order: int) -> None:
    """Questions of which some have a passage, in any order."""
    passage, long = "Ada Lovelace lived in London and wrote the first program there is", "who was the first to do so"
    train = [*examples(passage, question="Where ?"), Example("q", {"question": long}, "she", ("she",), long)][::order]
    dev = [Example("d", {"question": f"So {long} ?"}, "she", ("she",), "d"), *examples(passage, question="When ?")][
        ::order
    ]
    train, dev = ([replace(e, inputs=dict(reversed(e.inputs.items()))) for e in some] for some in (train, dev))
    counts = overlaps({"train": train, "dev": train, "validation": dev})
    assert (counts["dev"]["repeated"], counts["dev"]["contained"]) == (2, 2)
    assert (counts["validation"]["repeated"], counts["validation"]["contained"]) == (0, 1)


def test_what_the_teacher_learns_is_training_text_too() -> None:
    told_of = examples("one two three four five", "six seven eight nine ten")
    counts = overlaps({"train": told_of[:1], "teacher_train": told_of, "dev": told_of[1:], "validation": told_of[:1]})
    assert [counts[split]["repeated"] for split in ("dev", "validation")] == [1, 1]


def test_what_the_teacher_answers_is_training_text_too() -> None:
    """Exact repeats are left out of it before; what only contains a measured text is not."""
    text = "a dull plot and worse acting"
    splits = {"train": examples("nothing of it"), "dev": examples(text), "validation": examples("another one")}
    assert overlaps(splits)["dev"]["contained"] == 0
    splits["unlabeled"] = examples(f"{text} say all")
    assert overlaps(splits)["dev"]["contained"] == 1 and overlaps(splits)["validation"]["contained"] == 0


@pytest.mark.parametrize("text", ["", "...", "x"])
def test_texts_without_runs_are_counted_all_the_same(text: str) -> None:
    assert found([text], [text, "y"]) == CLEAN | {"repeated": 1}


def test_a_finding_is_one_line_and_nothing_is_none() -> None:
    leaky = found(["the film is a joy to watch and more"] * 2, ["the film is a joy to watch and more", "fine"])
    lines = told({"dev": {"examples": 2} | CLEAN | {"shares_8_words": 2}, "validation": {"examples": 2} | leaky})
    assert lines == [
        "not held out, of 2 validation examples: 1 repeated in training, 1 whole inside a training text, "
        "1 with 70% of their runs of 8 words there"
    ]
    assert not re.search(r"\b0 ", lines[0])

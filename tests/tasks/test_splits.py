"""Splits: dev comes from train and is held out as the reported split is, the reported one is official, by seed."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from math import log
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kdsuite.config import TeacherTrainingSettings, task_section
from kdsuite.errors import DataError
from kdsuite.tasks.example import Example, task_of
from kdsuite.tasks.overlap import LONG, Standing, overlaps
from kdsuite.tasks.splits import Splits, fraction_of, fraction_sizes, make_splits, source_fingerprint

TASKS = {"sst2": task_of("sst2", task_section("sst2")), "squad": task_of("squad", task_section("squad"))}

SST2, SQUAD = TASKS["sst2"], TASKS["squad"]


def write(folder: Path, train: list[str], validation: list[str] | None = None) -> str:
    for name, sentences in (("train.tsv", train), ("dev.tsv", validation or ["reported one"])):
        rows = "".join(f"{sentence}\t{number % 2}\n" for number, sentence in enumerate(sentences))
        (folder / name).write_text(f"sentence\tlabel\n{rows}", encoding="utf-8")
    return str(folder)


def ids(splits: Splits) -> dict[str, list[str]]:
    return {name: [e.id for e in examples] for name, examples in splits.items()}


@settings(max_examples=40, deadline=None)
@given(repeats=st.lists(st.integers(0, 12), min_size=20, max_size=60), dev=st.integers(1, 8), seed=st.integers(0, 99))
def test_a_repeated_sentence_is_never_in_both_dev_and_train(tmp_path_factory, repeats, dev, seed) -> None:
    assume(len(set(repeats)) > dev)  # else dev may take all there is
    source = write(tmp_path_factory.mktemp("data"), [f"sentence {number}" for number in repeats])
    chosen = task_section("sst2", source=source, dev_size=dev, sample_seed=seed)
    splits = make_splits(task_of("sst2", chosen))
    groups = {name: {e.group for e in examples} for name, examples in splits.items()}
    assert not groups["train"] & groups["dev"]
    assert len(splits["dev"]) >= dev
    assert len(splits["train"]) + len(splits["dev"]) == len(repeats)


def test_the_seed_alone_decides_and_another_seed_draws_another_sample(tmp_path: Path) -> None:
    source = write(tmp_path, [f"sentence {n}" for n in range(60)], [f"reported {n}" for n in range(30)])
    fields = {"source": source, "train_size": 20, "dev_size": 10, "validation_size": 8}
    one, again = (make_splits(task_of("sst2", task_section("sst2", **fields))) for _ in range(2))
    other = make_splits(task_of("sst2", task_section("sst2", **fields, sample_seed=7)))
    assert ids(one) == ids(again)
    assert {name: len(examples) for name, examples in one.items()} == {"train": 20, "dev": 10, "validation": 8}
    assert all(ids(one)[name] != ids(other)[name] for name in one)


def test_without_sizes_everything_is_taken_and_the_reported_split_keeps_its_order(tmp_path: Path) -> None:
    source = write(tmp_path, [f"sentence {n}" for n in range(60)], ["one", "two", "three"])
    splits = make_splits(task_of("sst2", task_section("sst2", source=source)))
    assert len(splits["train"]) + len(splits["dev"]) == 60
    assert [e.inputs["sentence"] for e in splits["validation"]] == ["one", "two", "three"]


def test_a_smaller_training_set_is_part_of_a_larger_one_with_the_same_dev(tmp_path: Path) -> None:
    source = write(tmp_path, [f"sentence {n}" for n in range(60)])
    small, large = (
        make_splits(task_of("sst2", task_section("sst2", source=source, train_size=size, dev_size=10)))
        for size in (10, 40)
    )
    assert ids(large)["train"][:10] == ids(small)["train"]
    assert ids(large)["dev"] == ids(small)["dev"]


@given(size=st.integers(1, 300), parts=st.lists(st.floats(0, 1, exclude_min=True), min_size=2, max_size=5))
def test_a_smaller_fraction_is_part_of_a_larger_one_and_none_is_empty(size: int, parts: list[float]) -> None:
    whole = range(size)
    found = [list(fraction_of(whole, fraction)) for fraction in sorted([*parts, 1.0])]
    assert found[0] and found[-1] == list(whole)
    assert all(small == large[: len(small)] for small, large in pairwise(found))
    assert all(abs(len(some) - f * size) <= 1 for some, f in zip(found, sorted([*parts, 1.0]), strict=True))


def test_fractions_that_leave_less_than_a_batch_or_no_example_of_a_label_are_refused(tmp_path: Path) -> None:
    fields = {"source": write(tmp_path, [f"sentence {n}" for n in range(60)]), "dev_size": 10}

    def sizes(batch_size: int, *fractions: float, labels: str = "np") -> dict[float, int]:
        chosen = task_section("sst2", **fields, fractions=fractions, training={"batch_size": batch_size})
        targets = [{"n": "negative", "p": "positive"}[label] for label in labels.ljust(50, labels[-1])]
        return fraction_sizes(
            task_of("sst2", chosen), [Example(str(i), {}, t, (t,), "") for i, t in enumerate(targets)]
        )

    assert sizes(5, 1, 0.25, 0.1) == {0.1: 5, 0.25: 12, 1.0: 50}
    assert sizes(60, 1) == {1.0: 50}, "the whole may be less than a batch, as ever"
    assert sizes(5, 1, 0.1, labels="n") == {0.1: 5, 1.0: 50}, "a label that the whole lacks, too, is noted elsewhere"
    with pytest.raises(
        DataError, match=r"^task sst2: fractions: 0\.1 of 50 training examples are 5, less than a batch of 6"
    ):
        sizes(6, 1, 0.1)
    with pytest.raises(
        DataError, match=r"0\.1 of 50 training examples are 5, none of them 'positive'; take a larger one"
    ):
        sizes(5, 1, 0.1, labels="nnnnnp")


def test_the_teachers_training_set_holds_the_students_and_nothing_of_dev(tmp_path: Path) -> None:
    source = write(tmp_path, [f"sentence {n}" for n in range(60)])
    teacher = TeacherTrainingSettings(enabled=True, train_size=40)
    splits = make_splits(
        task_of("sst2", task_section("sst2", source=source, train_size=20, dev_size=10, teacher_training=teacher))
    )
    names = {name: set(found) for name, found in ids(splits).items()}
    assert names["train"] < names["teacher_train"]
    assert not names["teacher_train"] & names["dev"]


@pytest.mark.parametrize("annotated", [None, "another"])
def test_the_teacher_learns_an_answer_without_the_blanks_around_it(tmp_path: Path, annotated: str | None) -> None:
    """As students do: SQuAD has answers with blanks, and the letters of a target are composed."""
    right = [[f" {n} cafe\u0301", "other"] for n in range(60)]
    rows = [
        {"question": f"{n}?", "context": f"It is {n} cafe\u0301 s.", "answer": annotated or said, "references": said}
        for n, said in enumerate(right)
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"kind": "short_answer", "source": str(tmp_path / "r.jsonl"), "examples": 2, "train_size": 20}
    splits = make_splits(task_of("mine", task_section("mine", section | {"teacher_training": {"enabled": True}})))
    assert (splits["teacher_train"][:20] == splits["train"]) is (annotated is None)
    for example in (*splits["shots"], *splits["teacher_train"]):
        number = example.inputs["question"][:-1]
        assert (example.target, example.answer_start) == (f"{number} caf\u00e9", 6)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"train_size": 99}, "train_size is 99, but after the dev split only 50 examples are left"),
        ({"validation_size": 9}, "validation_size is 9, but there are only 1 examples"),
        (
            {"train_size": 20, "teacher_training": {"enabled": True, "train_size": 10}},
            "teacher_training.train_size 10 is below",
        ),
        ({"dev_size": 60}, "split 'train' is empty"),
    ],
)
def test_more_than_there_is_is_refused_with_the_setting_to_change(tmp_path: Path, fields, told) -> None:
    source = write(tmp_path, [f"sentence {n}" for n in range(60)])
    with pytest.raises(DataError, match=told):
        make_splits(task_of("sst2", task_section("sst2", {"source": source, "dev_size": 10} | fields)))


SENTENCES = st.sets(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=12).map(tuple), min_size=12, max_size=20)


def of(examples: list[Example]) -> list[tuple[str, ...]]:
    return [tuple(e.inputs["sentence"].split()) for e in examples]


def stands(part: tuple[str, ...], text: tuple[str, ...]) -> bool:
    return any(text[at : at + len(part)] == part for at in range(len(text) - len(part) + 1))


@settings(max_examples=60, deadline=None)
@given(sentences=SENTENCES, data=st.data(), size=st.none() | st.integers(1, 6), seed=st.integers(0, 9))
def test_of_phrases_and_sentences_dev_has_whole_ones_and_training_nothing_of_them(
    tmp_path_factory, sentences, data, size, seed
) -> None:
    cuts = st.tuples(st.sampled_from(sorted(sentences)), st.integers(0, 11), st.integers(1, 12))
    phrases = [text[start : start + words] for text, start, words in data.draw(st.lists(cuts, max_size=80))]
    texts = [*sentences, *filter(None, phrases)]
    whole = {text for text in texts if not any(stands(text, other) for other in texts if other != text)}
    assume(len(whole) > 6)
    source = write(tmp_path_factory.mktemp("data"), [" ".join(text) for text in texts])
    splits = make_splits(task_of("sst2", task_section("sst2", source=source, dev_size=3, sample_seed=seed)))
    dev, train = of(splits["dev"]), of(splits["train"])
    assert set(dev) <= whole and len(dev) >= 3
    for text in train:
        assert any(stands(text, other) for other in whole - set(dev)), "known from held-out sentences only"
        assert not any(stands(other, text) for other in dev)
        assert len(text) < LONG or not any(stands(text, other) for other in dev)
    kept = {t for t in texts if any(stands(t, w) for w in whole - set(dev)) and not any(stands(t, d) for d in dev)}
    assert kept <= set(train), "what has nothing to do with dev is trained on"
    if size is not None and size <= len(train):
        few = make_splits(
            task_of("sst2", task_section("sst2", source=source, dev_size=3, sample_seed=seed, train_size=size))
        )
        assert of(few["train"]) == train[:size] and of(few["dev"]) == dev


def test_a_phrase_of_held_out_and_other_sentences_is_trained_on_if_it_is_short(tmp_path: Path) -> None:
    sentences = [f"film {n} is the best of all this year" for n in range(30)]
    source = write(tmp_path, [*sentences, "is the best of all", "the best of all", "best of all", "film 7", "year"])
    splits = make_splits(task_of("sst2", task_section("sst2", source=source, dev_size=12)))
    phrases = {" ".join(text) for text in of(splits["train"])} - set(sentences)
    own = set() if any(e.group.startswith("film 7 ") for e in splits["dev"]) else {"film 7"}
    assert phrases == {"best of all", "year"} | own
    assert (len(splits["train"]), len(splits["dev"])) == (18 + len(phrases), 12)


@pytest.mark.slow
def test_the_official_sentences_are_held_out_whole(real: Path) -> None:
    """Of the dev sentences of four words and more, 85 % stood in training phrases; of the reported ones, none does."""
    splits = make_splits(task_of("sst2", task_section("sst2", source=str(real / "sst2"), dev_size=872)))
    train = "\n".join(f" {e.group} " for e in splits["train"])
    assert len(splits["dev"]) == 872 and len(splits["train"]) == 59_427
    assert not [e for e in splits["dev"] if len(e.group.split()) >= LONG and f" {e.group} " in train]
    trained = Standing({tuple(e.group.split()) for e in splits["train"]})
    longest = {
        name: [max(map(len, trained.inside(tuple(e.group.split()))), default=0) for e in splits[name]]
        for name in ("dev", "validation")
    }
    assert {name: sum(words >= 2 for words in found) for name, found in longest.items()} == {
        "dev": 525,
        "validation": 511,
    }
    assert max(longest["dev"]) < LONG
    assert all(
        found["repeated"] + found["contained"] + found["mostly_shared"] == 0 for found in overlaps(splits).values()
    )
    length = {name: sum(len(e.group.split()) for e in splits[name]) / 872 for name in ("dev", "validation")}
    assert length == {"dev": pytest.approx(19.3, abs=0.1), "validation": pytest.approx(19.5, abs=0.1)}


def features(example: Example) -> set[tuple[str, ...]]:
    words = example.group.split()
    return {tuple(words[at : at + n]) for n in (1, 2, 3) for at in range(len(words) - n + 1)}


@pytest.mark.slow
def test_counting_words_does_on_dev_as_on_the_reported_split(real: Path) -> None:
    """Naive Bayes on one to three words in a row: 88.8 % on dev, 79.2 % on the reported split, when dev was phrases."""
    splits = make_splits(task_of("sst2", task_section("sst2", source=str(real / "sst2"), dev_size=872)))
    counts = {label: Counter[tuple[str, ...]]() for label in ("positive", "negative")}
    for example in splits["train"]:
        counts[example.target].update(features(example))
    positive, negative = counts.values()
    prior = log(negative.total() / positive.total())

    def accuracy(examples: list[Example]) -> float:
        odds = [sum(prior + log((positive[f] + 1) / (negative[f] + 1)) for f in features(e)) for e in examples]
        return 100 * sum((o > 0) == (e.target == "positive") for o, e in zip(odds, examples, strict=True)) / len(odds)

    assert accuracy(splits["validation"]) > 75
    assert accuracy(splits["dev"]) == pytest.approx(accuracy(splits["validation"]), abs=4)  # its error is 2 points


def squad(folder: Path, articles: dict[str, int]) -> str:
    """Files with that many passages per title, three questions each."""
    answers = [{"text": "It", "answer_start": 0}]
    data = [
        {
            "title": title,
            "paragraphs": [
                {
                    "context": f"It is {title} {at}.",
                    "qas": [{"id": f"{title} {at} {n}", "question": f"{n} ?", "answers": answers} for n in range(3)],
                }
                for at in range(count)
            ],
        }
        for title, count in articles.items()
    ]
    for name, content in (("train-v1.1.json", data), ("dev-v1.1.json", data[:1])):
        (folder / name).write_text(json.dumps({"data": content}))
    return str(folder)


def test_articles_are_held_out_whole_and_their_passages_stay_the_groups(tmp_path: Path) -> None:
    source = squad(tmp_path, {f"title {n}": 4 for n in range(200)})
    splits = make_splits(task_of("squad", task_section("squad", source=source, dev_size=20, train_size=500)))
    titles = {name: {e.origin for e in splits[name]} for name in ("train", "dev")}
    assert not titles["train"] & titles["dev"]
    assert 3 <= len(titles["dev"]) <= 10, "drawn from ten articles, not from one"
    assert len(splits["dev"]) == 21 and len({e.group for e in splits["dev"]}) == 7, "whole passages"
    assert all(e.group != e.origin for e in splits["dev"])


def test_without_titles_passages_are_held_out(tmp_path: Path) -> None:
    source = squad(tmp_path, {"": 30})
    splits = make_splits(task_of("squad", task_section("squad", source=source, dev_size=9)))
    groups = {name: {e.group for e in splits[name]} for name in ("train", "dev")}
    assert not groups["train"] & groups["dev"]
    assert (len(groups["train"]), len(groups["dev"])) == (27, 3)


def test_of_a_single_article_passages_are_held_out(tmp_path: Path) -> None:
    source = squad(tmp_path, {"the only one": 30})
    splits = make_splits(task_of("squad", task_section("squad", source=source, dev_size=9)))
    assert [len({e.group for e in splits[name]}) for name in ("train", "dev")] == [27, 3]


def test_few_articles_are_not_all_held_out(tmp_path: Path) -> None:
    source = squad(tmp_path, {"one": 20, "two": 20, "three": 20})
    splits = make_splits(task_of("squad", task_section("squad", source=source, dev_size=30)))
    assert {len({e.origin for e in splits[name]}) for name in ("train", "dev")} == {1, 2}
    assert {e.origin for e in splits["train"]}.isdisjoint(e.origin for e in splits["dev"])
    with pytest.raises(DataError, match="split 'train' is empty"):
        make_splits(task_of("squad", task_section("squad", source=source, dev_size=170)))


def test_no_official_article_is_on_both_sides(real: Path) -> None:
    """All 558 dev questions of known articles were of articles that are trained on; of the reported ones, none is."""
    places = {"train": "train-v1.1-partial.json"}
    splits = make_splits(task_of("squad", task_section("squad", source=str(real / "squad"), splits=places)))
    titles = {name: {e.origin for e in splits[name]} - {None} for name in splits}
    assert not titles["train"] & (titles["dev"] | titles["validation"])
    assert titles["dev"] and not {e.group for e in splits["train"]} & {e.group for e in splits["dev"]}
    assert len({e.group for e in splits["validation"]}) == 2_067, "the units of the statistics are passages"


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    paragraph = {
        "context": "London is large.",
        "qas": [{"id": "q", "question": "?", "answers": [{"text": "London", "answer_start": 0}]}] * 2,
    }
    content = json.dumps({"data": [{"paragraphs": [paragraph]}]})
    chosen = task_section("squad", source=str(tmp_path))
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="the id 'q' is that of "):
        make_splits(task_of("squad", chosen))


def test_generated_splits_share_no_passage() -> None:
    for name in TASKS:
        sizes = {"train_size": 60, "dev_size": 20, "validation_size": 30}
        splits = make_splits(task_of(name, task_section(name, sizes)))
        groups = [{e.group for e in splits[split]} for split in ("train", "dev", "validation")]
        assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


@pytest.mark.parametrize(("task", "share"), [("sst2", 0.27), ("squad", 0.17)])
def test_of_generated_tasks_students_learn_slips_and_teachers_and_scores_do_not(task: str, share: float) -> None:
    sizes = {"train_size": 2000, "dev_size": 100, "validation_size": 100}
    teacher = {"enabled": True, "train_size": 3000}
    chosen = task_of(task, task_section(task, sizes, teacher_training=teacher))
    splits = make_splits(chosen)
    learned, taught = splits["train"], splits["teacher_train"]
    assert sum(e.target not in e.references for e in learned) / len(learned) == pytest.approx(share, abs=0.04)
    assert all(e.target == e.references[0] for e in taught)
    right = {e.id: e.references for e in chosen.load("train")}
    assert all(e.references == (e.target,) for e in splits["dev"])  # the annotator's, as training is
    assert 0 < sum(e.target not in right[e.id] for e in splits["dev"]) < len(splits["dev"]) / 2
    assert any(e.target not in e.references for e in splits["validation"])
    assert [(e.id, e.inputs, e.references) for e in taught[:2000]] == [(e.id, e.inputs, e.references) for e in learned]
    for example in learned + taught:
        if (start := example.answer_start) is not None:
            assert example.inputs["context"][start:].startswith(example.target)


def test_a_changed_byte_anywhere_in_a_data_file_is_another_source(tmp_path: Path) -> None:
    source = write(tmp_path, [f"sentence {n} " + "x" * 200 for n in range(12_000)])
    chosen = task_section("sst2", source=source)
    before = source_fingerprint(chosen)
    data = bytearray((tmp_path / "train.tsv").read_bytes())
    assert len(data) > 2 << 20
    middle = data.index(b"xxx", len(data) // 2)
    data[middle] = ord("y")
    (tmp_path / "train.tsv").write_bytes(bytes(data))
    assert source_fingerprint(chosen) != before

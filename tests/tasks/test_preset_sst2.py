"""SST-2 from official files: rows as they are, and a broken one named by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdsuite.config import task_section
from kdsuite.errors import DataError
from kdsuite.tasks.example import task_of

TASKS = {"sst2": task_of("sst2", task_section("sst2")), "squad": task_of("squad", task_section("squad"))}

SST2 = TASKS["sst2"]


def load(folder: Path, text: str | bytes, split: str = "train"):
    settings = task_section("sst2", source=str(folder))
    name = getattr(settings.splits, split)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return task_of("sst2", settings).load(split)


def test_official_rows_become_stripped_sentences_with_label_words(tmp_path: Path) -> None:
    first, second = load(tmp_path, "sentence\tlabel\nhide new secretions \t0\na joy\t1\n")
    assert (first.inputs, first.target, first.references) == (
        {"sentence": "hide new secretions"},
        "negative",
        ("negative",),
    )
    assert second.target == "positive"
    assert first.id != second.id


def test_column_order_line_ends_and_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    [example] = load(tmp_path, b"\xef\xbb\xbflabel\tsentence\r\n1\tcaf\xc3\xa9\r\n\r\n")
    assert (example.inputs["sentence"], example.target) == ("café", "positive")


def test_a_quotation_mark_is_text(tmp_path: Path) -> None:
    [one, two] = load(tmp_path, 'sentence\tlabel\n" a joy\t1\nsaid "no\t0\n')
    assert one.inputs["sentence"] == '" a joy' and two.inputs["sentence"] == 'said "no'


def test_repeated_sentences_share_a_group(tmp_path: Path) -> None:
    one, two, other = load(tmp_path, "sentence\tlabel\nA joy\t1\na joy \t1\nno joy\t0\n")
    assert one.group == two.group != other.group


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sentence\tlabel\nfine\t1\nbroken\n", "line 3: 1 columns instead of 2"),
        ("sentence\tlabel\nfine\tpositiv\n", "line 2: column 'label': 'positiv' is none of the labels; did you mean"),
        ("sentence\tlabel\n \t1\n", "line 2: column 'sentence' is empty"),
        ("text\tlabel\nfine\t1\n", "line 2: no column 'sentence'"),
        ("", "the file is empty"),
        (b"sentence\tlabel\nfine\xff\t1\n", "not UTF-8 at byte 19"),
    ],
)
def test_a_bad_file_is_named_with_the_line(tmp_path: Path, text: str | bytes, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "train.tsv") in str(caught.value)


def test_a_missing_file_says_which_keys_name_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data file .*train\.tsv; set the task's source and splits"):
        task_of("sst2", task_section("sst2", source=str(tmp_path))).load("train")


def test_the_score_is_accuracy_and_f1_of_the_positive_class() -> None:
    gold = [("positive",), ("positive",), ("negative",), ("negative",)]
    said = ["positive", "negative", "positive", "negative"]
    assert SST2.aggregate(said, gold) == {"accuracy": 50.0, "f1": 50.0, "n": 4}
    assert SST2.aggregate(["negative"] * 4, gold) == {"accuracy": 50.0, "f1": 0.0, "n": 4}


def test_the_prompt_asks_for_the_label_words() -> None:
    example = task_of("sst2", task_section("sst2", train_size=1)).load("train")[0]
    [message] = SST2.messages(example)
    assert message["role"] == "user"
    assert example.inputs["sentence"] in message["content"]
    assert all(label in message["content"] for label in SST2.labels or ())


def test_the_official_files_are_read_whole(real: Path) -> None:
    settings = task_section("sst2", source=str(real / "sst2"))
    validation = task_of("sst2", settings).load("validation")
    assert len(validation) == 872
    assert len({e.id for e in validation}) == 872

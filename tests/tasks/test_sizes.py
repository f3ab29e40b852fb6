"""What a task has to read is counted where it is, and taken as official where it is on the hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import fmean

import pytest

from kdsuite.config import task_section
from kdsuite.errors import DataError
from kdsuite.tasks.encoding import encode
from kdsuite.tasks.example import task_of
from kdsuite.tasks.sizes import task_size
from kdsuite.tasks.splits import make_splits


@pytest.mark.parametrize("task", ["sst2", "squad"])
def test_generated_examples_are_counted_as_the_splits_have_them(task: str) -> None:
    settings = task_section(task, train_size=50, dev_size=20, validation_size=30)
    size, splits = task_size(task, settings), make_splits(task_of(task, settings))
    assert (size.train, size.validation) == (len(splits["train"]), len(splits["validation"]))
    assert size.dev <= len(splits["dev"]) <= size.dev + 8  # whole passages


@pytest.mark.parametrize(("task", "train", "validation"), [("sst2", 65_349, 872), ("squad", 85_599, 10_570)])
def test_hub_data_sets_are_the_official_ones_less_dev(task: str, train: int, validation: int) -> None:
    size = task_size(task, task_section(task, source="someone/something"))
    assert (size.train, size.dev, size.validation) == (train, 2000, validation)
    assert "on the hub" in size.basis
    assert task_size(task, task_section(task, source="a/b", train_size=7)).train == 7


def test_tokens_are_cut_at_the_longest_allowed() -> None:
    size = task_size("squad", task_section("squad", source="a/b", max_length=100))
    assert size.tokens == size.longest == 100


@pytest.mark.parametrize("task", ["sst2", "squad"])
@pytest.mark.parametrize("role", ["tinyllama", "qwen2.5"])
def test_tokens_and_positions_are_about_the_real_ones(task: str, role: str, real, real_chats) -> None:
    files = {} if task == "sst2" else {"splits": {"train": "train-v1.1-partial.json"}}
    settings = task_section(task, source=str(real / task), max_length=512, **files)
    examples = task_of(task, settings).load("train")[::200]
    encoded = encode(task_of(task, settings), real_chats[role], examples)
    size = task_size(task, task_section(task, source="on/hub", max_length=512))
    assert size.tokens == pytest.approx(fmean(map(len, encoded)), rel=0.25)
    assert size.positions == pytest.approx(fmean(e.choices.count(e.gold) for e in encoded), rel=0.3)


@pytest.mark.parametrize("shots", [0, 3])
def test_the_system_message_is_counted_once(tmp_path: Path, shots: int) -> None:
    """It stands before the solved examples, which each have a prompt and a target, and the question."""
    (tmp_path / "r.csv").write_text("text,label\n" + "".join(f"{i:04},{'ab'[i % 2]}\n" for i in range(60)))
    task = {"kind": "classification", "labels": ["a", "b"], "source": str(tmp_path / "r.csv"), "prompt": "{{ text }}?"}
    size = task_size("mine", task_section("mine", task | {"examples": shots, "system": "s" * 400}))
    assert size.tokens == size.reported_tokens == 20 + (400 + shots * 6 + 5) / 4
    assert size.longest == 20 + (400 + shots * 6 + 5) // 4


def test_files_that_a_pattern_names_are_counted_also_where_an_official_size_is_known(tmp_path: Path) -> None:
    sentences(tmp_path)
    for number in (0, 1):
        shutil.copy(tmp_path / "train.tsv", tmp_path / f"part-{number}.tsv")
    size = task_size("sst2", task_section("sst2", source=str(tmp_path / "part-*.tsv"), dev_size=10))
    assert (size.basis, size.validation, size.train + size.dev <= 160) == ("counted", 80, True)


def test_a_task_of_unknown_size_on_the_hub_says_where_to_give_it() -> None:
    with pytest.raises(DataError, match="how large news is on the hub is not known; give its task `sizes`"):
        task_size("news", task_section("squad", source="on/hub", sizes=None))


def sentences(folder: Path) -> str:
    """Forty sentences, each with its first four words as a phrase of its own."""
    words = [[f"w{i}{letter}" for letter in "abcde"] for i in range(40)]
    lines = [" ".join(some[:n]) for some in words for n in (4, 5)]
    rows = "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(lines))
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text(f"sentence\tlabel\n{rows}")
    return str(folder)


def test_what_a_split_leaves_out_is_not_counted(tmp_path: Path) -> None:
    """Phrases of a sentence that is held out are none that training keeps."""
    settings = task_section("sst2", source=sentences(tmp_path), dev_size=10, validation_size=5)
    size = task_size("sst2", settings)
    assert (size.train, size.dev, size.validation) == (60, 10, 5)
    assert size.train == len(make_splits(task_of("sst2", settings))["train"]) < 80 - 10


def test_more_training_examples_than_there_are_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train_size is 90, but after the dev split only 60 examples are left"):
        task_size("sst2", task_section("sst2", source=sentences(tmp_path), train_size=90, dev_size=10))

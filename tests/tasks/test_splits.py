"""Splits: dev comes from train and shares no group with it, the reported split is the official one, by seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kdsuite.config import TeacherTrainingSettings
from kdsuite.errors import DataError
from kdsuite.extras.offline.corpora import SLIPS
from kdsuite.tasks.presets import Squad, SquadSettings, Sst2, Sst2Settings
from kdsuite.tasks.splits import Splits, make_splits, source_fingerprint

TASKS = {"sst2": Sst2(), "squad": Squad()}

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
    chosen = Sst2Settings(source=source, dev_size=dev, sample_seed=seed)
    splits = make_splits(SST2, chosen)
    groups = {name: {e.group for e in examples} for name, examples in splits.items()}
    assert not groups["train"] & groups["dev"]
    assert len(splits["dev"]) >= dev
    assert len(splits["train"]) + len(splits["dev"]) == len(repeats)


def test_the_seed_alone_decides_and_another_seed_draws_another_sample(tmp_path: Path) -> None:
    source = write(tmp_path, [f"sentence {n}" for n in range(60)], [f"reported {n}" for n in range(30)])
    fields = {"source": source, "train_size": 20, "dev_size": 10, "validation_size": 8}
    one, again = (make_splits(SST2, Sst2Settings(**fields)) for _ in range(2))
    other = make_splits(SST2, Sst2Settings(**fields, sample_seed=7))
    assert ids(one) == ids(again)
    assert {name: len(examples) for name, examples in one.items()} == {"train": 20, "dev": 10, "validation": 8}
    assert all(ids(one)[name] != ids(other)[name] for name in one)


def test_without_sizes_everything_is_taken_and_the_reported_split_keeps_its_order(tmp_path: Path) -> None:
    source = write(tmp_path, [f"sentence {n}" for n in range(60)], ["one", "two", "three"])
    splits = make_splits(SST2, Sst2Settings(source=source))
    assert len(splits["train"]) + len(splits["dev"]) == 60
    assert [e.inputs["sentence"] for e in splits["validation"]] == ["one", "two", "three"]


def test_a_smaller_training_set_is_part_of_a_larger_one_with_the_same_dev(tmp_path: Path) -> None:
    source = write(tmp_path, [f"sentence {n}" for n in range(60)])
    small, large = (make_splits(SST2, Sst2Settings(source=source, train_size=size, dev_size=10)) for size in (10, 40))
    assert ids(large)["train"][:10] == ids(small)["train"]
    assert ids(large)["dev"] == ids(small)["dev"]


def test_the_teachers_training_set_holds_the_students_and_nothing_of_dev(tmp_path: Path) -> None:
    source = write(tmp_path, [f"sentence {n}" for n in range(60)])
    teacher = TeacherTrainingSettings(enabled=True, train_size=40)
    splits = make_splits(SST2, Sst2Settings(source=source, train_size=20, dev_size=10, teacher_training=teacher))
    names = {name: set(found) for name, found in ids(splits).items()}
    assert names["train"] < names["teacher_train"]
    assert not names["teacher_train"] & names["dev"]


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
        make_splits(SST2, Sst2Settings.model_validate({"source": source, "dev_size": 10} | fields))


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    paragraph = {
        "context": "London is large.",
        "qas": [{"id": "q", "question": "?", "answers": [{"text": "London", "answer_start": 0}]}] * 2,
    }
    content = json.dumps({"data": [{"paragraphs": [paragraph]}]})
    chosen = SquadSettings(source=str(tmp_path))
    for name in (chosen.train_file, chosen.validation_file):
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="repeated ids, e.g. 'q'"):
        make_splits(SQUAD, chosen)


def test_generated_splits_share_no_passage() -> None:
    for name, task in TASKS.items():
        kind = Sst2Settings if name == "sst2" else SquadSettings
        splits = make_splits(task, kind(train_size=60, dev_size=20, validation_size=30))
        groups = [{e.group for e in splits[split]} for split in ("train", "dev", "validation")]
        assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


@pytest.mark.parametrize(("task", "share"), [("sst2", SLIPS["films"]), ("squad", SLIPS["passages"])])
def test_of_generated_tasks_students_learn_slips_and_teachers_and_scores_do_not(task: str, share: float) -> None:
    kind, sizes = TASKS[task], {"train_size": 2000, "dev_size": 100, "validation_size": 100}
    teacher = {"enabled": True, "train_size": 3000}
    splits = make_splits(kind, kind.Settings.model_validate(sizes | {"teacher_training": teacher}))
    learned, taught = splits["train"], splits["teacher_train"]
    assert sum(e.target not in e.references for e in learned) / len(learned) == pytest.approx(share, abs=0.04)
    assert all(e.target == e.references[0] for e in taught)
    assert [(e.id, e.inputs, e.references) for e in taught[:2000]] == [(e.id, e.inputs, e.references) for e in learned]
    for example in learned + taught:
        if (start := example.answer_start) is not None:
            assert example.inputs["context"][start:].startswith(example.target)


def test_a_changed_byte_anywhere_in_a_data_file_is_another_source(tmp_path: Path) -> None:
    source = write(tmp_path, [f"sentence {n} " + "x" * 200 for n in range(12_000)])
    chosen = Sst2Settings(source=source)
    before = source_fingerprint(chosen)
    data = bytearray((tmp_path / "train.tsv").read_bytes())
    assert len(data) > 2 << 20
    middle = data.index(b"xxx", len(data) // 2)
    data[middle] = ord("y")
    (tmp_path / "train.tsv").write_bytes(bytes(data))
    assert source_fingerprint(chosen) != before

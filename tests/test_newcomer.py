"""What goes wrong first: each is one clear line, exit code 2, and nothing is written half."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from kdsuite import cli

PARAGRAPH = "Ada lived in London. She wrote notes in 1843."
PACKAGE = Path(cli.__file__).parents[1]


def squad(*answers: tuple[str, str, int]) -> str:
    """A SQuAD file with a question per (id, answer, start)."""
    qas = [
        {"id": id, "question": f"What is {id}?", "answers": [{"text": text, "answer_start": start}]}
        for id, text, start in answers
    ]
    return json.dumps({"data": [{"title": "t", "paragraphs": [{"context": PARAGRAPH, "qas": qas}]}]})


GOOD_TSV = "sentence\tlabel\n" + "".join(f"film number {i} was fine \t{i % 2}\n" for i in range(20))
GOOD_SQUAD = squad(("a", "London", 13), ("b", "1843", 40))


@pytest.fixture(autouse=True)
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with data and a configuration, without network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name, text in (
        ("train.tsv", GOOD_TSV), ("dev.tsv", GOOD_TSV), ("train-v1.1.json", GOOD_SQUAD), ("dev-v1.1.json", GOOD_SQUAD)
    ):  # fmt: skip
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_text(text)
    tree = {
        "threads": 1,
        "tasks": {"sst2": {"source": "data", "dev_size": 2}, "squad": {"source": "data", "dev_size": 1}},
        "models": {"teacher": {"name": "some/teacher"}, "students": {"S1": {"name": "some/student"}}},
    }
    Path("c.yaml").write_text(yaml.safe_dump(tree))


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line of a command that fails as it should."""
    assert cli.main([arguments[0], "--config", "c.yaml", *arguments[1:]]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("device ", "the hub"))]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    left = [path for path in Path("results").rglob("*") if path.is_file()]
    assert left == [], "nothing is written, half or whole"
    return lines[0]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("train.tsv", "", "data/train.tsv: the file is empty; download it again"),
        ("train.tsv", "text\tlabel\nfine\t1\n", "data/train.tsv, line 2: no column 'sentence'"),
        ("train.tsv", "sentence\tlabel\n", "data/train.tsv: no row in it; give the task more data"),
        ("train.tsv", GOOD_TSV + "a row without a label\n", "data/train.tsv, line 22: 1 columns instead of 2"),
        ("dev.tsv", "sentence\tlabel\ngood \t2\n", "data/dev.tsv, line 2: column 'label': '2' is none of the labels"),
        ("train-v1.1.json", "", "data/train-v1.1.json: the file is empty; download it again"),
        ("train-v1.1.json", GOOD_SQUAD[:50], "data/train-v1.1.json, line 1: not valid JSON"),
        ("train-v1.1.json", squad(), "data/train-v1.1.json: no row in it; give the task more data"),
        ("dev-v1.1.json", squad(("q7", "Paris", 13)), "dev-v1.1.json: question q7: the answer 'Paris' is not in its"),
        ("dev-v1.1.json", squad(("q8", "London", 3)), "question q8: the answer 'London' is not at 3 but at 13; mend"),
    ],
)  # fmt: skip
def test_a_data_file_with_a_mistake_is_named_by_file_and_place(
    file: str, content: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data", file).write_text(content)
    task = "sst2" if file.endswith("tsv") else "squad"
    assert said in fails(capsys, "prepare", "--task", task)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("tasks.sst2.source=./nowhere", "no data folder ./nowhere; give a file, a folder or a hub id as source"),
        ("tasks.sst2.source=~/nowhere", f"no data folder {Path.home()}/nowhere"),
        ("tasks.sst2.splits.train=other.tsv", "no data file data/other.tsv; set the task's source and splits"),
        ("tasks.sst2.source=somebody/data", "'somebody/data' is no folder here and cannot be had"),
        ("tasks.sst2.train_size=1000", "train"),
        ("tasks.sst2.trainsize=1000", "unknown key 'tasks.sst2.trainsize'; did you mean 'tasks.sst2.train_size'?"),
        ("tasks.sst2.train_size=many", "tasks.sst2.train_size"),
    ],
)  # fmt: skip
def test_a_wrong_path_size_or_key_is_named(setting: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in fails(capsys, "prepare", "--task", "sst2", "--set", setting)


def test_an_unknown_task_is_told_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown task 'sst'; did you mean 'sst2'?" in fails(capsys, "prepare", "--task", "sst")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("models.teacher.name=./nowhere", "no model folder ./nowhere; give a save_pretrained folder or a hub id"),
        ("models.teacher.name=some/teacher", "'some/teacher' cannot be loaded: it is not in the hub's cache, and the"),
        ("models.teacher.name=data", "'data' cannot be loaded"),
        ("device=cuda:7", "device 'cuda:7' is not available here; choose auto or one of"),
    ],
)
def test_a_wrong_model_or_device_is_named_before_anything_is_trained(
    setting: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--config", "c.yaml", "--task", "sst2", "--set", setting]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]
    assert not list(Path("results").rglob("run.json"))


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_no_half_file(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: writing beyond it is refused in the same way."""
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "from kdsuite import cli\n"
        "sys.exit(cli.main(['prepare', '--config', 'c.yaml', '--task', 'sst2']))"
    )
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(errors)) == (2, 1), done.stderr
    assert "cannot write to results: File too large; mend that (free some space)" in errors[0]
    assert "the same command goes on where it stopped" in errors[0]
    assert [path for path in (tmp_path / "results").rglob("*") if path.is_file()] == []

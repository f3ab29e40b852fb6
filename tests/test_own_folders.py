"""What the README's "Own files and folders" promises: small.yaml with four folders, each by one --set, no network.

Real files in the official formats, tiny models as save_pretrained leaves them; sizes smaller, nothing else.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from kdsuite import cli
from kdsuite.config import CONFIGS
from kdsuite.extras.offline.corpora import film_opinions, passages
from kdsuite.models.loading import save_trained

LESS = (
    "device=cpu", "threads=1", "seeds=[42]", "tasks.sst2.train_size=16", "tasks.sst2.dev_size=4",
    "tasks.sst2.validation_size=6", "tasks.squad.train_size=16", "tasks.squad.dev_size=4",
    "tasks.squad.validation_size=6", "tasks.squad.max_new_tokens=8", "benchmark.blocks=1", "benchmark.threads=[1]",
    "benchmark.memory=false", "report.permutations=100",
)  # fmt: skip
UNTAUGHT = ("tasks.sst2.quality_floor=0", "tasks.squad.quality_floor=0")  # the tiny teacher knows nothing


def write_sst2(folder: Path) -> None:
    for name, seed in (("train.tsv", 1), ("dev.tsv", 2)):
        rows = [f"{r['sentence']} \t{int(r['label'] == 'positive')}\n" for r in film_opinions(40, seed)]
        (folder / name).write_text("sentence\tlabel\n" + "".join(rows), encoding="utf-8")


def write_squad(folder: Path) -> None:
    for name, seed in (("train-v1.1.json", 1), ("dev-v1.1.json", 2)):
        paragraphs = [
            {
                "context": r["context"],
                "qas": [
                    {
                        "id": f"{seed}-{i}",
                        "question": r["question"],
                        "answers": [{"text": r["answer"], "answer_start": r["answer_start"]}],
                    }
                ],
            }
            for i, r in enumerate(passages(40, seed))
        ]
        text = json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]})
        (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def own(tmp_path: Path, qwen_model, qwen_chat, llama_model, llama_chat) -> dict[str, Path]:
    """A folder for each key of the README's command."""
    folders = {
        "tasks.sst2.source": tmp_path / "SST-2",
        "tasks.squad.source": tmp_path / "squad",
        "models.teacher.name": tmp_path / "teacher",
        "models.students.S1.name": tmp_path / "student",
    }
    for folder in folders.values():
        folder.mkdir()
    write_sst2(folders["tasks.sst2.source"])
    write_squad(folders["tasks.squad.source"])
    save_trained(qwen_model, qwen_chat, folders["models.teacher.name"])
    save_trained(llama_model, llama_chat, folders["models.students.S1.name"])
    return folders


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_small_with_own_files_and_folders_runs_without_network(
    own: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("no network is needed")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    sets = [f"{key}={folder}" for key, folder in own.items()] + [*LESS, *UNTAUGHT]
    options = [word for item in sets for word in ("--set", item)]
    results = tmp_path / "results"
    arguments = ["--config", str(CONFIGS / "small.yaml"), *options]
    assert cli.main(["plan", *arguments]) == 0
    assert "download" not in capsys.readouterr().out
    assert cli.main(["run", *arguments, "--results", str(results)]) == 0, capsys.readouterr().err
    adapters = {path.parent.name.split("_")[0] for path in (results / "models").glob("*/adapter_config.json")}
    assert adapters == {"B0", "KD1", "KD2", "KD3"}, "adapters on the student, and the teacher as it is"
    assert (results / "report.html").is_file()

"""The doctor, without the hub: what is on this machine is looked at, each problem comes with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from kdsuite import cli
from kdsuite.models.loading import save_trained


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def teacher(tmp_path: Path, qwen_model, qwen_chat) -> Path:
    folder = tmp_path / "teacher"
    folder.mkdir()
    save_trained(qwen_model, qwen_chat, folder)
    return folder


def examined(
    capsys: pytest.CaptureFixture[str], tree: dict | None = None, *arguments: str
) -> tuple[int, str]:
    config = []
    if tree is not None:
        Path("c.yaml").write_text(yaml.safe_dump({"threads": 1, "tasks": {"sst2": {}}} | tree))
        config = ["--config", "c.yaml"]
    code = cli.main(["doctor", *config, *arguments])
    return code, capsys.readouterr().out


def test_the_offline_configuration_is_ready_anywhere(capsys) -> None:
    code, out = examined(capsys)
    assert code == 0
    assert out.endswith("ready\n")
    assert not [line for line in out.splitlines()[:-1] if not line.startswith("ok ")]
    for word in ("python 3", "torch 2", "device cpu", "token: absent", "built on the spot", "memory", "disk"):
        assert word in out


def test_models_in_folders_are_looked_into(capsys, teacher: Path) -> None:
    models = {"teacher": {"name": str(teacher)}, "students": {"S1": {"name": "offline-student"}}}
    assert examined(capsys, {"models": models})[0] == 0
    (teacher / "model.safetensors").unlink()
    code, out = examined(capsys, {"models": models})
    assert code == 1
    assert f"teacher {teacher}: lacks *.safetensors; give a complete save_pretrained folder" in out


def test_data_in_a_folder_are_looked_into(capsys) -> None:
    Path("data").mkdir()
    Path("data/train.tsv").write_text("sentence\tlabel\ngood \t1\nbad \t0\n")
    models = {"teacher": {"name": "offline-teacher"}, "students": {"S1": {"name": "offline-student"}}}
    code, out = examined(capsys, {"tasks": {"sst2": {"source": "data", "dev_size": 1}}, "models": models})
    assert code == 1
    assert "data of sst2, data: lacks dev.tsv; set tasks.sst2.train_file and validation_file" in out


def test_what_is_too_large_for_this_machine_comes_with_the_change_that_helps(capsys, monkeypatch) -> None:
    monkeypatch.setattr("kdsuite.forecast.build.memory_bytes", lambda device: (8 * 10**9, 8 * 10**9))
    models = {
        "teacher": {"name": "Qwen/Qwen2.5-3B-Instruct", "batch_size": 1},
        "students": {"S1": {"name": "offline-student"}},
    }
    code, out = examined(capsys, {"models": models})
    assert code == 1
    [line] = [line for line in out.splitlines() if "memory" in line]
    assert line.startswith("problem") and "cache fits with --set dtype=bfloat16" in line


def test_a_token_is_found_and_never_shown(capsys, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    Path(".env").write_text("HF_TOKEN=hf_planted_here\n")
    code, out = examined(capsys)
    assert code == 0
    assert "token: present (.env is read), not checked" in out
    assert "hf_planted_here" not in out

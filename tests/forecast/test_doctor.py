"""The doctor, without the hub: what is on this machine is looked at, each problem comes with what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants

from kdsuite import cli
from kdsuite.config import LoraSettings
from kdsuite.forecast import doctor
from kdsuite.models.loading import ModelSource, load_model, save_trained, trainable

pytestmark = pytest.mark.usefixtures("timed_once")


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


def examined(capsys: pytest.CaptureFixture[str], tree: dict | None = None, *arguments: str) -> tuple[int, str]:
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


def models_with(teacher: Path | str) -> dict:
    return {
        "models": {
            "teacher": {"name": str(teacher), "batch_size": 1},
            "students": {"S1": {"name": "offline-student"}},
            "offline": {"pretraining_steps": 1},  # the student is built, to be tried
        }
    }


def test_models_in_folders_are_looked_into(capsys, teacher: Path) -> None:
    assert examined(capsys, models_with(teacher))[0] == 0
    (teacher / "model.safetensors").unlink()
    code, out = examined(capsys, models_with(teacher))
    assert code == 1
    assert f"teacher {teacher}: lacks *.safetensors; give a complete save_pretrained folder" in out


def test_an_adapter_folder_is_looked_into_with_its_base(capsys, teacher: Path, qwen_chat) -> None:
    source = ModelSource.at(str(teacher))
    adapter = teacher.with_name("adapter")
    adapter.mkdir()
    model = trainable(load_model(source, torch.device("cpu"), torch.float32), LoraSettings(r=2))
    save_trained(model, qwen_chat, adapter, source)
    code, out = examined(capsys, models_with(adapter))
    assert (code, f"teacher {adapter}: adapter of {teacher}: on disk" in out) == (0, True)
    assert "a model's configuration is not on this machine" not in out
    (teacher / "model.safetensors").rename(teacher / "weights")
    assert "the base of the adapter" in examined(capsys, models_with(adapter))[1]
    (teacher / "weights").rename(teacher / "model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    code, out = examined(capsys, models_with(adapter))
    assert (code, f"teacher {adapter}: lacks adapter_model.safetensors" in out) == (1, True)


def test_tokenizers_are_what_transformers_can_load(capsys, teacher: Path, texts: list[str]) -> None:
    """Not by the name of a file: there are `vocab.json` with `merges.txt`, `tokenizer.model` and others."""
    whole = json.loads((teacher / "tokenizer.json").read_text())["model"]
    (teacher / "vocab.json").write_text(json.dumps(whole["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in whole["merges"]]
    (teacher / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (teacher / "tokenizer.json").unlink()
    about = json.loads((teacher / "tokenizer_config.json").read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}
    (teacher / "tokenizer_config.json").write_text(json.dumps(about))
    assert examined(capsys, models_with(teacher))[0] == 0
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (teacher / name).unlink()
    code, out = examined(capsys, models_with(teacher))
    assert code == 1
    [line] = [line for line in out.splitlines() if line.startswith("problem")]
    assert "tokenizer 'teacher' cannot be loaded: it has no vocabulary, its files are not there; give" in line
    (teacher / "tokenizer.model").write_bytes(b"of no kind that is known")
    (teacher / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    assert (
        "there is tokenizer.model only, which cannot be read here; give a complete"
        in examined(capsys, models_with(teacher))[1]
    )


def test_a_folder_that_is_not_there_is_no_matter_of_the_hub(capsys) -> None:
    code, out = examined(capsys, models_with(Path("/nowhere/at/all")))
    assert (code, "teacher /nowhere/at/all: there is no such folder; give a save_pretrained" in out) == (1, True)


def test_missing_shards_of_weights_are_named(capsys, teacher: Path, qwen_model) -> None:
    (teacher / "model.safetensors").unlink()
    qwen_model.save_pretrained(teacher, max_shard_size="40KB")
    assert examined(capsys, models_with(teacher))[0] == 0
    shard = sorted(teacher.glob("model-*.safetensors"))[1]
    shard.unlink()
    code, out = examined(capsys, models_with(teacher))
    assert (code, f"teacher {teacher}: lacks {shard.name}; give a complete" in out) == (1, True)


def test_data_in_a_folder_are_looked_into(capsys) -> None:
    Path("data").mkdir()
    Path("data/train.tsv").write_text("sentence\tlabel\ngood \t1\nbad \t0\n")
    data = {"tasks": {"sst2": {"source": "data", "dev_size": 1}}}
    code, out = examined(capsys, data | models_with("offline-teacher"))
    assert code == 1
    assert "data of sst2, data: no data file data/dev.tsv; set the task's source and splits" in out


def test_what_is_too_large_for_this_machine_comes_with_the_change_that_helps(capsys, monkeypatch) -> None:
    monkeypatch.setattr("kdsuite.forecast.build.memory_bytes", lambda device: (8 * 10**9, 8 * 10**9))
    code, out = examined(capsys, models_with("Qwen/Qwen2.5-3B-Instruct"))
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


def test_a_fallback_that_will_be_taken_for_want_of_memory_has_to_be_there(capsys, monkeypatch, teacher: Path) -> None:
    tree = models_with(teacher)
    tree["models"]["teacher"]["fallback"] = "nobody/has-it"
    assert "note     fallback teacher nobody/has-it: not in the hub's cache" in examined(capsys, tree)[1]
    monkeypatch.setattr("kdsuite.forecast.build.memory_bytes", lambda device: (1000, 1000))
    _, out = examined(capsys, tree)
    assert f"note     teacher {teacher}: on disk; the fallback nobody/has-it will be taken, as its weights alone" in out
    assert "problem  fallback teacher nobody/has-it: not in the hub's cache" in out


def test_what_is_damaged_is_a_finding_like_others(capsys, teacher: Path) -> None:
    (teacher / "model.safetensors.index.json").write_text("{")
    code, out = examined(capsys, models_with(teacher))
    assert code == 1 and f"problem  teacher {teacher}: " in out and "disk: results need" in out


def test_an_error_of_the_hub_that_says_nothing_is_told_by_its_kind(monkeypatch) -> None:
    def silent(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr("kdsuite.forecast.doctor.HfApi.model_info", silent)
    found = doctor._on_hub("teacher a/b", "a/b", None, "model")
    assert (found.state, found.text) == ("problem", "teacher a/b: TimeoutError")

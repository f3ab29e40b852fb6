"""Models come from folders, safely; what cannot be had is one line, or the fallback."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from kdsuite.config import LoraSettings, ModelSettings, TeacherSettings
from kdsuite.models.loading import (
    ModelError,
    ModelSource,
    load_chat,
    load_config,
    load_model,
    load_trained,
    save_trained,
    source_of,
    trainable,
    with_fallback,
)

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path, qwen_model, qwen_chat) -> Path:
    path = tmp_path / "tiny-qwen"
    path.mkdir()
    save_trained(qwen_model, qwen_chat, path)
    return path


def source(folder: Path) -> ModelSource:
    return source_of(ModelSettings(name=str(folder)), {})


def test_a_folder_is_loaded_frozen_with_its_tokenizer(folder: Path, qwen_model, qwen_chat) -> None:
    found = source(folder)
    assert (found.name, found.is_folder) == ("tiny-qwen", True)
    model, chat = load_model(found, CPU, torch.float32), load_chat(found)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert chat.end_id == qwen_chat.end_id
    ids = torch.arange(5)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, qwen_model(ids).logits)


def test_offline_names_mean_their_folders(folder: Path) -> None:
    found = source_of(ModelSettings(name="offline-teacher"), {"offline-teacher": folder})
    assert (found.name, found.where) == ("offline-teacher", str(folder))


def test_changed_weights_are_another_model(folder: Path) -> None:
    before = source(folder).fingerprint
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert source(folder).fingerprint != before


def test_pickled_weights_are_not_read(folder: Path, qwen_model) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(qwen_model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"model 'tiny-qwen' cannot be loaded: .*safetensors"):
        load_model(source(folder), CPU, torch.float32)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "one/two/three"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(ModelError, match="no model folder .*; give a save_pretrained folder or a hub id"):
        source_of(ModelSettings(name=name), {})


def test_an_empty_folder_and_truncated_weights_are_one_line(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="'empty' cannot be loaded") as caught:
        load_config(source(tmp_path / "empty"))
    assert "\n" not in str(caught.value)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="'tiny-qwen' cannot be loaded") as caught:
        load_model(source(folder), CPU, torch.float32)
    assert "\n" not in str(caught.value)


def test_code_that_comes_with_a_model_is_not_run_and_nobody_is_asked_whether_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("builtins.input", lambda *about: asked.append(about) or "y")
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nfrom transformers import Qwen2Config as Own\n")
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    for load in (load_chat, load_config):
        with suppress(ModelError):
            load(source(folder))
    assert asked == [] and not (folder / "ran").exists()
    with pytest.raises(ModelError, match="configuration 'tiny-qwen' cannot be loaded: .*custom code"):
        load_config(source(folder))


def load_whole(source: ModelSource) -> Any:
    return load_model(source, CPU, torch.float32)


@pytest.mark.parametrize(
    ("load", "name", "change", "reason"),
    [
        (load_chat, "tokenizer.json", None, "added_tokens"),
        (load_chat, "tokenizer_config.json", None, "has no attribute"),
        (load_config, "config.json", {"hidden_size": "wide"}, "'hidden_size' expected int, got str"),
        (load_config, "config.json", {"num_hidden_layers": 2}, "must be equal to the number of `layer_types` (3)"),
        (load_whole, "config.json", {"hidden_act": "nonsense"}, "nonsense"),
        (load_whole, "config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "optimum"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_damaged_file_is_one_line(
    folder: Path, load: Any, name: str, change: dict[str, Any] | None, reason: str
) -> None:
    """And what a layer, or a library, that is not there says of one."""
    content = json.loads((folder / name).read_text())
    empty: Any = {} if name == "tokenizer.json" else []
    (folder / name).write_text(json.dumps(empty if change is None else content | change))
    with pytest.raises(ModelError, match=r"'mine' cannot be loaded: .*; give a complete save_pretrained") as caught:
        load(ModelSource("mine", str(folder)))
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_the_fallback_is_taken_and_said_and_only_where_there_is_one() -> None:
    said: list[str] = []

    def attempt(model: ModelSettings) -> ModelSource:
        if model.name == "gone":
            raise ModelError("model 'gone' cannot be loaded")
        return ModelSource(model.name, model.name)

    both = TeacherSettings(name="gone", fallback="spare")
    taken = with_fallback(both, attempt, said.append)
    assert (taken.name, taken.stands_in) == ("spare", "model 'gone' cannot be loaded")
    assert with_fallback(TeacherSettings(name="spare"), attempt, said.append).stands_in is None
    [line] = said
    assert "gone" in line and "spare" in line
    with pytest.raises(ModelError, match="gone"):
        with_fallback(TeacherSettings(name="gone"), attempt, said.append)


def test_adapters_sit_on_every_linear_layer_but_the_head_and_come_back(folder: Path, tmp_path: Path) -> None:
    found = source(folder)
    lora = LoraSettings(enabled=True, r=2, alpha=4, dropout=0.0)
    model = trainable(load_model(found, CPU, torch.float32), lora)
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[1] for name, p in model.named_parameters() if "lora_" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    saved = tmp_path / "adapter"
    saved.mkdir()
    save_trained(model, load_chat(found), saved)
    assert {p.suffix for p in saved.iterdir()} <= {".safetensors", ".json", ".md", ".jinja"}
    again = load_trained(found, saved, CPU, torch.float32)
    ids = torch.arange(5)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model.eval()(ids).logits)


def test_a_hub_model_knows_its_commit_from_the_cache_and_a_folder_has_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert ModelSource("org/model", "org/model", "v1").commit == "v1"
    cached, commit = tmp_path / "models--org--model", "0123456789abcdef0123456789abcdef01234567"
    for path, text in (("refs/main", commit), (f"snapshots/{commit}/config.json", "{}")):
        (cached / path).parent.mkdir(parents=True, exist_ok=True)
        (cached / path).write_text(text)
    assert ModelSource("org/model", "org/model").commit == commit
    assert source(folder).commit is None


def test_without_lora_everything_is_trained(folder: Path) -> None:
    model = trainable(load_model(source(folder), CPU, torch.float32), LoraSettings(enabled=False))
    assert all(p.requires_grad for p in model.parameters())


# --- prompts


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({"generation_config.json": {"eos_token_id": [0, 5]}, "config.json": {"eos_token_id": 7}}, (2, 0, 5, 7)),
        ({"generation_config.json": {"eos_token_id": 0}, "config.json": {}}, (2, 0)),
        ({"generation_config.json": None, "config.json": {"eos_token_id": [2, 9]}}, (2, 9)),
        ({"generation_config.json": {}, "config.json": {"eos_token_id": None}}, (2,)),
    ],
)
def test_answers_end_at_all_that_the_models_files_name(
    folder: Path, files: dict[str, dict | None], ends: tuple[int, ...]
) -> None:
    for name, content in files.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    chat = load_chat(source(folder))
    assert (chat.end_ids, chat.end_id) == (ends, 2)


def test_a_damaged_generation_config_is_one_line(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match="generation_config.json 'tiny-qwen' cannot be loaded"):
        load_chat(source(folder))


def test_system_message_and_template_arguments_are_the_models_own(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_text("{{ tone }}" + template.read_text())
    settings = ModelSettings(name=str(folder), system="Be brief.", chat_template_kwargs={"tone": "kindly"})
    text = load_chat(source_of(settings, {})).template.prompt([{"role": "user", "content": "Hi"}])
    assert text.startswith("kindly<|im_start|>system\nBe brief.<|im_end|>")
    offline = source_of(settings.model_copy(update={"name": "offline-teacher"}), {"offline-teacher": folder})
    assert load_chat(offline).template.prompt([{"role": "user", "content": "Hi"}]) == text


def test_a_refused_system_message_names_model_and_key(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    template.write_text(refusal + template.read_text())
    with pytest.raises(ModelError, match=r"model 'tiny-qwen': .* refuses a system message \(no system\).*`system`"):
        load_chat(source_of(ModelSettings(name=str(folder), system="Be brief."), {}))


def test_arguments_that_the_suite_gives_itself_cannot_be_set() -> None:
    with pytest.raises(ValueError, match="tokenize cannot be set"):
        ModelSettings(name="some/model", chat_template_kwargs={"tokenize": True})


def test_the_fallback_is_asked_as_the_teacher_would_have_been() -> None:
    asked: list[ModelSettings] = []

    def attempt(model: ModelSettings) -> ModelSource:
        asked.append(model)
        if model.name == "gone":
            raise ModelError("model 'gone' cannot be loaded")
        return ModelSource(model.name, model.name)

    both = TeacherSettings(name="gone", revision="v1", fallback="spare", system="Be brief.")
    with_fallback(both, attempt, lambda line: None)
    assert (asked[1].name, asked[1].revision, asked[1].system) == ("spare", None, "Be brief.")


@pytest.mark.skipif(sys.platform != "linux", reason="maps are read from /proc")
@pytest.mark.parametrize(("dtype", "shared"), [(torch.float32, True), (torch.bfloat16, False)])
def test_base_weights_in_the_files_dtype_are_pages_of_the_file_which_processes_share(
    folder: Path, dtype: torch.dtype, shared: bool
) -> None:
    model = trainable(load_model(source(folder), CPU, dtype), LoraSettings())
    base = [p for name, p in model.named_parameters() if "lora" not in name and "embed" not in name and p.dim() == 2]
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "model.safetensors" in line]
    pages = [range(*(int(end, 16) for end in place.split("-"))) for place, *_ in maps]
    assert len(base) > 10
    assert {any(p.data_ptr() in some for some in pages) for p in base} == {shared}

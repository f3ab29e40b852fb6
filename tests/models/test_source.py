"""An adapter finds its base again: from another folder, after a move, by plain peft; a base that is not it is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kdsuite.config import LoraSettings, ModelSettings
from kdsuite.models.costs import shape_of
from kdsuite.models.loading import (
    load_chat,
    load_config,
    load_model,
    load_trained,
    pinned,
    save_trained,
    source_of,
    trainable,
)
from kdsuite.models.source import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE,
    ModelError,
    ModelSource,
    base_of,
    keep_base,
    missing_files,
)

CPU = torch.device("cpu")
IDS = torch.arange(1, 9)[None]


@pytest.fixture
def results(tmp_path: Path, qwen_model, qwen_chat) -> Path:
    """A folder that holds a base and, as a run leaves it, an adapter for it; with what the two say together."""
    folder = tmp_path / "project" / "results"
    base = folder / "offline" / "student"
    base.mkdir(parents=True)
    save_trained(qwen_model, qwen_chat, base)
    make_adapter(base, folder / "run")
    return folder


def make_adapter(base: Path, folder: Path) -> None:
    source = source_of(ModelSettings(name=str(base)), {})
    model = trainable(load_model(source, CPU, torch.float32), LoraSettings(r=2, alpha=4, dropout=0))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    folder.mkdir(parents=True)
    save_trained(model, load_chat(source), folder, source)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits


@torch.no_grad()
def alone(folder: Path) -> torch.Tensor:
    """What an adapter says on its base, computed by plain peft from a base that is named by hand."""
    base = AutoModelForCausalLM.from_pretrained(folder.parent / "offline" / "student", use_safetensors=True)
    return logits(PeftModel.from_pretrained(base, str(folder), use_safetensors=True))


def adapted(folder: Path) -> torch.Tensor:
    return logits(load_model(source_of(ModelSettings(name=str(folder)), {}), CPU, torch.float32))


def change(folder: Path) -> None:
    """Other weights, one bit of them."""
    weights = next(folder.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(bytes(data))


def test_plain_peft_finds_a_base_that_was_given_by_a_relative_path(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(results)
    make_adapter(Path("./offline/student"), results / "another")
    monkeypatch.chdir(tmp_path)
    named = json.loads((results / "another" / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
    assert (Path(named).is_absolute(), Path(named).samefile(results / "offline" / "student")) == (True, True)
    model = AutoPeftModelForCausalLM.from_pretrained(str(results / "another"))
    torch.testing.assert_close(logits(model), alone(results / "another"))
    assert not torch.allclose(logits(model), logits(model.get_base_model().__class__.from_pretrained(named)))


@pytest.mark.parametrize("how", ["moved", "copied, and the old base is another one", "behind a link"])
def test_after_a_move_the_base_is_found_with_the_results(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    expected = alone(results / "run")
    moved = tmp_path / "elsewhere" / "mine"
    if how == "moved":
        shutil.move(results, moved)
    else:
        shutil.copytree(results, moved)
        change(results / "offline" / "student")
    if how == "behind a link":
        (tmp_path / "link").symlink_to(moved)
        moved = tmp_path / "link"
    monkeypatch.chdir(moved.parent)
    base = base_of(moved / "run")
    assert base is not None
    assert Path(base.where).samefile(moved / "offline" / "student")
    torch.testing.assert_close(adapted(moved / "run"), expected)


def test_a_base_outside_of_the_results_stays_where_it_is(results: Path, tmp_path: Path) -> None:
    base = tmp_path / "models" / "mine"
    shutil.copytree(results / "offline" / "student", base)
    make_adapter(base, results / "other")
    expected = adapted(results / "other")
    shutil.move(results, tmp_path / "far" / "away" / "results")
    torch.testing.assert_close(adapted(tmp_path / "far" / "away" / "results" / "other"), expected)


@pytest.mark.parametrize("what", ["gone", "altered", "another configuration"])
def test_a_base_that_is_gone_or_altered_is_one_line_with_what_to_do(results: Path, what: str) -> None:
    base = results / "offline" / "student"
    if what == "gone":
        base.rename(results / "renamed")
    elif what == "altered":
        change(base)
    else:
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    with pytest.raises(ModelError) as caught:
        source_of(ModelSettings(name=str(results / "run")), {})
    line = str(caught.value)
    assert (
        f"the base of the adapter {results / 'run'} {'is gone' if what == 'gone' else 'has other weights now'}" in line
    )
    assert (str(base) in line, "put the model of then back there, or write" in line, "\n" in line) == (
        True,
        True,
        False,
    )
    if what == "gone":  # the second remedy
        about = json.loads((results / "run" / ADAPTER_CONFIG).read_text())
        about["base_model_name_or_path"] = str(results / "renamed")
        (results / "run" / ADAPTER_CONFIG).write_text(json.dumps(about))
        assert base_of(results / "run") == ModelSource("student", str(results / "renamed"))


def test_what_does_not_decide_the_weights_may_change_beside_them(results: Path) -> None:
    (results / "offline" / "student" / "README.md").write_text("mine")
    assert base_of(results / "run") is not None


def test_an_adapter_is_not_put_on_another_model_of_the_same_shape(results: Path) -> None:
    other = results / "other"
    shutil.copytree(results / "offline" / "student", other)
    change(other)
    with pytest.raises(ModelError, match="was trained on other weights") as caught:
        load_trained(ModelSource.at(str(other)), results / "run", CPU, torch.float32)
    assert str(other) in str(caught.value)


def test_a_hub_base_is_kept_by_id_and_commit(results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    keep_base(results / "run", ModelSource("org/model", "org/model", "0123abc"))
    about = json.loads((results / "run" / ADAPTER_CONFIG).read_text())
    assert (about["base_model_name_or_path"], about["revision"]) == ("org/model", "0123abc")
    assert not (results / "run" / BASE).exists()
    assert base_of(results / "run") == ModelSource("org/model", "org/model", "0123abc")


@pytest.mark.parametrize("named", ["absolute", "relative to here", "relative to the adapter"])
def test_an_adapter_of_others_is_found_its_base_by_the_path_alone(
    results: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    base, run = results / "offline" / "student", results / "run"
    (run / BASE).unlink()
    path = {
        "absolute": str(base),
        "relative to here": "offline/student",
        "relative to the adapter": "../offline/student",
    }
    about = json.loads((run / ADAPTER_CONFIG).read_text()) | {"base_model_name_or_path": path[named]}
    (run / ADAPTER_CONFIG).write_text(json.dumps(about))
    if named == "relative to here":
        monkeypatch.chdir(results)
    torch.testing.assert_close(adapted(run), alone(run))


@pytest.mark.parametrize(
    ("about", "problem"),
    [
        ('{"base_model_name_or_path": "/nowhere/at/all"}', "is gone; it was looked for at /nowhere/at/all"),
        ('{"base_model_name_or_path": null}', "does not name its base"),
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
    ],
)
def test_an_adapter_without_a_base_is_one_line(results: Path, about: str, problem: str) -> None:
    (results / "run" / BASE).unlink()
    (results / "run" / ADAPTER_CONFIG).write_text(about)
    with pytest.raises(ModelError, match=problem) as caught:
        source_of(ModelSettings(name=str(results / "run")), {})
    assert str(results / "run") in str(caught.value)


HARMS = ["missing", "truncated", "of other shapes", "a layer less", "of a compiled model", "for other layers"]


@pytest.mark.parametrize("harm", HARMS)
def test_an_adapter_that_is_not_whole_is_one_line(results: Path, harm: str) -> None:
    weights = results / "run" / ADAPTER_WEIGHTS
    tensors = load_file(weights)
    if harm == "missing":
        weights.unlink()
    elif harm == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif harm == "of other shapes":
        about = json.loads((results / "run" / ADAPTER_CONFIG).read_text())
        (results / "run" / ADAPTER_CONFIG).write_text(json.dumps(about | {"r": 3}))
    elif harm == "a layer less":
        save_file({name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}, weights)
    elif harm == "of a compiled model":
        save_file({name.replace(".model.", "._orig_mod.", 1): x for name, x in tensors.items()}, weights)
    else:
        extra = {name.replace(".layers.1.", ".layers.7."): tensor.clone() for name, tensor in tensors.items()}
        save_file(tensors | extra, weights)
    with pytest.raises(ModelError, match="adapter 'run' cannot be loaded") as caught:
        adapted(results / "run")
    assert "\n" not in str(caught.value)
    assert harm != "a layer less" or "it lacks base_model.model.model.layers.1." in str(caught.value)


def test_an_adapter_as_a_model_has_its_bases_configuration_and_its_own_fingerprint(results: Path) -> None:
    source = pinned(source_of(ModelSettings(name=str(results / "run")), {}), CPU, torch.float32)
    assert (source.name, source.whole.name) == ("run", "student")
    assert load_config(source).hidden_size == load_config(source.whole).hidden_size
    assert shape_of(source.where) == shape_of(source.whole.where) != None  # noqa: E711
    model = load_model(source, CPU, torch.float32)
    assert not isinstance(model, PeftModel)
    assert not any("lora" in name or parameter.requires_grad for name, parameter in model.named_parameters())
    torch.testing.assert_close(logits(model), alone(results / "run"))
    before = source.fingerprint
    assert before != source.whole.fingerprint
    change(results / "run")
    altered = source.fingerprint
    change(results / "offline" / "student")
    assert len({before, altered, source.fingerprint}) == 3


def test_the_tokenizer_is_the_adapters_own_or_its_bases(results: Path, llama_chat) -> None:
    source = source_of(ModelSettings(name=str(results / "run")), {})
    llama_chat.tokenizer.save_pretrained(results / "run")
    assert len(load_chat(source).token_bytes) == len(llama_chat.token_bytes)
    for path in results.glob("run/*token*"):
        path.unlink()
    assert source.tokenizing == source.base
    assert load_chat(source).end_id == load_chat(source.whole).end_id


def test_an_adapter_on_an_adapter_is_loaded_on_both(results: Path) -> None:
    make_adapter(results / "run", results / "second")
    first = adapted(results / "run")
    source = source_of(ModelSettings(name=str(results / "second")), {})
    assert source.base is not None and source.base.base is not None
    both = load_trained(source.base, results / "second", CPU, torch.float32)
    torch.testing.assert_close(logits(load_model(source, CPU, torch.float32)), logits(both), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(both), first, atol=1e-2)
    moved = results.parent / "moved"
    shutil.move(results, moved)
    torch.testing.assert_close(adapted(moved / "second"), logits(both), atol=1e-4, rtol=1e-4)
    change(moved / "offline" / "student")
    with pytest.raises(ModelError, match="has other weights now"):
        source_of(ModelSettings(name=str(moved / "second")), {})


def test_what_a_folder_lacks_is_named(results: Path) -> None:
    base = results / "offline" / "student"
    assert missing_files(base) == missing_files(results / "run") == []
    model = AutoModelForCausalLM.from_pretrained(base, use_safetensors=True)
    (base / "model.safetensors").unlink()
    assert missing_files(base) == ["*.safetensors"]
    model.save_pretrained(base, max_shard_size="40KB")
    assert missing_files(base) == []
    shards = sorted(base.glob("model-*.safetensors"))
    assert len(shards) > 3
    for shard in shards[1:3]:
        shard.unlink()
    assert missing_files(base) == [shard.name for shard in shards[1:3]]
    (base / "config.json").unlink()
    (results / "run" / ADAPTER_WEIGHTS).unlink()
    assert missing_files(base)[0] == "config.json"
    assert missing_files(results / "run") == [ADAPTER_WEIGHTS]


def test_a_source_can_be_handed_to_another_process(results: Path) -> None:
    source, written = source_of(ModelSettings(name=str(results / "run")), {}), TypeAdapter(ModelSource)
    assert source.base and written.validate_json(written.dump_json(source)) == source

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from huggingface_hub.repocard import metadata_load
from peft import AutoPeftModelForCausalLM
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from kdsuite import cli
from kdsuite.config import LoraSettings, task_section
from kdsuite.errors import SettingsError
from kdsuite.evaluate.predict import EvaluationSet, metrics, predict, write_predictions
from kdsuite.extras.export import export_run
from kdsuite.extras.push import push
from kdsuite.models.loading import ModelSource, load_model, load_trained, save_trained, trainable
from kdsuite.models.quantization import weight_file_bytes
from kdsuite.models.source import base_of
from kdsuite.store.files import atomic_write_record
from kdsuite.store.layout import Layout
from kdsuite.store.records import Registry
from kdsuite.tasks.encoding import ChatTokenizer
from kdsuite.tasks.example import task_of

RUN = "KD1_sst2_S1_T4_a0.5_seed42"
CPU = torch.device("cpu")

PLAIN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
folder, examples = sys.argv[1], json.load(sys.stdin)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
assert not any("kdsuite" in name for name in sys.modules)

@torch.inference_mode()
def log_prob(prompt, label):
    start = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    whole = tokenizer(prompt + label, add_special_tokens=False, return_tensors="pt").input_ids
    whole = torch.cat([whole, torch.tensor([[tokenizer.eos_token_id]])], dim=1)
    scores = model(whole[:, :-1]).logits[0].log_softmax(-1)
    at = range(start.shape[1] - 1, whole.shape[1] - 1)
    return sum(float(scores[i, whole[0, i + 1]]) for i in at)

answers = []
for messages in examples:
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    answers.append({label: log_prob(prompt, label) for label in ("negative", "positive")})
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def make_run(
    tmp_path_factory: pytest.TempPathFactory, llama_chat: ChatTokenizer
) -> Callable[[bool], tuple[Path, list[list[dict[str, str]]]]]:
    """A results folder with one completed run, an adapter or a whole model, and the messages it answered."""

    def make(lora: bool) -> tuple[Path, list[list[dict[str, str]]]]:
        results = tmp_path_factory.mktemp("results")
        base = results / "base"
        save_trained(_tiny_llama(len(llama_chat.tokenizer)), llama_chat, base)
        (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
        source, folder = ModelSource("base", str(base)), results / "models" / RUN
        model = trainable(load_model(source, CPU, torch.float32), LoraSettings(enabled=lora, r=4))
        _change(model)
        folder.mkdir(parents=True)
        save_trained(model, llama_chat, folder, source)
        return results, _record(results, load_trained(source, folder, CPU, torch.float32), llama_chat)

    return make


def _tiny_llama(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=vocabulary, hidden_size=64, intermediate_size=192, num_hidden_layers=2)
    return LlamaForCausalLM(shape)


def _change(model: Any) -> None:
    """As training would: every trainable weight is another one afterwards."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def _record(results: Path, model: Any, chat: ChatTokenizer) -> list[list[dict[str, str]]]:
    task = task_of("sst2", task_section("sst2"))
    examples = task.load("validation")[:50]
    data = EvaluationSet.of(task, chat, examples)
    predictions = predict(model, chat, data, batch_size=8)
    registry = Registry(results)
    spec = {"method": "KD1", "task": "sst2", "student": "S1", "seed": 42, "temperature": 4.0, "alpha": 0.5}
    environment = {"environment": {"dtype": "float32"}, "code_version": "0"}
    folder = registry.start(RUN, "f", spec, **environment)
    write_predictions(folder / "predictions.jsonl", predictions)
    words = {"hub_id": task.settings.hub_id, "licence": task.settings.licence, "metric": task.metric}
    words |= {"secondary_metric": task.secondary_metric}
    atomic_write_record(Layout(results).plan, {"tasks": {"sst2": words}})
    registry.complete(
        RUN,
        metrics={"validation": metrics(task, predictions)},
        model={"name": "base"},
        teacher={"name": "big-teacher", "quality": {}},
    )
    return [task.messages(e) for e in examples]


def recorded(results: Path) -> list[dict[str, Any]]:
    lines = (results / "raw_runs" / RUN / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(("lora", "merge"), [(True, True), (True, False), (False, False)])
def test_plain_transformers_in_another_process_give_the_recorded_predictions(
    make_run: Callable[..., Any], tmp_path: Path, lora: bool, merge: bool
):
    """An adapter merged into its base, an adapter as it is, and a model of which all weights were trained."""
    results, messages = make_run(lora)
    export_run(results, RUN, tmp_path / "out", CPU, merge=merge)
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path / "out")],
        input=json.dumps(messages),
        capture_output=True,
        text=True,
        check=True,
    )
    expected = recorded(results)
    assert len(expected) == 50
    for answer, record in zip(json.loads(done.stdout), expected, strict=True):
        assert answer == pytest.approx(record["label_logprobs"], abs=1e-3)
        assert max(answer, key=answer.__getitem__) == record["prediction"]


@pytest.fixture(scope="module")
def results(make_run: Callable[..., Any]) -> Path:
    return make_run(True)[0]


def test_a_merged_folder_stands_alone_and_holds_no_pickle(results: Path, tmp_path: Path):
    export_run(results, RUN, tmp_path / "out", CPU, merge=True)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) or "adapter" in name for name in names)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_without_merging_the_adapter_is_exported_as_it_was_trained(results: Path, tmp_path: Path):
    export_run(results, RUN, tmp_path / "out", CPU)
    weights = "adapter_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (results / "models" / RUN / weights).read_bytes()
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("merge", [False, True])
def test_moved_results_are_exported_with_the_base_that_moved_along(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merge: bool
):
    """From another working folder, by relative paths, while where the base was there is another model now."""
    export_run(results, RUN, tmp_path / "before", CPU, merge=True)
    project = tmp_path / "project"
    shutil.copytree(results, project / "results")
    (tmp_path / "empty").mkdir()
    old = results.with_name("moved-away")
    results.rename(old)
    monkeypatch.chdir(project)
    try:
        assert cli.main(["export", RUN, "out", "--results", "results", *(["--merge"] if merge else [])]) == 0
        monkeypatch.chdir(tmp_path / "empty")
        out = project / "out"
        expected = AutoModelForCausalLM.from_pretrained(tmp_path / "before")
        plain = AutoModelForCausalLM if merge else AutoPeftModelForCausalLM
        ids = torch.arange(9)[None]
        with torch.no_grad():
            found = plain.from_pretrained(str(out))(ids).logits
            torch.testing.assert_close(found, expected(ids).logits, atol=1e-4, rtol=1e-4)
        if not merge:
            base = base_of(out)
            assert base is not None and base.where == str(project / "results" / "base")
    finally:
        old.rename(results)


@pytest.mark.parametrize("merge", [False, True])
def test_an_adapter_whose_base_is_gone_is_not_exported(results: Path, tmp_path: Path, capsys, merge: bool):
    moved = tmp_path / "results"
    shutil.copytree(results, moved)
    shutil.rmtree(moved / "base")
    results.joinpath("base").rename(results / "renamed")
    try:
        options = ["--results", str(moved), *(["--merge"] if merge else [])]
        assert cli.main(["export", RUN, str(tmp_path / "out"), *options]) == 2
    finally:
        results.joinpath("renamed").rename(results / "base")
    said = capsys.readouterr().err
    assert "is gone; it was looked for at" in said and str(moved / "base") in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_quantized_export_is_smaller_and_loads_in_plain_transformers(results: Path, tmp_path: Path, scheme: str):
    export_run(results, RUN, tmp_path / "whole", CPU, merge=True)
    export_run(results, RUN, tmp_path / scheme, CPU, quantize=scheme)
    assert weight_file_bytes(tmp_path / scheme) < weight_file_bytes(tmp_path / "whole")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / scheme, dtype=torch.float32)
    assert torch.isfinite(model(torch.arange(5)[None]).logits).all()


def test_llama_cpp_gives_the_recorded_predictions(
    make_run: Callable[..., Any], served: Callable[..., Any], tmp_path: Path
):
    """Of an adapter, merged, from messages to log-probabilities: template, tokens and numbers are the server's."""
    results, messages = make_run(True)
    out = tmp_path / "out"
    assert cli.main(["export", RUN, str(out), "--format", "gguf-f32", "--results", str(results)]) == 0
    assert {path.name for path in out.iterdir()} == {"model.gguf", "Modelfile", "README.md", ".eval_results"}
    server = served(out / "model.gguf")

    def ids(text: str) -> list[int]:
        return server.ask("/tokenize", content=text, add_special=False, parse_special=True)["tokens"]

    (end,) = ids("</s>")
    for asked, record in list(zip(messages, recorded(results), strict=True))[:3]:
        prompt = server.ask("/apply-template", messages=asked)["prompt"]
        for label, expected in record["label_logprobs"].items():
            start, whole = len(ids(prompt)), [*ids(prompt + label), end]
            steps = [server.log_probs(whole[:i], 500)[whole[i]] for i in range(start, len(whole))]
            assert sum(steps) == pytest.approx(expected, abs=1e-3)
    server.kill()


def test_gguf_is_half_as_large_in_f16_and_its_card_says_so(results: Path, tmp_path: Path):
    for precision in ("f16", "f32"):
        export_run(results, RUN, tmp_path / precision, CPU, gguf=precision)
    sizes = [(tmp_path / precision / "model.gguf").stat().st_size for precision in ("f16", "f32")]
    assert 0.4 < sizes[0] / sizes[1] < 0.6
    card = tmp_path / "f16" / "README.md"
    assert (metadata_load(card) or {})["library_name"] == "gguf" and "As GGUF (f16)" in card.read_text()


def test_an_export_as_gguf_that_is_interrupted_leaves_nothing(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write, done = GGUFWriter.write_tensor_data, []

    def interrupted(*arguments: Any) -> None:
        done.append(write(*arguments))
        if len(done) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(GGUFWriter, "write_tensor_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_run(results, RUN, tmp_path / "out", CPU, gguf="f32")
    assert not list(tmp_path.iterdir())


def test_what_gguf_is_not_written_for_is_refused_before_its_weights_are_read(
    llama_chat: ChatTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    results, folder = tmp_path / "results", tmp_path / "results" / "models" / RUN
    shape = MistralConfig(vocab_size=500, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    folder.mkdir(parents=True)
    save_trained(MistralForCausalLM(shape), llama_chat, folder)
    (folder / "model.safetensors").write_bytes(b"")
    registry = Registry(results)
    registry.start(RUN, "f", {"method": "B0", "task": "sst2"}, environment={"dtype": "float32"}, code_version="0")
    registry.complete(RUN, metrics={}, model={"name": "base"})
    command = ["export", RUN, str(tmp_path / "out"), "--results", str(results), "--format", "gguf"]
    assert cli.main(command) == 2
    assert "is a mistral; GGUF is written for llama, qwen2, gemma3_text" in capsys.readouterr().err
    assert cli.main([*command, "--quantize", "int8"]) == 2
    assert "int8 is for transformers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_card_says_what_it_is_made_of_and_how_good(results: Path, tmp_path: Path):
    export_run(results, RUN, tmp_path / "out", CPU, merge=True)
    card = tmp_path / "out" / "README.md"
    metadata = metadata_load(card)
    assert metadata is not None
    assert metadata["license"] == "apache-2.0"
    assert metadata["datasets"] == ["stanfordnlp/sst2"]
    text = card.read_text()
    accuracy = Registry(results).records()[0]["metrics"]["validation"]["accuracy"]
    for fact in (RUN, "KD1", "big-teacher", f"accuracy {accuracy:.2f}", "apache-2.0", "SST-2"):
        assert fact in text


def test_the_command_exports_and_says_where(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert cli.main(["export", RUN, str(out), "--merge", "--results", str(results)]) == 0
    assert capsys.readouterr().out == f"exported {RUN} to {out}\n"
    assert (out / "model.safetensors").exists()
    assert cli.main(["export", RUN, str(out), "--results", str(results)]) == 2
    assert f"{out} is there already" in capsys.readouterr().err


def test_an_adapter_for_a_folder_is_not_pushed_as_nobody_else_could_load_it(results: Path, tmp_path: Path):
    export_run(results, RUN, tmp_path / "out", CPU)
    with pytest.raises(SettingsError, match="for .*, a folder that others do not have; export it with --merge"):
        push(tmp_path / "out", "some/model", RUN)


def test_an_unknown_run_names_the_nearest_or_those_there_are(results: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match=f"did you mean '{RUN}'"):
        export_run(results, RUN.replace("42", "43"), tmp_path / "out", CPU)
    with pytest.raises(SettingsError, match=f"no run 'KD9'.*{RUN}"):
        export_run(results, "KD9", tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


def test_nothing_that_is_there_already_is_overwritten(results: Path, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(SettingsError, match="there already"):
        export_run(results, RUN, tmp_path, CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_current_folder_is_refused_and_so_is_a_task_file_in_the_place_of_the_model(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    for arguments, told in (
        (["."], "give a new or an empty folder by its name"),
        (["out", "--lm-eval", "out"], "--lm-eval: it would take the place of the model"),
        (["task/out", "--lm-eval", "task"], "--lm-eval: it would take the place of the model"),
    ):
        assert cli.main(["export", RUN, *arguments, "--results", str(results)]) == 2
        assert told in capsys.readouterr().err and list(tmp_path.iterdir()) == []

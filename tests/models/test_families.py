"""What this suite says of a model is what plain transformers says of it, in every family; or one line refuses.

Each check is held against one sequence at a time, without padding, cache or mask (see `families.py`).
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, GPT2Model

from kdsuite import cli
from kdsuite.config import LoraSettings
from kdsuite.errors import KdsuiteError, ModelError
from kdsuite.evaluate.predict import label_scores
from kdsuite.methods.targets import SoftTargets
from kdsuite.methods.terms import Distiller, Divergence, OnTarget, Term
from kdsuite.models.beginning import read_once
from kdsuite.models.check import try_training
from kdsuite.models.forward import collate_for
from kdsuite.models.generation import generate
from kdsuite.tasks.encoding import ChatTokenizer, Encoded
from kdsuite.teacher.local import OutputSettings, ask

from .families import (
    EITHER,
    FAMILIES,
    NEW_TOKENS,
    NOT_CAUSAL,
    REFUSED,
    VERDICT,
    Subject,
    build,
    declared_ends,
    greedy,
    reads_pictures,
    token_log_probs,
    tokens_of,
)

pytestmark = pytest.mark.slow
LABELS = len(VERDICT.labels)
TEMPERATURE = 2.0
TOP = 16
TOLERANCE = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}  # of stored hidden states, by their dtype
DECODING = {"zamba2": 5e-3}  # transformers' own steps with a cache are 1e-3 off its pass over the whole
LORA = LoraSettings(r=4, alpha=8, dropout=0.0)
FULL = LoraSettings(enabled=False)
Make = Callable[[str], Subject]


@pytest.fixture(scope="session")
def subject_of(tmp_path_factory: pytest.TempPathFactory, qwen_chat: ChatTokenizer) -> Make:
    """Subjects by name, each built and loaded once."""
    made: dict[str, Subject] = {}

    def make(name: str) -> Subject:
        if name not in made:
            kind, settings = (FAMILIES | EITHER)[name]
            folder, auto = tmp_path_factory.mktemp("families") / name, reads_pictures(name)
            made[name] = Subject(name, build(kind, settings, qwen_chat.tokenizer, folder, auto), auto)
        return made[name]

    return make


@pytest.fixture(scope="session", params=FAMILIES)
def subject(request: pytest.FixtureRequest, subject_of: Make) -> Subject:
    return subject_of(request.param)


def close(ours: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4, what: str = "") -> None:
    """Equal to within 1e-4 nats (relative to what is larger than 1)."""
    torch.testing.assert_close(
        ours.detach().float().cpu(), expected.detach().float(), atol=tolerance, rtol=tolerance,
        msg=lambda text: f"{what}: {text}",
    )  # fmt: skip


# --- every family


def test_label_scores(subject: Subject) -> None:
    expected = subject.scores(subject.labelled)
    assert len({len(tokens_of(subject.labelled[0], choice)) for choice in range(LABELS)}) > 1
    for batch_size in (1, 3, 8):
        with read_once(subject.model, subject.labelled, least=1) if batch_size == 3 else nullcontext():
            scores = label_scores(subject.model, subject.chat, subject.labelled, LABELS, batch_size)
        close(scores, expected, what=f"batches of {batch_size}")


@pytest.mark.parametrize("task", ["labelled", "answers"])
def test_teacher_outputs(subject: Subject, task: str) -> None:
    examples = getattr(subject, task)
    keep = OutputSettings(TOP, "float32", (TEMPERATURE,), (), LABELS if task == "labelled" else 0)
    for example, record in zip(examples, ask(subject.model, subject.chat, examples, keep), strict=True):
        logits, _ = subject.reference(example, example.gold)
        ids = torch.from_numpy(record["topk_ids"]).long()
        log_probs = logits.log_softmax(-1)
        close(torch.from_numpy(record["topk_logprobs"]), log_probs.topk(TOP).values, what="top-k")
        close(log_probs.gather(-1, ids), log_probs.topk(TOP).values, what="ids of the top-k")
        tempered = torch.stack([logits, logits / TEMPERATURE], dim=1)  # [p, 2, V]
        close(torch.from_numpy(record["logsumexp"]), tempered.logsumexp(-1), what="logsumexp")
        others = tempered.log_softmax(-1).scatter(-1, ids[:, None].expand(-1, 2, -1), -math.inf)
        close(torch.from_numpy(record["log_tail"]), others.logsumexp(-1), what="log_tail")
        if task == "labelled":
            close(torch.from_numpy(record["class_scores"]), subject.scores([example])[0], what="class scores")


@pytest.mark.parametrize("task", ["labelled", "answers"])
def test_hidden_states_of_every_layer(subject: Subject, task: str) -> None:
    examples = getattr(subject, task)
    layers = tuple(range(1, len(subject.reference(examples[0], examples[0].gold)[1])))
    if not layers:
        pytest.skip("plain transformers gives no hidden states [batch, positions, width] of this family")
    with read_once(subject.model, examples, least=1):
        records = ask(subject.model, subject.chat, examples, OutputSettings(TOP, "float32", (), layers, 0))
    for example, record in zip(examples, records, strict=True):
        _, hidden = subject.reference(example, example.gold)
        for layer in layers:
            states, dtype = stored(record[f"hidden_{layer}"])
            close(states, hidden[layer], TOLERANCE[dtype], f"layer {layer}, stored as {dtype}")


@pytest.mark.parametrize("task", ["labelled", "answers"])
def test_online_features_are_the_cached_ones(subject: Subject, task: str) -> None:
    examples = getattr(subject, task)
    several = tuple(range(1, len(subject.reference(examples[0], examples[0].gold)[1])))
    if not several:
        pytest.skip("plain transformers gives no hidden states [batch, positions, width] of this family")
    for layers in ((1,), several):
        cached = ask(subject.model, subject.chat, examples, OutputSettings(TOP, "float32", (), layers, 0))
        online = ask(subject.model, subject.chat, examples, OutputSettings(layers=layers))
        for one, other in zip(online, cached, strict=True):
            for layer in layers:
                states, dtype = stored(one[f"hidden_{layer}"])
                close(states, stored(other[f"hidden_{layer}"])[0], TOLERANCE[dtype], f"layer {layer}")
            assert (one["spans"] == other["spans"]).all()


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_answers(subject: Subject, batch_size: int) -> None:
    assert min(map(len, subject.prompts)) * 2 < max(map(len, subject.prompts))
    answers = generate(subject.model, subject.chat, subject.prompts, NEW_TOKENS, batch_size)
    if (tolerance := DECODING.get(subject.name)) is None:
        same(answers, subject.written)
    else:  # whose decoding is less exact: one answer may turn where two tokens are as likely
        close_by = pytest.approx([c for _, c in subject.written], abs=max(tolerance, 1e-2))
        assert [c for _, c in answers] == close_by
        assert sum(one[0] != other[0] for one, other in zip(answers, subject.written, strict=True)) <= 1


@pytest.mark.parametrize("lora", [LORA, FULL], ids=["adapters", "all-weights"])
@pytest.mark.parametrize("task", ["labelled", "answers"])
def test_training_losses_and_gradients(subject: Subject, task: str, lora: LoraSettings) -> None:
    """B0 and KD1 in training mode; a fresh adapter changes nothing yet. Without one, gradients are plain's.

    An architecture that adapters cannot be put on is refused with one line.
    """
    examples = getattr(subject, task)
    try:
        model = subject.trained(lora)
        try_training(model, subject.name)
    except KdsuiteError as refusal:
        if lora.enabled and "adapter" in one_line(refusal):
            return
        raise
    soft = teacher_of(subject, examples, labelled=task == "labelled")
    batch = collate_for(model, examples, subject.chat.pad_id)
    for method in ("KD1", "B0"):
        terms: dict[str, Term] = {"ce": OnTarget(0.5)}
        if method == "KD1":
            terms["kd"] = Divergence(0.5, TEMPERATURE)
        parts = Distiller(model, subject.vocabulary, terms)(batch, soft if method == "KD1" else None)
        expected = expected_parts(subject, examples, soft, labelled=task == "labelled")
        for part, value in parts.items():
            close(value, expected[part], what=f"{part} of {method}")
        assert set(parts) == set(terms)
        model.zero_grad()
        sum(parts.values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
        assert all(g.isfinite().all() for g in gradients.values())
        assert any(g.abs().max() > 0 for g in gradients.values())
    if not lora.enabled:
        equal_gradients(subject, examples, gradients)


def stored(states: np.ndarray) -> tuple[torch.Tensor, str]:
    """Hidden states as float32 with the dtype that they are stored in; 16-bit integers are bfloat16's bits."""
    if states.dtype.kind in "iu" and states.dtype.itemsize == 2:
        return torch.from_numpy(states.view(np.int16)).view(torch.bfloat16).float(), "bfloat16"
    return torch.from_numpy(states.astype(np.float32)), states.dtype.name


def same(answers: Sequence[tuple[str, float]], expected: Sequence[tuple[str, float]], tolerance: float = 1e-4) -> None:
    assert [text for text, _ in answers] == [text for text, _ in expected]
    assert [c for _, c in answers] == pytest.approx([c for _, c in expected], abs=tolerance)


def teacher_of(subject: Subject, examples: Sequence[Encoded], labelled: bool) -> SoftTargets:
    """A random teacher: distributions over its likeliest tokens, or over the labels."""
    generator = torch.Generator().manual_seed(5)
    positions = torch.arange(sum(len(e.targets) for e in examples))
    if labelled:
        scores = torch.randn(len(examples), LABELS, generator=generator)
        return SoftTargets(positions, class_scores=scores.log_softmax(-1))
    logits = 2 * torch.randn(len(positions), subject.vocabulary, generator=generator)
    log_probs = (logits / TEMPERATURE).log_softmax(-1)
    top, ids = log_probs.topk(TOP)
    rest = log_probs.scatter(-1, ids, -math.inf).logsumexp(-1)
    return SoftTargets(positions, ids=ids, tempered=top, log_tail=rest)


def expected_parts(
    subject: Subject, examples: Sequence[Encoded], soft: SoftTargets, labelled: bool
) -> dict[str, torch.Tensor]:
    """Cross-entropy of the targets, and T²·KL(teacher ‖ student) over the labels or over top-k and rest."""
    ce = -sum(subject.log_probs(e, e.gold).sum() for e in examples)
    if labelled:
        assert soft.class_scores is not None
        teacher, student = soft.class_scores, subject.scores(examples)
        return {"ce": ce, "kd": kl(*((scores / TEMPERATURE).log_softmax(-1) for scores in (teacher, student)))}
    assert soft.ids is not None and soft.tempered is not None and soft.log_tail is not None
    logits = torch.cat([subject.reference(e, e.gold)[0] for e in examples])
    own = (logits / TEMPERATURE).log_softmax(-1)
    rest = own.scatter(-1, soft.ids, -math.inf).logsumexp(-1)
    student = torch.cat([own.gather(-1, soft.ids), rest[:, None]], dim=-1)
    return {"ce": ce, "kd": kl(torch.cat([soft.tempered, soft.log_tail[:, None]], dim=-1), student)}


def kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """T²·KL of log-probabilities, summed."""
    return TEMPERATURE**2 * (teacher.exp() * (teacher - student)).sum()


def equal_gradients(subject: Subject, examples: Sequence[Encoded], gradients: dict[str, torch.Tensor | None]) -> None:
    """The gradients of cross-entropy are those of plain transformers, up to 1e-3 of the largest."""
    subject.plain.zero_grad()
    for e in examples:
        logits, _ = subject.compute(e, e.gold)
        (-token_log_probs(logits, tokens_of(e, e.gold)).sum()).backward()
    expected = {n: p.grad for n, p in subject.plain.named_parameters() if p.grad is not None}
    largest = max(float(g.abs().max()) for g in expected.values())
    assert {n for n, g in gradients.items() if g is not None} >= set(expected)
    for name, gradient in expected.items():
        ours = gradients[name]
        assert ours is not None
        assert float((ours - gradient).abs().max()) < 1e-3 * largest, name
    subject.plain.zero_grad()


# --- refused, or right


def one_line(error: BaseException) -> str:
    """A message a reader can act on."""
    message = str(error)
    assert message.strip() and "\n" not in message.strip(), f"not one line: {message}"
    assert "Traceback" not in message and len(message) < 600
    return message


@pytest.mark.parametrize("name", EITHER)
def test_equal_or_refused(subject_of: Make, name: str) -> None:
    subject = subject_of(name)
    try:
        model = subject.model
    except KdsuiteError as error:
        line = one_line(error)
        assert name in line and "complete save_pretrained folder" not in line  # it is complete
        return
    scores = label_scores(model, subject.chat, subject.labelled, LABELS, 3)
    close(scores, subject.scores(subject.labelled))
    same(generate(model, subject.chat, subject.prompts, NEW_TOKENS, 3), subject.written)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, qwen_chat: ChatTokenizer, name: str) -> None:
    kind, settings, reason = REFUSED[name]
    auto = AutoModelForSeq2SeqLM if kind in ("t5", "bart") else AutoModelForCausalLM
    folder = build(kind, settings, qwen_chat.tokenizer, tmp_path / name, auto)
    with pytest.raises(KdsuiteError, match=f"(?i){reason}") as refusal:
        Subject(name, folder).load()
    assert name in one_line(refusal.value)


def test_an_encoder_trained_to_fill_gaps_is_refused(tmp_path: Path, qwen_chat: ChatTokenizer) -> None:
    """As such models are published: transformers would load it as a decoder."""
    kind, settings, reason = REFUSED["bert"]
    folder = build(kind, settings, qwen_chat.tokenizer, tmp_path / "bert", AutoModelForMaskedLM)
    with pytest.raises(KdsuiteError) as refusal:
        Subject("bert", folder).load()
    one_line(refusal.value)


# --- generation settings of a model's own


def edited(subject: Subject, folder: Path, **changes: Any) -> Subject:
    """The subject with other generation settings."""
    shutil.copytree(subject.folder, folder)
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(settings | changes))
    return Subject(subject.name, folder)


OWN_SETTINGS = {
    "repetition_penalty": {"repetition_penalty": 1.3},
    "sampling": {"do_sample": True, "temperature": 1.7, "top_k": 3, "top_p": 0.8},
    "min_p": {"do_sample": True, "min_p": 0.1, "typical_p": 0.5},
    "min_new_tokens": {"min_new_tokens": 5, "min_length": 400},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
    "forced_eos_token_id": {"forced_eos_token_id": 2},
    "num_beams": {"num_beams": 3, "length_penalty": 2.0},
    "max_length": {"max_length": 20, "max_new_tokens": 1},
    "stop_strings": {"stop_strings": ["e", "a"]},
    "exponential_decay": {"exponential_decay_length_penalty": [1, 5.0]},
    "guidance_scale": {"guidance_scale": 1.5},
    "sequence_bias": {"sequence_bias": [[[5], 9.0]]},
    "several_sequences": {"num_return_sequences": 2, "num_beams": 2},
    "scores": {"output_scores": True, "output_attentions": False, "remove_invalid_values": True},
    "renormalize": {"renormalize_logits": True, "begin_suppress_tokens": [7]},
    "no_cache": {"use_cache": False},
    "cache": {"cache_implementation": "static"},
}


@pytest.mark.parametrize("asked", OWN_SETTINGS)
def test_settings_of_the_models_own_change_no_answer(tmp_path: Path, subject_of: Make, asked: str) -> None:
    base = subject_of("gemma")
    subject = edited(base, tmp_path / "gemma", **OWN_SETTINGS[asked])
    same(generate(subject.model, subject.chat, base.prompts, NEW_TOKENS, 3), base.written)


@pytest.mark.parametrize("name", ["gemma", "gpt2"])
def test_words_that_the_models_own_settings_forbid_are_written(tmp_path: Path, subject_of: Make, name: str) -> None:
    base = subject_of(name)
    written = sorted(set(first_tokens(base)))
    bad = {"bad_words_ids": [[i] for i in written], "suppress_tokens": written}
    for number, asked in enumerate([*bad.items(), ("begin_suppress_tokens", written)]):
        subject = edited(base, tmp_path / f"{name}{number}", **dict([asked]))
        same(generate(subject.model, subject.chat, base.prompts, NEW_TOKENS, 3), base.written)


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "gemma", "mamba"])
def test_every_declared_end_ends_an_answer(tmp_path: Path, subject_of: Make, name: str) -> None:
    base = subject_of(name)
    first = first_tokens(base)
    later = [greedy_ids(base, prompt)[2] for prompt in base.prompts]
    ends = [base.chat.end_id, first[0], later[1]]
    subject = edited(base, tmp_path / name, eos_token_id=ends, min_new_tokens=NEW_TOKENS)
    expected = [greedy(base.plain, base.chat, prompt, NEW_TOKENS, ends=ends) for prompt in base.prompts]
    assert expected != base.written
    assert set(ends) <= declared_ends(subject.plain, subject.chat)
    for batch_size in (1, 8):
        same(generate(subject.model, subject.chat, base.prompts, NEW_TOKENS, batch_size), expected)


def first_tokens(subject: Subject) -> list[int]:
    return [greedy_ids(subject, prompt)[0] for prompt in subject.prompts]


@torch.no_grad()
def greedy_ids(subject: Subject, prompt: Sequence[int], count: int = 3) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(subject.plain(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


# --- weights


def copied(subject: Subject, folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    shutil.copytree(subject.folder, folder)
    return folder, load_file(folder / "model.safetensors")


def write(folder: Path, weights: dict[str, torch.Tensor]) -> Subject:
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    return Subject(folder.name, folder)


def without(weights: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    kept = {name: tensor for name, tensor in weights.items() if part not in name}
    assert len(kept) < len(weights)
    return kept


def halved(weights: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    [name] = [name for name in weights if part in name]
    return weights | {name: weights[name][: len(weights[name]) // 2]}


Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
SPOILT: dict[str, tuple[str, Change, str]] = {  # family, change of the file, what the line names
    "compiled": ("llama", lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, r"model\.\S+"),
    "compiled-gpt2": ("gpt2", lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, r"h\.\d\.|wte|wpe|ln_f"),
    "wrapped": ("qwen2", lambda w: {f"module.{k}": v for k, v in w.items()}, r"model\.\S+"),
    "key": ("llama", lambda w: without(w, "layers.1.mlp.up_proj"), r"layers\.1\.mlp\.up_proj"),
    "bias": ("qwen2", lambda w: without(w, "layers.0.self_attn.k_proj.bias"), r"layers\.0\.self_attn\.k_proj"),
    "norm": ("olmo2", lambda w: without(w, "layers.0.post_attention_layernorm"), r"post_attention_layernorm"),
    "layer": ("llama", lambda w: without(w, "layers.1."), r"layers\.1\."),
    "layer-gpt2": ("gpt2", lambda w: without(w, "h.0."), r"h\.0\."),
    "head": ("llama", lambda w: without(w, "lm_head"), r"lm_head"),
    "embedding": ("qwen2", lambda w: without(w, "embed_tokens"), r"embed_tokens"),
    "head-bias": ("phi", lambda w: without(w, "lm_head.bias"), r"lm_head\.bias"),
    "experts": ("mixtral", lambda w: without(w, "layers.0.block_sparse_moe.gate"), r"layers\.0\.\S*gate"),
    "state": ("mamba", lambda w: without(w, "layers.1.mixer.A_log"), r"layers\.1\.mixer\.A_log"),
    "extra-bias": (
        "llama",
        lambda w: w | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)},
        r"layers\.0\.self_attn\.q_proj\.bias",
    ),
    "extra-layer": (
        "qwen2",
        lambda w: w | {k.replace("layers.1.", "layers.2."): v.clone() for k, v in w.items() if "layers.1." in k},
        r"layers\.2\.",
    ),
    "shape": ("llama", lambda w: halved(w, "layers.0.mlp.up_proj"), r"layers\.0\.mlp\.up_proj"),
    "shape-embedding": ("gemma", lambda w: halved(w, "embed_tokens"), r"embed_tokens"),
    "shape-positions": ("gpt2", lambda w: halved(w, "wpe"), r"wpe"),
}  # fmt: skip


@pytest.mark.parametrize("fault", SPOILT)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path, subject_of: Make, fault: str) -> None:
    name, change, named = SPOILT[fault]
    folder, weights = copied(subject_of(name), tmp_path / f"spoilt-{fault}")
    spoilt = write(folder, change(weights))
    with pytest.raises(ModelError, match=named) as refusal:
        spoilt.load()
    assert folder.name in one_line(refusal.value)


def sharded(subject: Subject, folder: Path) -> list[Path]:
    subject.plain.save_pretrained(folder, max_shard_size="30KB")
    subject.chat.tokenizer.save_pretrained(folder)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    return shards


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_sharded_checkpoint_is_one_model(tmp_path: Path, subject_of: Make, name: str) -> None:
    sharded(subject_of(name), tmp_path / name)
    equal(Subject(name, tmp_path / name), subject_of(name))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_missing_shard_is_refused(tmp_path: Path, subject_of: Make, name: str) -> None:
    lost = sharded(subject_of(name), tmp_path / name)[1]
    lost.unlink()
    with pytest.raises(ModelError, match=lost.name):
        Subject(name, tmp_path / name).load()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_shard_that_is_empty_is_refused_by_the_keys_it_lacks(tmp_path: Path, subject_of: Make, name: str) -> None:
    shards = sharded(subject_of(name), tmp_path / name)
    lost = set(load_file(shards[1]))
    save_file({}, shards[1], {"format": "pt"})
    with pytest.raises(ModelError) as refusal:
        Subject(name, tmp_path / name).load()
    line = one_line(refusal.value)
    assert any(key in line or key.removeprefix("transformer.") in line for key in lost), line


def equal(ours: Subject, reference: Subject) -> None:
    ids = torch.tensor([reference.prompts[0]])
    with torch.no_grad():
        close(ours.load()(input_ids=ids).logits, reference.plain(input_ids=ids).logits)


@pytest.mark.parametrize("name", ["gpt2", "gemma", "qwen2_tied", "falcon", "bloom", "opt", "cohere"])
def test_a_tied_head_need_not_be_in_the_file(tmp_path: Path, subject_of: Make, name: str) -> None:
    folder, weights = copied(subject_of(name), tmp_path / name)
    assert not [key for key in weights if "lm_head" in key]
    equal(write(folder, weights), subject_of(name))


@pytest.mark.parametrize("name", ["gpt2", "qwen2_tied"])
def test_a_tied_head_may_be_in_the_file(tmp_path: Path, subject_of: Make, name: str) -> None:
    folder, weights = copied(subject_of(name), tmp_path / name)
    [embedding] = [tensor for key, tensor in weights.items() if "embed_tokens" in key or "wte" in key]
    equal(write(folder, weights | {"lm_head.weight": embedding.clone()}), subject_of(name))


BUFFERS: dict[str, tuple[str, Change]] = {
    "inv_freq": (
        "llama",
        lambda w: w | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)},
    ),
    "inv_freq-neox": (
        "gpt_neox",
        lambda w: w | {f"gpt_neox.layers.{i}.attention.rotary_emb.inv_freq": torch.ones(1) for i in range(2)},
    ),
    "masks": (
        "gpt2",
        lambda w: (
            w
            | {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 8, 8) for i in range(2)}
            | {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
        ),
    ),
    "masks-neox": (
        "gpt_neox",
        lambda w: (
            w
            | {f"gpt_neox.layers.{i}.attention.bias": torch.ones(1, 1, 8, 8) for i in range(2)}
            | {f"gpt_neox.layers.{i}.attention.masked_bias": torch.tensor(-1e9) for i in range(2)}
        ),
    ),
}


@pytest.mark.parametrize("which", BUFFERS)
def test_buffers_that_older_files_hold_do_no_harm(tmp_path: Path, subject_of: Make, which: str) -> None:
    name, change = BUFFERS[which]
    folder, weights = copied(subject_of(name), tmp_path / name)
    equal(write(folder, change(weights)), subject_of(name))


def test_a_backbone_saved_without_its_head_is_the_whole_model_where_the_head_is_tied(
    tmp_path: Path, subject_of: Make
) -> None:
    folder = tmp_path / "gpt2"
    subject_of("gpt2").chat.tokenizer.save_pretrained(folder)
    GPT2Model.from_pretrained(subject_of("gpt2").folder).save_pretrained(folder)
    assert "wte.weight" in load_file(folder / "model.safetensors")
    equal(Subject("gpt2", folder), subject_of("gpt2"))


def test_a_backbone_saved_without_its_head_is_refused_where_the_head_is_not_tied(
    tmp_path: Path, subject_of: Make
) -> None:
    folder = tmp_path / "llama"
    subject_of("llama").chat.tokenizer.save_pretrained(folder)
    subject_of("llama").plain.model.save_pretrained(folder)
    with pytest.raises(ModelError, match="lm_head"):
        Subject("llama", folder).load()


@pytest.mark.parametrize("name", ["qwen2", "gemma", "mixtral", "mamba"])
def test_weights_saved_in_bfloat16_are_loaded_in_float32(tmp_path: Path, subject_of: Make, name: str) -> None:
    subject_of(name).chat.tokenizer.save_pretrained(tmp_path / name)
    half = AutoModelForCausalLM.from_pretrained(subject_of(name).folder, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / name)
    saved = Subject(name, tmp_path / name)
    assert all(p.dtype == torch.float32 for p in saved.model.parameters())
    scores = label_scores(saved.model, saved.chat, saved.labelled, LABELS, 3)
    close(scores, saved.scores(saved.labelled))


# --- refused before any work, by doctor and by run


def settings_file(folder: Path, teacher: Path, student: Path, **sections: Any) -> Path:
    task = {
        "train_size": 8, "dev_size": 4, "validation_size": 4, "max_length": 320, "max_new_tokens": 4,
        "quality_floor": 0, "training": {"epochs": 1, "batch_size": 4},
    }  # fmt: skip
    tree = {
        "threads": 1, "device": "cpu", "dtype": "float32", "seeds": [1], "methods": ["B0"],
        "tasks": {"sst2": task, "squad": task},
        "models": {
            "teacher": {"name": str(teacher)}, "students": {"S1": {"name": str(student)}},
            "lora": {"enabled": False},
        },
    } | sections  # fmt: skip
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def few_positions(subject_of: Make, folder: Path, tokenizer: Any) -> Path:
    kind, settings = FAMILIES["gpt2"]
    return build(kind, settings | {"n_positions": 128}, tokenizer, folder)


def few_positions_opt(subject_of: Make, folder: Path, tokenizer: Any) -> Path:
    kind, settings = FAMILIES["opt"]
    return build(kind, settings | {"max_position_embeddings": 128}, tokenizer, folder)


def end_beyond(subject_of: Make, folder: Path, tokenizer: Any) -> Path:
    """The end of turn is a token that was added to the tokenizer, not to the model."""
    shutil.copytree(subject_of("llama").folder, folder)
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text())
    added = {"id": len(tokenizer), "content": "<end>", "single_word": False, "lstrip": False, "rstrip": False}
    tree["added_tokens"].append(added | {"normalized": False, "special": True})
    path.write_text(json.dumps(tree))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "<end>"}))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", "<end>"))
    return folder


def embedding_too_short(subject_of: Make, folder: Path, tokenizer: Any) -> Path:
    kind, settings = FAMILIES["llama"]
    build(kind, settings, tokenizer, folder)
    weights = load_file(folder / "model.safetensors")
    rows = len(tokenizer) - 40
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:rows].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": rows}))
    return folder


def not_a_number(subject_of: Make, folder: Path, tokenizer: Any) -> Path:
    folder, weights = copied(subject_of("qwen2"), folder)
    name = next(name for name in weights if "mlp" in name)
    write(folder, weights | {name: torch.full_like(weights[name], math.nan)})
    return folder


def holes(subject_of: Make, folder: Path, tokenizer: Any) -> Path:
    """Ids that no token has, in the middle of the vocabulary: its size is not its highest id and one."""
    kind, settings = FAMILIES["llama"]
    build(kind, settings | {"vocab_size": len(tokenizer) + 10}, tokenizer, folder)
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text())
    vocabulary = tree["model"]["vocab"]
    last = max(vocabulary.values()) - 20
    tree["model"]["vocab"] = {word: i + 10 * (i > last) for word, i in vocabulary.items()}
    path.write_text(json.dumps(tree))
    return folder


def two_ways(subject_of: Make, folder: Path, tokenizer: Any) -> Path:
    kind, settings, _ = REFUSED["roberta"]
    return build(kind, settings, tokenizer, folder)


def lost_layer(subject_of: Make, folder: Path, tokenizer: Any) -> Path:
    folder, weights = copied(subject_of("qwen2"), folder)
    write(folder, without(weights, "layers.1."))
    return folder


def test_a_vocabulary_with_holes_is_read_as_it_is(subject_of: Make, tmp_path: Path, qwen_chat: ChatTokenizer) -> None:
    subject = Subject("holes", holes(subject_of, tmp_path / "holes", qwen_chat.tokenizer))
    test_label_scores(subject)
    same(generate(subject.model, subject.chat, subject.prompts, NEW_TOKENS, 4), subject.written)


Spoil = Callable[[Make, Path, Any], Path]
IMPOSSIBLE: dict[str, tuple[Spoil, str]] = {
    "few-positions": (few_positions, r"128.*320|320.*128"),
    "few-positions-opt": (few_positions_opt, r"128.*320|320.*128"),
    "end-beyond": (end_beyond, r"embedding|vocabulary|ids?\b"),
    "embedding-too-short": (embedding_too_short, r"embedding|vocabulary|ids?\b"),
    "not-a-number": (not_a_number, r"finite|NaN"),
    "two-ways": (two_ways, NOT_CAUSAL),
    "lost-layer": (lost_layer, r"layers\.1\."),
}


@pytest.fixture
def impossible(
    request: pytest.FixtureRequest, tmp_path: Path, subject_of: Make, qwen_chat: ChatTokenizer
) -> tuple[Path, str]:
    """Settings with a model (its role is that of the fixture's parameter) that cannot do the work, and why."""
    fault, role = request.param
    spoil, reason = IMPOSSIBLE[fault]
    broken = spoil(subject_of, tmp_path / f"broken-{fault}", qwen_chat.tokenizer)
    whole = subject_of("llama").folder
    roles = {"teacher": whole, "student": whole} | {role: broken}
    return settings_file(tmp_path, **roles), reason


FAULTS = [(fault, role) for fault in IMPOSSIBLE for role in ("teacher", "student")]
with_faults = pytest.mark.parametrize("impossible", FAULTS, indirect=True, ids=[f"{f}-{r}" for f, r in FAULTS])


@with_faults
def test_doctor_says_what_a_model_cannot_do(impossible: tuple[Path, str], tmp_path: Path, capsys, monkeypatch) -> None:
    path, reason = impossible
    monkeypatch.chdir(tmp_path)
    code = cli.main(["doctor", "--config", str(path)])
    out = capsys.readouterr().out
    problems = [line for line in out.splitlines() if line.startswith("problem") and "broken-" in line]
    assert code != 0 and not out.endswith("ready\n")
    assert problems, out
    assert [line for line in problems if any_of(reason, line)], problems


def test_a_teacher_whose_hidden_states_cannot_be_read_is_refused_for_features_only(
    subject_of: Make, tmp_path: Path, capsys, monkeypatch
) -> None:
    """Gemma 3n carries several residual streams side by side."""
    monkeypatch.chdir(tmp_path)
    for method, code in (("KD3", 1), ("KD1", 0)):
        path = settings_file(tmp_path, subject_of("gemma3n_text").folder, subject_of("llama").folder, methods=[method])
        assert cli.main(["doctor", "--config", str(path)]) == code, method
        problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem")]
        assert [line for line in problems if "hidden states" in line] == problems
        assert len(problems) == code


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "mamba", "bloom", "gpt2"])
def test_what_doctor_calls_ready_can_be_trained_with_adapters_and_dropout(
    subject_of: Make, tmp_path: Path, capsys, monkeypatch, name: str
) -> None:
    """Or both say, in one line and before any work, that it cannot."""
    monkeypatch.chdir(tmp_path)
    lora = {"enabled": True, "r": 4, "alpha": 8, "dropout": 0.05}
    models = {"teacher": {"name": str(subject_of("llama").folder)}, "lora": lora}
    models["students"] = {"S1": {"name": str(subject_of(name).folder)}}
    path, results = settings_file(tmp_path, Path(), Path(), models=models), tmp_path / "results"
    ready = cli.main(["doctor", "--config", str(path)]) == 0
    said = capsys.readouterr().out
    code = cli.main(["train", "--config", str(path), "--results", str(results)])
    errors = capsys.readouterr().err
    if ready:
        assert code == 0, errors
        return
    assert [line for line in said.splitlines() if line.startswith("problem") and name in line], said
    assert code == 2 and not work_in(results)
    assert len([line for line in errors.splitlines() if line.startswith("error")]) == 1, errors


@with_faults
def test_run_refuses_before_any_work(impossible: tuple[Path, str], tmp_path: Path, capsys, monkeypatch) -> None:
    path, reason = impossible
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "results"
    code = cli.main(["run", "--config", str(path), "--results", str(results)])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(said) == 1 and any_of(reason, said[0]), said
    assert code == 2
    assert not work_in(results)


def work_in(results: Path) -> list[Path]:
    """Records of runs and cached outputs."""
    return [*results.glob("raw_runs/*/*"), *results.glob("**/*.npz")]


def any_of(pattern: str, line: str) -> bool:
    return re.search(pattern, line.replace("broken-", ""), re.IGNORECASE) is not None

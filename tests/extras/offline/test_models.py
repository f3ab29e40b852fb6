"""The offline models: real folders, two different tokenizers, and a pretraining that teaches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Qwen2ForCausalLM

from kdsuite.config import OfflineModelsSettings
from kdsuite.extras.offline import models as offline
from kdsuite.extras.offline.corpora import pretraining_text
from kdsuite.extras.offline.models import (
    IGNORED,
    build_offline_models,
    byte_level_tokenizer,
    encode_documents,
    pretrain,
    sentencepiece_tokenizer,
    tiny_llama,
    token_batches,
)
from kdsuite.runtime.progress import Progress
from kdsuite.store.artefact import MANIFEST

MESSAGES = [{"role": "user", "content": "Where is it?"}]
TEXTS = pretraining_text(300, seed=7)
BYTE_LEVEL = byte_level_tokenizer(TEXTS, 500)
SENTENCEPIECE = sentencepiece_tokenizer(TEXTS, 500)
BOTH = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte level", "sentencepiece"])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):
    """Both models after four steps on few documents, with what they were built from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "DOCUMENTS", 120)
        patch.setattr(offline, "CONVERSATIONS", 40)
        asked = OfflineModelsSettings(pretraining_steps=4)
        build = lambda folder: build_offline_models(folder, asked, Progress.silent())  # noqa: E731
        yield build, build(tmp_path_factory.mktemp("models"))


def test_both_load_with_the_auto_classes(small):
    _, folders = small
    for folder, architecture in zip(folders, (Qwen2ForCausalLM, LlamaForCausalLM), strict=True):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert isinstance(model, architecture)
        assert model.config.vocab_size == len(tokenizer)
        ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**ids, max_new_tokens=3, do_sample=False)
        assert out.shape[1] > ids["input_ids"].shape[1]


def test_the_teacher_is_larger_and_speaks_another_vocabulary(small):
    teacher, student = (AutoTokenizer.from_pretrained(folder) for folder in small[1])
    sizes = [AutoModelForCausalLM.from_pretrained(folder).num_parameters() for folder in small[1]]
    assert sizes[0] > 2 * sizes[1]
    assert set(teacher.get_vocab()) != set(student.get_vocab())
    assert teacher.tokenize(" the plot") != student.tokenize("the plot")


def test_only_safetensors_are_written(small):
    for folder in small[1]:
        assert (folder / "model.safetensors").exists()
        assert not [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pkl")]


def test_built_once_and_again_only_when_the_settings_change(small):
    build, (teacher, student) = small
    before = {f: (f / "model.safetensors").stat().st_mtime_ns for f in (teacher, student)}
    build(teacher.parent)
    assert before == {f: (f / "model.safetensors").stat().st_mtime_ns for f in (teacher, student)}
    (teacher / MANIFEST).write_text(json.dumps("other settings"))
    build(teacher.parent)
    assert (teacher / "model.safetensors").stat().st_mtime_ns != before[teacher]
    assert (student / "model.safetensors").stat().st_mtime_ns == before[student]


def test_the_seed_decides_every_byte(small, tmp_path: Path):
    build, folders = small
    again = build(tmp_path)
    for one, other in zip(folders, again, strict=True):
        for name in ("model.safetensors", "tokenizer.json"):
            assert (one / name).read_bytes() == (other / name).read_bytes()


@BOTH
@settings(max_examples=150, deadline=None)
@given(text=st.text())
def test_any_text_survives_the_tokenizer(tokenizer, text: str):
    text = text.encode("utf-8", "ignore").decode()
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert tokenizer.unk_token_id not in ids or tokenizer.unk_token_id is None


def test_the_tokenizers_cut_texts_as_they_do_once_they_are_loaded(small):
    """`AutoTokenizer` puts the architecture's own rules for cutting words in the place of those that were saved."""
    texts = ["Oslo 1984, at 7:30.\n\nIt isn't dull…\n", *TEXTS[:40]]
    documents = pretraining_text(120, OfflineModelsSettings().seed)
    for recipe, folder in zip((offline.TEACHER, offline.STUDENT), small[1], strict=True):
        made = recipe.tokenizer(documents, offline.VOCABULARY)
        made.save_pretrained(folder.parent / f"{recipe.role}-tokenizer")
        (folder.parent / f"{recipe.role}-tokenizer" / "config.json").write_text((folder / "config.json").read_text())
        loaded = AutoTokenizer.from_pretrained(folder.parent / f"{recipe.role}-tokenizer")
        assert loaded(texts)["input_ids"] == made(texts)["input_ids"]


def test_a_word_begins_as_the_same_word_behind_a_blank_but_for_one_direction():
    for make, tokenizer in ((offline.tiny_qwen2, BYTE_LEVEL), (tiny_llama, SENTENCEPIECE)):
        model = make(tokenizer, width=32, layers=1, heads=2)
        offline.begin_alike(model, tokenizer)
        vectors, vocabulary = model.get_input_embeddings().weight.detach(), tokenizer.get_vocab()
        pairs = [(i, vocabulary[t[1:]]) for t, i in vocabulary.items() if t[0] in "▁Ġ" and t[1:] in vocabulary]
        moved = torch.stack([vectors[behind] - vectors[alone] for behind, alone in pairs])
        assert len(pairs) > 20
        assert torch.allclose(moved, moved[0].expand_as(moved), atol=1e-6)
        assert moved[0].norm() > 0.1


@BOTH
def test_turns_end_with_the_end_of_turn(tokenizer):
    turns = [*MESSAGES, {"role": "assistant", "content": "Oslo"}]
    prompt = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert whole == f"{prompt}Oslo{tokenizer.eos_token}\n"


def test_chat_templates_are_chatml_and_zephyr():
    render = [
        t.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True) for t in (BYTE_LEVEL, SENTENCEPIECE)
    ]
    assert render == [
        "<|im_start|>user\nWhere is it?<|im_end|>\n<|im_start|>assistant\n",
        "<|user|>\nWhere is it?</s>\n<|assistant|>\n",
    ]


def test_padding_of_the_teacher_is_not_its_end_of_turn():
    assert BYTE_LEVEL.pad_token_id != BYTE_LEVEL.eos_token_id


def test_the_student_tokenizer_is_built_as_tinyllamas():
    assert SENTENCEPIECE.tokenize("the plot")[0].startswith("▁")
    assert SENTENCEPIECE.tokenize("\n") == ["▁", "<0x0A>"]
    assert SENTENCEPIECE("the plot")["input_ids"][0] == SENTENCEPIECE.bos_token_id
    assert [SENTENCEPIECE.convert_tokens_to_ids(t) for t in ("<unk>", "<s>", "</s>", "<0x00>")] == [0, 1, 2, 3]


@BOTH
def test_labels_are_what_can_be_foreseen(tokenizer):
    document = "Anna Cole was born in Oslo.\nThe birthplace of Anna Cole:\nOslo"
    [(ids, labels)] = encode_documents(tokenizer, [document])
    assert len(ids) == len(labels)
    assert tokenizer.decode([label for label in labels if label != IGNORED]) == "Oslo"


def test_batches_visit_every_document_once_an_epoch():
    examples = [([i] * (5 + i % 7), [i] * (5 + i % 7)) for i in range(40)]
    batches = list(token_batches(examples, steps=2, seed=0))
    assert sorted(int(row[0]) for ids, _ in batches for row in ids) == list(range(40))
    assert all(torch.equal(labels == IGNORED, ids != labels) for ids, labels in batches)


def test_pretraining_lowers_the_loss_and_repeats_by_seed():
    def trained(steps: int) -> LlamaForCausalLM:
        torch.manual_seed(0)
        model = tiny_llama(SENTENCEPIECE, width=32, layers=1, heads=2)
        pretrain(model, token_batches(examples, steps, seed=0), steps)
        return model

    examples = encode_documents(SENTENCEPIECE, TEXTS)
    ids, labels = next(token_batches(encode_documents(SENTENCEPIECE, pretraining_text(64, 8)), 1, 0))

    def loss(model: LlamaForCausalLM) -> float:
        with torch.no_grad():
            return F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).item()

    fresh, one, other = trained(0), trained(25), trained(25)
    assert loss(one) < loss(fresh) - 1.0
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))

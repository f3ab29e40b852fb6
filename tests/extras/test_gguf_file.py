"""Held against llama.cpp's own server, which reads the files and computes with them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from kdsuite.errors import ModelError
from kdsuite.extras import gguf_file
from kdsuite.extras.gguf_vocabulary import QWEN2, vocabulary
from kdsuite.extras.offline.tokenizers import byte_level_tokenizer
from kdsuite.tasks.encoding import ChatTokenizer

TEXTS = [
    "Hello, world!",
    " a blank before",
    "behind ",
    "two  three   and    four",
    " " * 40 + "many",
    "a\n\nb\n\n\nc\n",
    "\n",
    "\n" * 40,
    " \n \n  \n\t\n x",
    "\t\ttabs\t and\r\nother line ends\r",
    "1234567890 3.14159 1,000,000 ½ ٣٤٥ Ⅷ",
    "don't DON'T I'll we've 're 'S",
    "naïve café ÆØÅ ß ﬁ I’m “quoted” – so — …",
    "日本語のテキスト、中文文本。한국어 텍스트",
    "Привет! Ελληνικά עברית العربية हिन्दी ภาษาไทย",
    "😀😃👩‍👩‍👧‍👦🏳️‍🌈🇩🇪 👍🏽",
    "zero\u200bwidth no\u00a0break em\u2003space wide\u3000one\ufeff",
    "\x01\x7f \ue000 \U0010ffff",
    "<|im_start|>user\nhi<|im_end|>\n<s>x</s> <unk> y</s></s>  z",
    "<|user|>\nIs it?</s>\n<|assistant|>\n",
    "def f(x):\n    return x**2  # what\n\n\tif x: pass",
    "http://example.com/?a=1&b=%20#there",
    "!!!???...---===+++***",
    "aaa aaaa aaaaa eee   eeee " + "x" * 50,
    "CamelCaseAnd_snake_CASE Ġ Ċ",
    "<0x0A> <0xFF> <pad>",
]
ROPE = {"rope_theta": 10000.0}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SMALL | {"num_key_value_heads": 2}
WINDOWS = GROUPED | {"sliding_window": 16, "head_dim": 12, "query_pre_attn_scalar": 12}
SHAPES = {
    "Llama": LlamaConfig(**GROUPED, tie_word_embeddings=False),
    "Llama, tied, biases": LlamaConfig(**SMALL, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "Llama, heads of their own size": LlamaConfig(**SMALL, head_dim=12),
    "Llama, linear": LlamaConfig(**SMALL, rope_parameters=ROPE | {"rope_type": "linear", "factor": 4.0}),
    "Llama, yarn": LlamaConfig(**SMALL, rope_parameters=YARN),
    "Llama 3.1": LlamaConfig(**SMALL, rope_parameters=ROPE | {"rope_type": "llama3", "factor": 8.0} | LLAMA3),
    "Qwen 2": Qwen2Config(**GROUPED, tie_word_embeddings=False),
    "Qwen 2, tied, yarn": Qwen2Config(**GROUPED, tie_word_embeddings=True, rope_parameters=YARN),
    "Gemma 3": Gemma3TextConfig(**WINDOWS | {"num_hidden_layers": 4}, _sliding_window_pattern=2),
    "Gemma 3, untied, linear": Gemma3TextConfig(
        **WINDOWS | {"num_hidden_layers": 7},
        tie_word_embeddings=False,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
}


def model_of(config: Any, vocabulary: int) -> Any:
    """A tiny model of this configuration, in which each weight counts."""
    config = copy.deepcopy(config)
    config.vocab_size, config.pad_token_id = vocabulary, 0
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


class TabledGelu(torch.nn.Module):
    """As llama.cpp computes it on a CPU: by a table for float16."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()


def save(model: Any, chat: ChatTokenizer, path: Path, half: bool = False) -> Path:
    gguf_file.write(gguf_file.metadata(model.config, chat, "tiny"), model, path, half)
    return path


def changed(chat: ChatTokenizer, change: Callable[[dict[str, Any]], None], **words: str) -> ChatTokenizer:
    """A chat tokenizer with another tokenizer.json."""
    whole = json.loads(chat.tokenizer.backend_tokenizer.to_str())
    change(whole)
    given = {name: getattr(chat.tokenizer, name) for name in ("bos_token", "eos_token", "unk_token", "chat_template")}
    return ChatTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(whole)), **given | words)
    )


@pytest.fixture(scope="module")
def chats(texts: list[str], qwen_chat: ChatTokenizer, llama_chat: ChatTokenizer) -> dict[str, ChatTokenizer]:
    """Tokenizers built like those of the families."""

    def with_pre(pre: Any) -> ChatTokenizer:
        made = byte_level_tokenizer(texts, 400)
        made.backend_tokenizer.pre_tokenizer = pre
        return ChatTokenizer(made)

    def split(pattern: str) -> Any:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])

    def as_gemma(whole: dict[str, Any]) -> None:
        whole["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        whole["pre_tokenizer"] = {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
        }  # fmt: skip

    gemma = changed(llama_chat, as_gemma)
    gemma.tokenizer.add_tokens([AddedToken("\n" * n, normalized=False, special=False) for n in (1, 2, 3, 4, 5)])
    gemma.tokenizer.add_tokens([AddedToken("<h1>", normalized=False, special=False)])
    llama3 = with_pre(split(QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")))

    def with_dead_token(whole: dict[str, Any]) -> None:
        """Qwen's has such a one: no text is tokenized so, but llama.cpp would."""
        whole["model"]["vocab"]["</s>"] = 400

    def ignore_merges(whole: dict[str, Any]) -> None:
        whole["model"]["ignore_merges"] = True

    return {
        "offline teacher": qwen_chat,
        "offline student": llama_chat,
        "Qwen 2": changed(with_pre(split(QWEN2)), with_dead_token),
        "Llama 3": changed(llama3, ignore_merges),
        "GPT-2": with_pre(pre_tokenizers.ByteLevel(add_prefix_space=False)),
        "Gemma": ChatTokenizer(gemma.tokenizer),
    }


@pytest.mark.parametrize("kind", ["offline teacher", "offline student", "Qwen 2", "Llama 3", "GPT-2", "Gemma"])
def test_llama_cpp_tokenizes_as_transformers_does(
    chats: dict[str, ChatTokenizer], served: Callable[..., Any], tmp_path: Path, texts: list[str], kind: str
):
    chat = chats[kind]
    model = model_of(SHAPES["Llama"], len(chat.tokenizer) + 7)  # embeddings are often padded
    server = served(save(model, chat, tmp_path / "model.gguf"))
    for text in [*TEXTS, *texts[:20]]:
        ids = server.ask("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]
        assert ids == chat.tokenizer(text)["input_ids"], text
        assert (
            text.startswith("\x00")
            or server.ask("/detokenize", tokens=ids)["content"].strip()
            == chat.tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()
        )
    server.kill()


@pytest.mark.parametrize("half", [False, True], ids=["f32", "f16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_llama_cpp_computes_what_torch_does(
    qwen_chat: ChatTokenizer, served: Callable[..., Any], tmp_path: Path, shape: str, half: bool
):
    size = len(qwen_chat.tokenizer)
    model = model_of(SHAPES[shape], size)
    server = served(save(model, qwen_chat, tmp_path / "model.gguf", half))
    ids = torch.randint(3, size, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    for layer in model.model.layers if model.config.model_type == "gemma3_text" else ():
        layer.mlp.act_fn = TabledGelu()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert expected.std() > 0.5  # they differ
    for length in (1, 2, 20, 40, 59):  # windows are of 16
        found = server.log_probs(ids[:length], size)
        assert [found[id] for id in range(size)] == pytest.approx(
            expected[length - 1].tolist(), abs=1e-2 if half else 1e-3
        )
    server.kill()


def test_the_file_says_what_the_model_is(llama_chat: ChatTokenizer, tmp_path: Path):
    size = len(llama_chat.tokenizer) + 3
    model = model_of(SHAPES["Llama"], size)
    reader = GGUFReader(save(model, llama_chat, tmp_path / "model.gguf", half=True))
    said = {name: field.contents() for name, field in reader.fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.block_count": 2,
        "llama.attention.head_count_kv": 2,
        "llama.context_length": model.config.max_position_embeddings,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": llama_chat.tokenizer.chat_template,
    }
    assert said | expected == said
    tokens = said["tokenizer.ggml.tokens"]
    assert tokens[:-3] == llama_chat.tokenizer.convert_ids_to_tokens(range(size - 3))
    assert tokens[-3:] == [f"[PAD{id}]" for id in range(size - 3, size)]
    shapes = {tensor.name: (list(tensor.shape), tensor.tensor_type.name) for tensor in reader.tensors}
    assert shapes["token_embd.weight"] == ([64, size], "F16")
    assert shapes["output.weight"] == ([64, size], "F16")
    assert shapes["blk.1.attn_norm.weight"] == ([64], "F32")


def test_a_head_that_is_the_embedding_is_not_written(llama_chat: ChatTokenizer, tmp_path: Path):
    model = model_of(SHAPES["Llama, tied, biases"], len(llama_chat.tokenizer))
    reader = GGUFReader(save(model, llama_chat, tmp_path / "model.gguf"))
    assert "output.weight" not in {tensor.name for tensor in reader.tensors}


def changed_config(shape: str, **settings: Any) -> Any:
    config = copy.deepcopy(SHAPES[shape])
    for key, value in settings.items():
        setattr(config, key, value)
    return config


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (MistralConfig(), "is a mistral; GGUF is written for llama, qwen2, gemma3_text"),
        (changed_config("Llama", hidden_act="gelu"), "hidden_act 'gelu'"),
        (changed_config("Qwen 2", use_sliding_window=True), "use_sliding_window True"),
        (changed_config("Gemma 3", final_logit_softcapping=30.0), "final_logit_softcapping 30.0"),
        (changed_config("Gemma 3", query_pre_attn_scalar=99), "query_pre_attn_scalar 99"),
        (changed_config("Gemma 3", layer_types=["full_attention", *["sliding_attention"] * 3]), "layer_types"),
        (changed_config("Llama", rope_parameters=ROPE | {"rope_type": "dynamic", "factor": 2.0}), "rope_parameters"),
        (changed_config("Llama, yarn", rope_parameters=YARN | {"attention_factor": 2.0}), "rope_parameters"),
        (changed_config("Qwen 2", rope_parameters=ROPE | {"rope_type": "llama3", "factor": 8.0}), "rope_parameters"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(qwen_chat: ChatTokenizer, config: Any, said: str):
    with pytest.raises(ModelError, match=re.escape(said)) as refused:
        gguf_file.metadata(config, qwen_chat, "mine")
    assert "'mine'" in str(refused.value) and "\n" not in str(refused.value)


def set_to(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(whole: dict[str, Any]) -> None:
        for key in keys[:-1]:
            whole = whole[key]
        whole[keys[-1]] = value

    return change


def without_byte(whole: dict[str, Any]) -> None:
    del whole["model"]["vocab"]["<0xFF>"]


def without_merge(whole: dict[str, Any]) -> None:
    """Of the last one: its token is in the vocabulary, but is not made any more."""
    whole["model"]["merges"].pop()


def around(whole: dict[str, Any]) -> None:
    whole["added_tokens"][-1]["lstrip"] = True


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        (
            "qwen_chat",
            set_to("pre_tokenizer", "pretokenizers", 0, "individual_digits", value=False),
            "pre-tokenizer is",
        ),
        ("qwen_chat", set_to("model", "ignore_merges", value=True), "pre-tokenizer is none of those known"),
        ("qwen_chat", set_to("normalizer", value={"type": "Lowercase"}), "its normalizer is"),
        ("qwen_chat", around, "'<|im_end|>' takes in what is around it"),
        ("llama_chat", set_to("pre_tokenizer", value=METASPACE), "another than SentencePiece's"),
        ("llama_chat", set_to("normalizer", value=None), "another than SentencePiece's"),
        ("llama_chat", without_byte, "no tokens for some bytes"),
        ("llama_chat", without_merge, "its merges do not make"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(
    request: pytest.FixtureRequest, kind: str, change: Callable[[dict[str, Any]], None], said: str
):
    chat: ChatTokenizer = request.getfixturevalue(kind)
    whole = json.loads(chat.tokenizer.backend_tokenizer.to_str())
    change(whole)
    other = copy.copy(chat)
    other.tokenizer = copy.copy(chat.tokenizer)
    other.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(whole))
    with pytest.raises(ModelError, match=re.escape(said)) as refused:
        vocabulary(other, 600)
    assert "\n" not in str(refused.value)


def test_weights_beyond_float16_are_refused(llama_chat: ChatTokenizer, tmp_path: Path):
    model = model_of(SHAPES["Llama"], len(llama_chat.tokenizer))
    with torch.no_grad():
        model.lm_head.weight[3, 4] = 1e5
    with pytest.raises(ModelError, match=r"lm_head|output\.weight has values beyond float16; .*gguf-f32"):
        save(model, llama_chat, tmp_path / "model.gguf", half=True)


@pytest.mark.parametrize("kind", ["qwen_chat", "llama_chat"])
def test_the_modelfile_asks_as_the_chat_template_does(request: pytest.FixtureRequest, kind: str):
    chat: ChatTokenizer = request.getfixturevalue(kind)
    lines = gguf_file.modelfile(chat, "model.gguf")
    assert lines.startswith("FROM ./model.gguf\n")
    assert f'PARAMETER stop "{chat.tokenizer.eos_token}"' in lines and "PARAMETER temperature 0" in lines
    template = lines.split('"""')[1]
    written = template.replace("{{ .Prompt }}", "Is it?").replace("{{ .Response }}", "yes")
    assert written == chat.template.conversation([{"role": "user", "content": "Is it?"}], "yes")


def test_of_a_template_that_begins_with_what_ollama_adds_it_is_left_out(llama_chat: ChatTokenizer):
    begun = changed(
        llama_chat, lambda whole: None, chat_template="{{ bos_token }}" + llama_chat.tokenizer.chat_template
    )
    assert gguf_file.modelfile(begun, "model.gguf") == gguf_file.modelfile(llama_chat, "model.gguf")

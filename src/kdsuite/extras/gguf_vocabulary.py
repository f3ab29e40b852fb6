"""A tokenizer as GGUF has it, so that llama.cpp reads texts as `transformers` does; else it is refused.

GGUF knows no normalizers and pre-tokenizers but by name, and two kinds of byte-pair encoding (BPE):

- `gpt2`: byte-level BPE. Merges are applied in their order, as `tokenizers` does; before that the text is split by the
  pattern that `tokenizer.ggml.pre` names. Only patterns known to be those of tokenizer.json are written.
- `llama`: SentencePiece's. There are no merges: two neighbours are joined whenever that gives a token, the highest
  score first. With the score −r of a token that the r-th merge makes, that is the same, unless a token's own text is
  encoded as two others: what happens inside of a token's text does not depend on what is around it, so two tokens that
  form a third one are neighbours only if they are so when that one's text is encoded alone.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from gguf import TokenType
from tokenizers import pre_tokenizers

from kdsuite.errors import ModelError
from kdsuite.tasks.encoding import ChatTokenizer

BLANK = "▁"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL | {"use_regex": False}]}


GPT2 = BYTE_LEVEL | {"use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
PRE_TOKENIZERS = {  # the name: the pre-tokenizer, and whether a word that is a token is taken without merges
    "qwen2": (_split(QWEN2), False),
    "llama-bpe": (_split(QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), True),
    "smollm": ({"type": "Sequence", "pretokenizers": [DIGITS, GPT2]}, False),
    "gpt-2": (GPT2, False),
}
KEYS = """tokenizer_model tokenizer_pre token_list token_types token_scores token_merges add_space_prefix add_bos_token
    add_eos_token""".split()  # in the file's order
LIKE_SPECIAL = re.compile(r"_?[<\[].+[>\]]")
NFC = {"type": "NFC"}  # llama.cpp leaves it out: texts are to be in NFC, as nearly all are
MARK_BLANKS = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
NORMALIZERS = (  # of SentencePiece-like tokenizers, and whether a blank is put before a text
    (MARK_BLANKS, False),
    ({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": BLANK}, MARK_BLANKS]}, True),
)
NO_SPLIT = (  # behind MARK_BLANKS there is no blank to split at
    None,
    {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
)


def vocabulary(chat: ChatTokenizer, size: int) -> dict[str, Any]:
    """The tokenizer of a model with `size` rows of embeddings, ids beyond its tokens being unused ones: what the keys
    `tokenizer.ggml.*` say, by what `GGUFWriter` adds them with. Lists of tokens have an entry for each row.

    ModelError where llama.cpp would read some text otherwise. Texts are taken to be in NFC, and free of "▁" where that
    stands for a blank.
    """
    if not hasattr(chat.tokenizer, "backend_tokenizer"):
        raise _refused(chat, "it has no tokenizer.json")
    whole = json.loads(chat.tokenizer.backend_tokenizer.to_str())
    model, added = whole["model"], whole["added_tokens"]
    for settings in (whole["pre_tokenizer"], *((whole["pre_tokenizer"] or {}).get("pretokenizers", ()))):
        (settings or {}).pop("trim_offsets", None)  # concerns no ids
    if model["type"] != "BPE" or any(
        model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    ):
        raise _refused(chat, f"its model is {model['type']} with settings that GGUF does not know")
    merges = [tuple(merge if isinstance(merge, list) else merge.split(" ")) for merge in model["merges"]]
    kind: dict[str, Any] = (_sentencepiece if model["byte_fallback"] else _byte_level)(chat, whole, merges)
    tokens = {id: token for token, id in model["vocab"].items()}
    types = dict.fromkeys(tokens, TokenType.NORMAL)
    if model["byte_fallback"]:
        types |= {model["vocab"][byte]: TokenType.BYTE for byte in BYTES}
    for token in added:
        text, id = token["content"], token["id"]
        if token["single_word"] or token["lstrip"] or token["rstrip"] or (token["normalized"] and whole["normalizer"]):
            raise _refused(chat, f"its added token {text!r} takes in what is around it, or is normalized")
        tokens[id] = text
        if token["special"] or id in chat.end_ids:
            types[id] = TokenType.UNKNOWN if text == model["unk_token"] else TokenType.CONTROL
        elif not (model["byte_fallback"] and BLANK in text):  # runs of blanks are written as blanks again
            types[id] = TokenType.USER_DEFINED
    alone = partial(chat.tokenizer.encode, add_special_tokens=False)
    for id, text in tokens.items() if not model["byte_fallback"] else ():
        # llama.cpp takes some texts for special tokens, whatever they are; where no text gives the token, it is hidden
        if types[id] == TokenType.NORMAL and LIKE_SPECIAL.fullmatch(text) and alone(text) != [id]:
            tokens[id], types[id] = f"[UNUSED{id}]", TokenType.UNUSED
    written = [tokens.get(id, f"[PAD{id}]") for id in range(size)]
    if len(set(written)) < size:
        raise _refused(chat, "two of its tokens have the same text")
    if "token_scores" in kind:
        kind["token_scores"] = [kind["token_scores"].get(token, 0.0) for token in written]
    kind |= dict(zip(("add_bos_token", "add_eos_token"), added_around(chat), strict=True))
    kind |= {"token_list": written, "token_types": [int(types.get(id, TokenType.UNUSED)) for id in range(size)]}
    return {key: kind[key] for key in KEYS if key in kind}


def _byte_level(chat: ChatTokenizer, whole: dict[str, Any], merges: list[tuple[str, str]]) -> dict[str, Any]:
    if whole["normalizer"] not in (None, NFC):
        raise _refused(chat, f"its normalizer is {json.dumps(whole['normalizer'])}")
    how = (whole["pre_tokenizer"], whole["model"].get("ignore_merges", False))
    pre = next((name for name, known in PRE_TOKENIZERS.items() if known == how), None)
    if pre is None:
        raise _refused(chat, f"its pre-tokenizer is none of those known ({', '.join(PRE_TOKENIZERS)})")
    if not whole["model"]["vocab"].keys() >= set(pre_tokenizers.ByteLevel.alphabet()):
        raise _refused(chat, "it has no tokens for some bytes")
    merged = [" ".join(pair) for pair in merges]
    return {"tokenizer_model": "gpt2", "tokenizer_pre": pre, "token_merges": merged, "add_space_prefix": False}


def _sentencepiece(chat: ChatTokenizer, whole: dict[str, Any], merges: list[tuple[str, str]]) -> dict[str, Any]:
    prefix = next((prefix for known, prefix in NORMALIZERS if known == whole["normalizer"]), None)
    if prefix is None or whole["pre_tokenizer"] not in NO_SPLIT:
        raise _refused(chat, "its normalizer or pre-tokenizer is another than SentencePiece's")
    vocabulary = whole["model"]["vocab"]
    if not vocabulary.keys() >= set(BYTES):
        raise _refused(chat, "it has no tokens for some bytes")
    added = {token["content"] for token in whole["added_tokens"]}
    scores = _scores(chat, {pair: rank for rank, pair in enumerate(merges)}, vocabulary.keys() - added)
    about = {"tokenizer_model": "llama", "tokenizer_pre": "default"}
    return about | {"token_scores": scores, "add_space_prefix": prefix}


def _scores(chat: ChatTokenizer, ranks: Mapping[tuple[str, str], int], tokens: Iterable[str]) -> dict[str, float]:
    """By token: minus the place of the merge that makes it."""
    scores = {}
    for token in tokens:
        parts, last = list(token), 0.0
        while len(parts) > 1:
            rank, at = min((ranks.get((parts[i], parts[i + 1]), math.inf), i) for i in range(len(parts) - 1))
            if rank == math.inf:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            last = rank
        if len(parts) == 2:
            raise _refused(chat, f"its merges do not make {token!r} of {parts[0]!r} and {parts[1]!r}")
        if len(parts) == 1:
            scores[token] = -float(last)
    return scores


def added_around(chat: ChatTokenizer) -> tuple[bool, bool]:
    """Whether the tokenizer puts its beginning and its end of sequence around a text."""
    tokenizer = chat.tokenizer
    text = tokenizer("A", add_special_tokens=False)["input_ids"]
    for bos in (False, True):
        for eos in (False, True):
            ids = [*[tokenizer.bos_token_id] * bos, *text, *[tokenizer.eos_token_id] * eos]
            if tokenizer("A")["input_ids"] == ids:
                return bos, eos
    raise _refused(chat, "it puts other tokens around a text than those of beginning and end")


def _refused(chat: ChatTokenizer, why: str) -> ModelError:
    return ModelError(
        f"tokenizer {chat.tokenizer.name_or_path!r} cannot be written as GGUF: {why}; export without --format"
    )

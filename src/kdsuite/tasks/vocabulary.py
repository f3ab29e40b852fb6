"""Tokens as bytes: what makes tokens of different tokenizers comparable.

`▁the` of a SentencePiece vocabulary and `Ġthe` of a byte-level BPE vocabulary are both the bytes ` the`, and
`<0xE2>` is the byte 0xE2. Matching by raw token strings finds 30 % of TinyLlama's tokens in Qwen2.5's
vocabulary; matching by bytes finds 82.6 %.
"""

from __future__ import annotations

import json
import re
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from kdsuite.errors import SettingsError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BYTES = {sign: byte for byte, sign in bytes_to_unicode().items()}  # GPT-2's printable stand-ins (Radford et al. 2019)


def vocabulary_bytes(tokenizer: Any) -> list[bytes | None]:
    """The bytes of every id up to the largest; None for special tokens and ids that are no token.

    Raises SettingsError for tokenizers whose tokens do not spell out bytes (e.g. WordPiece).
    """
    decoder = tokenizer.backend_tokenizer.decoder
    state = json.loads(decoder.__getstate__()) if decoder is not None else {}
    parts = {part["type"] for part in state.get("decoders", [state]) if part}
    if "ByteLevel" in parts:
        to_bytes = _from_byte_level
    elif parts & {"ByteFallback", "Metaspace"}:
        to_bytes = _from_sentencepiece
    else:
        raise SettingsError(
            f"tokenizer {tokenizer.name_or_path!r} is neither byte-level BPE nor SentencePiece (decoder: "
            f"{', '.join(sorted(parts)) or 'none'}); choose a model with one of these"
        )
    added, vocabulary = tokenizer.added_tokens_decoder, tokenizer.get_vocab()
    table: list[bytes | None] = [None] * (1 + max(vocabulary.values()))
    for token, id in vocabulary.items():
        if id in added:
            table[id] = None if added[id].special else added[id].content.encode()
        else:
            table[id] = to_bytes(token)
    for id in tokenizer.all_special_ids:
        table[id] = None
    return table


def _from_byte_level(token: str) -> bytes:
    return bytes(_BYTES[c] for c in token) if all(c in _BYTES for c in token) else token.encode()


def _from_sentencepiece(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def is_byte_token(token: str) -> bool:
    """Whether a token is a byte-fallback token such as `<0x0A>`."""
    return _BYTE_TOKEN.fullmatch(token) is not None

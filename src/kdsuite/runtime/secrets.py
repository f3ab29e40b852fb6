"""The hub token never appears in what is said or written."""

from __future__ import annotations

import os

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def without_token(text: str) -> str:
    """`text` with the hub token, should it hold it, replaced by its variable's name."""
    for name in VARIABLES:
        if token := os.environ.get(name):
            text = text.replace(token, f"<{name}>")
    return text

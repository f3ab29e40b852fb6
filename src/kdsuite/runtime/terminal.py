"""Terminals that cannot show every character get the nearest they can, instead of ending a command."""

from __future__ import annotations

import codecs
from io import TextIOWrapper
from typing import TextIO

PLAIN = {
    "–": "-", "—": "-", "−": "-", "×": "x", "·": "*", "…": "...", "≥": ">=", "≤": "<=", "→": "->", "±": "+/-",
    "’": "'", "“": '"', "”": '"', "α": "alpha", "β": "beta", "λ": "lambda", "²": "^2", "█": "#", "▏": "|",
}  # fmt: skip
PLAINLY = "kdsuite.plainly"  # the name of the error handler


def never_fail(*streams: TextIO | None) -> None:
    """Have text streams write what their encoding lacks in plain letters, or as an escape that tells it."""
    codecs.register_error(PLAINLY, _plainly)
    for stream in streams:
        if isinstance(stream, TextIOWrapper):  # others, such as a notebook's, are no terminals
            stream.reconfigure(errors=PLAINLY)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lost), error.end

"""From what the teacher wrote to an answer one can learn from, without looking at the gold answer.

The first answer is kept and everything that runs on behind it is dropped; what remains is snapped to the
passage, in the passage's own casing, when its words are there.
"""

from __future__ import annotations

import re

STOPS = ("Human:", "Context:", "Question:", "Assistant:", "User:", "Answer:", "<|")

_LEAD = re.compile(r"^(?:the answer is|answer)\s*[:\-]?\s*", re.IGNORECASE)
_EDGE = " \t\r\n\"'“”‘’`*.,;:!?-–—"


def clean_answer(raw: str, context: str) -> str:
    """The teacher's answer as a span of the context where possible, else its first line; "" for none."""
    answer = _first_answer(raw)
    return _snap(answer, context) or answer.strip(_EDGE)


def _first_answer(raw: str) -> str:
    """Up to the first line break or the first sign of a new turn, without a leading "The answer is"."""
    text = _LEAD.sub("", raw.strip())
    line = next((line for line in text.splitlines() if line.strip()), "")
    ends = [line.find(stop) for stop in STOPS if stop in line]
    return line[: min(ends, default=len(line))].strip()


def _snap(answer: str, context: str) -> str | None:
    """The answer as it stands in the context, ignoring case, blanks and punctuation at its edges."""
    words = answer.strip(_EDGE).split()
    if not words:
        return None
    pattern = r"(?<!\w)" + r"\s+".join(re.escape(word) for word in words) + r"(?!\w)"
    found = re.search(pattern, context, re.IGNORECASE)
    return found[0] if found else None

"""The end of an error line: what was perhaps meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, valid: Iterable[object], within: str = "") -> str:
    """`; did you mean 'x'?` or the list of what is valid; `within` is the section that `name` stands in."""
    names = [str(v) for v in valid]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {f'{within}.{near[0]}' if within else near[0]!r}?"
    return f"; valid are {', '.join(names)}"

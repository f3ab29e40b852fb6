"""The libraries that are compared with: imported where they are installed, as `make bench` does; else left out."""

from __future__ import annotations

import logging
import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from kdsuite.runtime.process import silence

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
logging.getLogger("trl").setLevel(logging.ERROR)


def installed(library: str) -> bool:
    return find_spec(library) is not None


def peer(module: str, name: str) -> Any:
    """Something of a peer; its library's chatter is off."""
    found = getattr(import_module(module), name)
    silence()  # importing it may have turned warnings on again
    return found


def left_out(library: str) -> str:
    return f"{library} is not installed: nothing of it is compared here (requirements-bench.txt)"

"""The errors that kdsuite expects: each is one clear line (what, where, what to do) and an exit code."""

from __future__ import annotations

import os

VARIABLES = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]  # and whatever else a configuration names a key by


def without_token(text: str) -> str:
    """`text` with the hub token or another key, should it hold one, replaced by its variable's name."""
    for name in VARIABLES:
        if token := os.environ.get(name, "").strip():  # as it is sent: without the end of a line
            text = text.replace(token, f"<{name}>")
    return text


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, else its kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class KdsuiteError(Exception):
    """Something that the reader can act on; shown without a traceback, and without tokens and keys."""

    exit_code = 1

    def __init__(self, message: str):
        super().__init__(without_token(message))


class SettingsError(KdsuiteError):
    """The configuration or the command line asks for something that does not exist."""

    exit_code = 2


class ModelError(SettingsError):
    """A model that cannot be had or not be used: missing, gated, damaged, too large, or not a causal decoder."""


class DataError(KdsuiteError):
    """The data are not what the task needs: a missing file, column, label or encoding."""

    exit_code = 2


class StorageError(KdsuiteError):
    """The disk cannot take what is to be written: full, or a quota is reached."""

    exit_code = 2


class LockLost(KdsuiteError):
    """This process was suspended, and another one does its work now: it must not write any more."""


class RunError(KdsuiteError):
    """One run failed (a loss that is not finite, nothing supervised); it is recorded, the others go on."""


class OutOfMemory(RunError):
    """A model is too large for the device, or even a single example through it."""

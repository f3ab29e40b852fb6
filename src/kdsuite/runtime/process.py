"""This process: signals, library chatter, what the terminal can show, random seeds, the garbage collector."""

import codecs
import gc
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from io import TextIOWrapper
from multiprocessing import connection, parent_process
from types import FrameType
from typing import Any, TextIO

from kdsuite.errors import KdsuiteError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STDERR = 2
NOISY = (
    "transformers", "datasets", "huggingface_hub", "accelerate", "peft", "bitsandbytes", "torchao", "torch",
    "torch.utils._pytree",  # torch resets its root logger when it is imported
    "matplotlib", "fontTools", "httpx", "urllib3", "filelock", "fsspec",
)  # fmt: skip
ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",  # else a warning at every fork
    "BITSANDBYTES_NOWELCOME": "1",
}
PLAIN = {
    "–": "-", "—": "-", "−": "-", "×": "x", "·": "*", "…": "...", "≥": ">=", "≤": "<=", "→": "->", "±": "+/-",
    "’": "'", "“": '"', "”": '"', "α": "alpha", "β": "beta", "λ": "lambda", "²": "^2", "█": "#", "▏": "|",
}  # fmt: skip
PLAINLY = "kdsuite.plainly"  # the name of the error handler


def check_supported() -> None:
    """KdsuiteError on an operating system that nothing was tried on."""
    if sys.platform == "win32":
        raise KdsuiteError("kdsuite runs on Linux and macOS; on Windows, install and run it inside of WSL")


# --- processes that others start


def begin(place: str, *about: Any) -> None:
    """How one begins: libraries are silenced before `module:function`, which is called, imports them."""
    silence()
    module, name = place.split(":")
    getattr(import_module(module), name)(*about)


def end_with_parent(end: Callable[[], Any]) -> None:
    """Have `end` called, in a thread, when the process that started this one is gone."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        end()

    threading.Thread(target=watch, daemon=True).start()


# --- Ctrl-C and SIGTERM: the first asks work to come to a good end, the second ends it at once


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """While the block lasts, a first signal only makes the yielded function true; a second is KeyboardInterrupt.

    Outside of the main thread signals cannot be caught, and nothing changes.
    """
    requests: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)
        with suppress(OSError):  # not print: the signal may have come in the middle of one
            os.write(STDERR, b"\nstopping after this step; once more stops at once\n")

    with _handled_by(note):
        yield lambda: bool(requests)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """While the block lasts, SIGTERM is KeyboardInterrupt, as SIGINT is."""
    with _handled_by(signal.default_int_handler):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


# --- what is shown


def silence() -> None:
    """Turn off the warnings and progress bars of the libraries; errors stay. Call it before they are imported.

    Libraries read their variables at import time, so that a later call still silences loggers and
    warnings, and those progress bars that can be switched by a function.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.captureWarnings(False)
    warnings.simplefilter("ignore")
    # only what is imported already: importing it here would cost seconds
    if transformers := sys.modules.get("transformers"):
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    if datasets := sys.modules.get("datasets"):
        datasets.logging.set_verbosity_error()
        datasets.disable_progress_bars()
    if hub := sys.modules.get("huggingface_hub"):
        hub.utils.disable_progress_bars()


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


# --- chance and garbage


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and every torch device; the same seed and thread count repeat a CPU run exactly."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # seeds CUDA and MPS, too


@contextmanager
def own_random(device: Any, seed: int) -> Iterator[None]:
    """Random numbers of torch from a seed of their own, on the CPU and on a device; those outside go on as before."""
    import torch

    others = [] if device.type == "cpu" else [device.index or 0]
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(devices=others, device_type=kind):
        torch.manual_seed(seed)
        yield


def freeze_imports() -> None:
    """Take all that is there by now out of the search for reference cycles: what torch and transformers brought
    stays, and going through it takes a tenth of a second at every search."""
    gc.collect()
    gc.freeze()


@contextmanager
def garbage_kept() -> Iterator[None]:
    """No search for reference cycles while millions of small objects are made that are all kept.

    The search goes through all of them again and again, finds nothing, and takes up to a third of the time.
    """
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()

"""Library chatter off: what the terminal shows is what kdsuite says. Errors stay."""

from __future__ import annotations

import logging
import os
import warnings

NOISY = (
    "transformers",
    "datasets",
    "huggingface_hub",
    "accelerate",
    "peft",
    "bitsandbytes",
    "torchao",
    "torch",
    "torch.utils._pytree",  # torch resets its root logger when it is imported
    "matplotlib",
    "fontTools",
    "httpx",
    "urllib3",
    "filelock",
    "fsspec",
)

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


def silence() -> None:
    """Turn off the warnings and progress bars of the libraries; call it before they are imported.

    Libraries read their variables at import time, so that a later call still silences loggers and
    warnings, and those progress bars that can be switched by a function.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.captureWarnings(False)
    warnings.simplefilter("ignore")
    _silence_imported()


def _silence_imported() -> None:
    """Progress bars and verbosity of what is imported already; importing them here would cost seconds."""
    import sys

    if transformers := sys.modules.get("transformers"):
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    if datasets := sys.modules.get("datasets"):
        datasets.logging.set_verbosity_error()
        datasets.disable_progress_bars()
    if hub := sys.modules.get("huggingface_hub"):
        hub.utils.disable_progress_bars()

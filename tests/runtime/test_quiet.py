"""Libraries keep to themselves what is not an error."""

from __future__ import annotations

import subprocess
import sys

CHATTER = """
import logging, sys, warnings
if "early" in sys.argv:
    from kdsuite.runtime.process import silence; silence()
import datasets, huggingface_hub, transformers
if "late" in sys.argv:
    from kdsuite.runtime.process import silence; silence()
warnings.warn("a python warning")
for name in ("transformers", "datasets", "huggingface_hub", "torchao", "bitsandbytes.cextension"):
    logging.getLogger(name).warning("a warning of %s", name)
    logging.getLogger(name).error("an error of %s", name)
transformers.utils.logging.get_logger("transformers.trainer").warning_once("a warning, once")
datasets.Dataset.from_dict({"a": [1, 2]}).map(lambda row: row)
"""


def chatter(when: str) -> str:
    done = subprocess.run([sys.executable, "-c", CHATTER, when], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_warnings_and_bars_are_off_and_errors_stay():
    said = chatter("early")
    assert "warning" not in said
    assert "Map" not in said
    for name in ("transformers", "datasets", "huggingface_hub", "torchao", "bitsandbytes.cextension"):
        assert f"an error of {name}" in said


def test_libraries_that_were_imported_before_are_silenced_too():
    said = chatter("late")
    assert "warning" not in said
    assert "Map" not in said

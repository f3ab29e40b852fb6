"""A record says what a result depended on, and never what it must not say."""

from __future__ import annotations

import json

import pytest

from kdsuite import __version__
from kdsuite.runtime import environment
from kdsuite.runtime.device import choose
from kdsuite.store.files import fingerprint


def test_the_record_names_versions_device_and_machine():
    facts = environment.capture(choose("cpu"))
    assert facts["libraries"]["torch"].startswith("2.")
    assert facts["libraries"]["transformers"]
    assert (facts["device"], facts["dtype"]) == ("cpu", "float32")
    assert facts["threads"] >= 1
    assert facts["memory_mb"] > 100
    assert facts["cpu"]
    assert facts["code_version"].startswith(__version__)
    assert fingerprint(facts)  # can be written as JSON


def test_no_environment_variable_gets_into_the_record(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted_token")
    monkeypatch.setenv("SOME_SETTING", "planted-value")
    text = json.dumps(environment.capture(choose("cpu")))
    assert "hf_planted_token" not in text
    assert "planted-value" not in text

"""The report's settings are strict, described, and every one of them is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

import kdsuite.report
from kdsuite.config.report import ReportSettings

SOURCES = [path for path in Path(kdsuite.report.__file__).parent.rglob("*") if path.suffix in {".py", ".j2", ".js"}]


@pytest.mark.parametrize("name", ReportSettings.model_fields)
def test_every_setting_is_described_with_its_default_and_read(name: str) -> None:
    assert "default" in (ReportSettings.model_fields[name].description or "")
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    assert re.search(rf"settings\.{name}\b", text)


@pytest.mark.parametrize(
    "wrong", [{"confidence": 95}, {"confidence": 1.0}, {"margin": -1}, {"permutations": 3}, {"bootstraps": 5}]
)
def test_senseless_values_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ReportSettings.model_validate(wrong)


def test_settings_cannot_change_underway() -> None:
    with pytest.raises(ValidationError):
        ReportSettings().confidence = 0.9  # pyright: ignore[reportAttributeAccessIssue]

"""The configuration reference is the settings tree's, and what it says of defaults is so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kdsuite.config import task_section, whole_tree
from kdsuite.config.reference import configuration_reference

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def sections(section: type[BaseModel]) -> Iterator[tuple[str, str, FieldInfo]]:
    """Every field of the tree: section, key, field."""
    for key, field in section.model_fields.items():
        yield section.__name__, key, field
        for one in inside(field.annotation):
            yield from sections(one)


def inside(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from inside(argument)


FIELDS = {(section, key): field for section, key, field in sections(whole_tree())}


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == configuration_reference(), "run `make docs`"


def test_every_key_is_on_it_with_a_meaning() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    keys = {row.split("`")[1] for row in rows}
    assert {key for _, key in FIELDS} - keys <= {
        "tasks", "models", "training", "teacher_training", "teacher",
        "lora", "offline", "kd1", "kd2", "kd3", "gkd", "dss", "evaluation", "benchmark", "report",
    }  # fmt: skip
    assert not [row for row in rows if row.rstrip(" |").count(" | ") < 3]


@pytest.mark.parametrize(
    ("place", "field"), [(p, f) for p, f in FIELDS.items() if f.description and "; default " in f.description],
    ids=lambda x: ".".join(x) if isinstance(x, tuple) else "",
)  # fmt: skip
def test_a_described_default_that_is_a_value_is_the_default(place: tuple[str, str], field: FieldInfo) -> None:
    said = (field.description or "").rpartition("; default ")[2]
    value = yaml.safe_load(said.replace(": ", " ").replace("e-", ".0e-"))
    default = field.get_default(call_default_factory=True)
    if isinstance(value, int | float | list):
        assert value == (list(default) if isinstance(default, tuple) else default)
    elif isinstance(default, str):
        assert said.split(":")[0] == default


def test_a_section_that_stands_twice_is_described_once() -> None:
    page = configuration_reference()
    assert page.count("## `tasks.NAME.training`\n") == page.count("`epochs`") - 1 == 1
    assert (task_section("sst2").quality_floor, task_section("squad").quality_floor) == (60, 30)

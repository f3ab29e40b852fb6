"""No key is a dead letter: changed, it changes the plan, a fingerprint, the forecast or the machine that is chosen."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import kdsuite
from kdsuite.config import CONFIGS, Settings, load, whole_tree
from kdsuite.config.plugins import METHODS, plugins
from kdsuite.forecast.build import forecast
from kdsuite.forecast.rows import as_json
from kdsuite.forecast.scene import Machine
from kdsuite.forecast.speeds import Load
from kdsuite.models.costs import Shape
from kdsuite.models.source import hub_models
from kdsuite.plan import expand, run_fingerprint
from kdsuite.runtime.device import choose
from kdsuite.tasks.splits import source_fingerprint
from machines import Rates


class Batched(Rates):
    """Faster in larger batches, and slower where weights are updated more often."""

    def training(self, shape: Shape, load: Load) -> float:
        return 1e12 + load.sequences - load.steps

    def reading(self, shape: Shape, load: Load) -> float:
        return 1e12 + load.sequences


MACHINE = Machine("cpu", "float32", 10**12, Batched(1e12, 1e12, 1e-12))
OTHER: dict[str, Any] = {  # values of another kind than the rule below would make
    "device": "auto", "dtype": "float16", "methods": ["B0"], "layers": "last", "loss": "mse", "filter": "confident",
    "divergence": "jsd", "cross_tokenizer": "hybrid", "S2.name": "some/model", "source": "some/data",
    "name": "some/model", "fallback": "some/model", "layers_of": "last", "quantize": ["int4"],
}  # fmt: skip


def leaves(tree: dict[str, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*place, key))
        else:
            yield (*place, key), value


def another(place: tuple[str, ...], value: Any) -> Any:
    """A valid value that is not the one in the file."""
    for name in (".".join(place[-2:]), place[-1]):
        if name in OTHER and OTHER[name] != value:
            return OTHER[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, value[0] / 2 if isinstance(value[0], float) else value[0] + 1000]
    if isinstance(value, int):
        return value * 2 if value < 50 else value // 2
    return value / 2 if isinstance(value, float) else "cpu" if value == "auto" else f"{value}-else"


def effects(settings: Settings) -> Iterator[Any]:
    """All that is decided before anything is computed, the cheapest first."""
    specs, choice = expand(settings), choose("cpu", settings.dtype, settings.threads)
    yield settings.device, str(choice), hub_models(settings), [spec.run_id for spec in specs]
    for spec in specs:
        sources = {role: str(settings.models.students[role].name) for role in settings.students}
        sources |= {"data": source_fingerprint(settings.tasks[spec.task]), "teacher": "t"}
        yield run_fingerprint(settings, spec, sources, choice.numerics)
    yield as_json(forecast(settings, specs, MACHINE), MACHINE)


def cases() -> Iterator[tuple[Path, str | None, tuple[str, ...]]]:
    for path in sorted(CONFIGS.glob("*.yaml")):
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        modes = tree.pop("modes", {})
        yield from ((path, next(iter(modes), None), place) for place, _ in leaves(tree))
        yield from ((path, mode, ("modes", mode, *place)) for mode in modes for place, _ in leaves(modes[mode]))


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_every_key_of_every_file_has_an_effect(in_a_folder: Path) -> None:
    before = {}
    dead = []
    for path, mode, place in cases():
        if (path, mode) not in before:
            before[path, mode] = list(effects(load(path, mode, env_file=None)))
        tree = copy.deepcopy(yaml.safe_load(path.read_text(encoding="utf-8")))
        section = tree
        for key in place[:-1]:
            section = section[key]
        section[place[-1]] = another(place, section[place[-1]])
        changed = in_a_folder / "changed.yaml"
        changed.write_text(yaml.safe_dump(tree))
        if all(a == b for a, b in zip(before[path, mode], effects(load(changed, mode, env_file=None)), strict=False)):
            dead.append(f"{path.name}: {'.'.join(place)}")
    assert dead == []


def test_every_key_of_the_tree_is_read_somewhere() -> None:
    source = Path(kdsuite.__file__).parent
    declared, read = set(), set()
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    read |= {key for method in plugins(METHODS).values() for key in method.sections}  # by `settings.section`
    stack: list[dict[str, Any]] = [whole_tree().model_json_schema()]
    stack += stack[0]["$defs"].values()
    for section in stack:
        declared |= set(section.get("properties", {}))
    assert declared - read == set()

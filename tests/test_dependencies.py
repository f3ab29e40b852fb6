"""What is imported is declared, what is declared is imported, and both are pinned."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import get_args

from kdsuite.config import Settings
from kdsuite.runtime.tracking import PACKAGES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: Iterable[str]) -> set[str]:
    return {canonical(re.split(r"[\[<>=!~; ]", line)[0]) for line in requirements}


def imported(folder: str, own: Iterable[str] = ()) -> set[str]:
    """The distributions whose modules a folder's Python files import, also inside of functions."""
    modules: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    foreign = modules - sys.stdlib_module_names - {"kdsuite", *own}
    distributions = metadata.packages_distributions()
    return {canonical(name) for module in foreign for name in distributions.get(module, [module])}


def test_what_the_package_imports_is_declared_and_what_is_declared_is_imported():
    extras = PROJECT["optional-dependencies"]
    needed = declared([*PROJECT["dependencies"], *extras["ray"], *extras["slurm"]])
    assert imported("src") == needed


def test_each_tracker_is_an_extra_by_its_name():
    assert {name: PROJECT["optional-dependencies"][name] for name in PACKAGES} == {n: [p] for n, p in PACKAGES.items()}
    assert set(get_args(get_args(Settings.model_fields["tracking"].annotation)[0])) == PACKAGES.keys()


def test_what_the_tests_import_is_declared():
    extras = PROJECT["optional-dependencies"]
    own = {path.stem for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")}
    everything = declared([*PROJECT["dependencies"], *extras["dev"], *extras["bench"], *extras["ray"]])
    assert imported("tests", {"benchmarks", *own}) <= everything


def test_what_is_declared_is_pinned():
    pinned = declared((ROOT / "requirements.txt").read_text().splitlines())
    extras = PROJECT["optional-dependencies"]
    assert declared([*PROJECT["dependencies"], *extras["dev"], *extras["ray"], *extras["slurm"]]) <= pinned

"""What runs the tests elsewhere (CI, a public host, a commit's hook) calls what is there, and each test once."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CI, PAGE = ROOT / ".ci" / "run", ROOT / "CONTRIBUTING.md"
WORKFLOW, HOOKS = ROOT / ".github" / "workflows" / "ci.yml", ROOT / ".pre-commit-config.yaml"
TARGETS = set(re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())  # pyright: ignore


def recipe(target: str) -> list[str]:
    """The commands of a target, without those of its setup."""
    command = ["make", "--dry-run", "--no-print-directory", "--assume-old=.venv/.kdsuite-setup", target]
    plain = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=plain)
    return done.stdout.splitlines()


def on_the_host() -> list[str]:
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def in_hooks() -> list[str]:
    return [hook["entry"] for repo in yaml.safe_load(HOOKS.read_text())["repos"] for hook in repo["hooks"]]


def called(texts: list[str]) -> set[str]:
    return {target for text in texts for target in re.findall(r"\bmake ([a-z-]+)", text)}


@pytest.mark.parametrize("where", [on_the_host(), in_hooks(), [CI.read_text(), PAGE.read_text()]])
def test_make_targets_that_are_called_exist(where: list[str]) -> None:
    assert called(where) and called(where) <= TARGETS


def test_the_host_runs_what_ci_runs_and_the_hook_what_its_lint_is() -> None:
    assert ".ci/run" in on_the_host() and os.access(CI, os.X_OK)
    assert in_hooks() == ["make lint"] and "make lint" in CI.read_text()


def test_ci_does_every_test_once() -> None:
    [targets] = re.findall(r"^for tests in (.*); do\n    make \"\$tests\"", CI.read_text(), re.MULTILINE)
    *others, everything = [recipe(target)[-1].split("-m pytest")[1] for target in (*targets.split(), "test-all")]
    assert re.search(r"^make test +#", (ROOT / "README.md").read_text(), re.MULTILINE) and "test" in targets.split()
    quick, slow = (re.findall(r'-m ("not slow"|slow)', command) for command in others)
    assert {*quick, *slow} == {'"not slow"', "slow"} and "-m" not in everything.split()


def test_what_is_skipped_is_told_with_its_reason() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert "-ra" in options["addopts"].split()


def test_every_target_is_told_at_the_head_of_the_makefile() -> None:
    head = re.match(r"(#.*\n)+", (ROOT / "Makefile").read_text())
    assert head is not None
    assert set(re.findall(r"make ([a-z-]+)", head[0])) >= TARGETS


def test_what_the_page_for_contributors_names_is_there() -> None:
    named = re.findall(r"`((?:tests|docs)/[\w/.]+|\w+(?:/|\.py))`", PAGE.read_text())
    places = (ROOT, ROOT / "src" / "kdsuite")
    assert len(named) > 20
    assert [name for name in named if not any((place / name).exists() for place in places)] == []

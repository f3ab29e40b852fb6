"""The simulation runs as documented, and what docs/statistics.md quotes of it is what it prints."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield runpy.run_path(str(ROOT / "benchmarks" / "evidence.py"))


def test_the_sizes_of_the_test_are_those_that_are_documented(program, capsys: pytest.CaptureFixture[str]) -> None:
    program["level"](0)
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 14
    assert [line for line in lines if line not in PAGE] == []


def test_no_level_is_exceeded_by_more_than_a_tenth() -> None:
    """In the documented table, over all ratios of the variances, from .05 to .05/16, at 3, 5 and 10 seeds."""
    rows = re.findall(r"^\| \d+ +\| +\.05/\d+ \|(.*)\|$", PAGE, re.MULTILINE)
    sizes = np.array([[float(cell) for cell in row.split("|")] for row in rows])
    assert sizes.shape == (12, 7)
    assert sizes.max() <= 1.1
    assert sizes[:, 0].min() == 1.0  # exact where only examples count


def test_simulated_answers_are_what_they_are_said_to_be(program) -> None:
    """85 % right, 9 of 10 alike in two methods' runs, seeds that differ by what is asked for."""
    random, scenario = np.random.default_rng(0), program["Scenario"](seeds=40, examples=5000, spread=2.0)
    study = program["Study"](random, scenario)
    a, b = (study.scores(study.luck(40)) for _ in range(2))
    assert a.mean() == pytest.approx(85, abs=1.5)
    assert (a == b).mean() == pytest.approx(0.9, abs=0.012)
    assert a.mean(axis=1).std() == pytest.approx(2.0, rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["selection", "scenarios", "power", "looks"])
def test_every_part_ends_in_a_table(program, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    program["PARTS"][part](10)
    assert re.search(r"^\| -+ \|", capsys.readouterr().out, re.MULTILINE)


def test_the_command_line_names_the_parts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["evidence.py", "--studies", "10", "--only", "level"])
    runpy.run_path(str(ROOT / "benchmarks" / "evidence.py"), run_name="__main__")
    assert "level: The exact size of a single test" in capsys.readouterr().out

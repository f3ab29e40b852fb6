"""The measuring itself: both sides take turns, memory is that of a fresh process."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path

import pytest
import torch

from kdsuite.runtime.device import PROCESS_STATUS

PATH = Path(__file__).parents[2] / "benchmarks" / "measure.py"


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(PATH.parent))  # a fresh process imports it by name
    return importlib.import_module("measure")


def test_both_sides_take_turns_behind_a_round_that_does_not_count(measure) -> None:
    calls: list[str] = []
    times = measure.side_by_side({name: partial(calls.append, name) for name in "ab"}, 3)
    assert calls == ["a", "b"] * 4
    assert {name: len(t.wall) for name, t in times.items()} == {"a": 3, "b": 3}


def test_a_clocked_method_does_what_it_did_and_tells_its_cpu_seconds(measure) -> None:
    class Owner:
        def work(self, size: int, times: int = 1) -> int:
            return sum(range(size * times))

    owner = Owner()
    seconds = measure.clocked(owner, "work")
    assert [owner.work(1), owner.work(1_000_000, times=3)] == [0, sum(range(3_000_000))]
    assert len(seconds) == 2 and 0 <= seconds[0] < seconds[1]


@pytest.mark.skipif(not PROCESS_STATUS.exists(), reason="only Linux says how much memory a step takes")
def test_memory_is_what_a_step_takes_on_top_whatever_this_process_holds(measure) -> None:
    held = torch.ones(100_000_000)
    peak = measure.peak_mb(partial, torch.ones, 50_000_000)
    assert peak == pytest.approx(200, rel=0.1) and held.numel() == 100_000_000


def test_ratios_are_medians_of_neighbours(measure) -> None:
    assert measure.ratio([2.0, 30.0, 4.0], [1.0, 10.0, 2.0]) == "2.0×"
    assert measure.times_as_much(30, 10) == "3.0×" and measure.times_as_much(30, 0.1) == "–"


def test_tables_are_aligned_markdown(measure) -> None:
    assert measure.table(("a", "b"), [("x", "1"), ("long", "22")]).splitlines() == [
        "| a    |  b |",
        "| ---- | -: |",
        "| x    |  1 |",
        "| long | 22 |",
    ]

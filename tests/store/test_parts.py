"""Long work goes on where it was stopped, however it was stopped, and ends with the same results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from kdsuite.store import parts
from kdsuite.store.files import atomic_write_json
from kdsuite.store.parts import Parts

BATCHES = [[5, 0], [3, 1], [4, 2]]
ALL = {item: f"answer {item}" for item in range(6)}


class Worker:
    """Answers items, notes which, and is interrupted at one of them."""

    def __init__(self, stops_at: int | None = None) -> None:
        self.asked: list[int] = []
        self.stops_at = stops_at

    def __call__(self, batch: Sequence[int]) -> list[str]:
        if self.stops_at in batch:
            raise KeyboardInterrupt
        self.asked += batch
        return [f"answer {item}" for item in batch]


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the results of the first two batches, in a file each."""
    monkeypatch.setattr(parts, "EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        Parts(tmp_path, "work", "key").work(BATCHES, Worker(stops_at=4))
    assert len(list(tmp_path.iterdir())) == 2
    return tmp_path


def test_only_what_is_missing_is_asked_and_counted(stopped: Path) -> None:
    worker, counted = Worker(), []
    again = Parts(stopped, "work", "key")
    assert sorted(again.done) == [0, 1, 3, 5]
    assert again.work(BATCHES, worker, counted.append) == ALL
    assert (worker.asked, counted) == ([4, 2], [2])
    again.clear()
    assert list(stopped.iterdir()) == []


def test_an_interruption_loses_nothing_however_rarely_is_written(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Parts(tmp_path, "work", "key").work(BATCHES, Worker(stops_at=2))
    assert len(list(tmp_path.iterdir())) == 1
    assert sorted(Parts(tmp_path, "work", "key").done) == [0, 1, 3, 5]


@pytest.mark.parametrize("damage", ["cut", "flipped", "no record", "list"])
def test_a_damaged_part_is_done_again_and_the_others_are_kept(stopped: Path, damage: str) -> None:
    path = min(stopped.iterdir())
    data = path.read_bytes()
    if damage == "cut":
        os.truncate(path, len(data) // 2)
    elif damage == "flipped":
        path.write_bytes(data.replace(b"answer 5", b"answer 7"))
    else:
        atomic_write_json(path, {"key": "key"} if damage == "no record" else [1])
    worker, again = Worker(), Parts(stopped, "work", "key")
    assert again.work(BATCHES, worker) == ALL
    assert worker.asked == [5, 0, 4, 2]


def test_what_depends_on_something_else_is_not_taken_and_other_work_is_left_alone(stopped: Path) -> None:
    Parts(stopped, "work-of-others", "key").work([[0]], Worker())
    other = Parts(stopped, "work", "another key")
    assert other.done == {}
    assert [path.name for path in stopped.iterdir()] == ["work-of-others-00000.json"]


def test_batches_cut_otherwise_ask_again_only_for_those_that_are_not_whole(stopped: Path) -> None:
    worker, counted = Worker(), []
    halves = [[5], [0], [3, 1, 4], [2]]
    assert Parts(stopped, "work", "key").work(halves, worker, counted.append) == ALL
    assert (worker.asked, counted) == ([3, 1, 4, 2], [1, 1])


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Parts().work(BATCHES, Worker()) == ALL
    assert list(tmp_path.iterdir()) == []


def test_parts_that_another_process_removes_meanwhile_are_gone(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again, other = Parts(stopped, "work", "key"), Parts(stopped, "work", "key")
    listed = again._files()
    other.clear()
    monkeypatch.setattr(Parts, "_files", lambda self: listed)
    again.clear()
    assert Parts(stopped, "work", "key").done == {}

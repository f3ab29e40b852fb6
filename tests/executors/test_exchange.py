"""What is said through a folder arrives once, whole, and as what it was; who is told to stop stops."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path

import pytest

from kdsuite.errors import OutOfMemory, RunError, StorageError
from kdsuite.executors.exchange import Outbox, exchange
from kdsuite.jobs.job import Done
from kdsuite.runtime.process import sigterm_as_ctrl_c


class Shown:
    """As a `Progress` is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def say(self, line: str) -> None:
        self.told.append(line)

    def mirror(self, number: int, shown: object) -> None:
        self.told.append((number, shown))


@pytest.fixture
def immortal(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are the workers."""
    monkeypatch.setattr(Outbox, "_end_when_told", lambda self: None)


def test_what_a_worker_shows_is_shown_once_under_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, immortal: None
) -> None:
    monkeypatch.chdir(tmp_path)
    with exchange(tmp_path) as box:
        first, second, shown = Outbox(box.folder, tmp_path, 3), Outbox(box.folder, tmp_path, 5), Shown()
        first.tell("line", said := "two – \nlines")
        second.tell("work", ["training", 1, 4, "1/4 steps"])
        box.show(shown)  # pyright: ignore[reportArgumentType]
        assert said in shown.told and (5, ["training", 1, 4, "1/4 steps"]) in shown.told and len(shown.told) == 2
        with (box.folder / "3.said").open("a") as stream:
            stream.write('["line", "half')
        second.tell("work", None)
        box.show(shown)  # pyright: ignore[reportArgumentType]
        assert shown.told[2:] == [(5, None)]  # a half-written line waits
        with (box.folder / "3.said").open("a") as stream:
            stream.write(' and whole"]\n')
        box.show(shown)  # pyright: ignore[reportArgumentType]
        assert shown.told[3:] == ["half and whole"]
    assert list(tmp_path.iterdir()) == []
    first.tell("line", "nobody listens any more")


def test_what_came_of_a_job_arrives_as_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, immortal: None
) -> None:
    monkeypatch.chdir(tmp_path)
    with exchange(tmp_path) as box:
        outbox = Outbox(box.folder, tmp_path, 0)
        assert box.posted("a") is None and not outbox.has("a")
        outbox.post("a", Done("a: accuracy 90.0", skipped=True))
        assert outbox.has("a") and box.posted("a") == Done("a: accuracy 90.0", skipped=True)
        for name, error in (("b", RunError("no loss")), ("c", OutOfMemory("too large"))):
            outbox.post(name, error)
            found = box.posted(name)
            assert type(found) is type(error) and str(found) == str(error)
        outbox.post("d", OSError(errno.ENOSPC, "full", "/disk/file"))
        found = box.posted("d")
        assert isinstance(found, OSError) and (found.errno, found.filename) == (errno.ENOSPC, "/disk/file")
        unexpected = KeyError("x")
        unexpected.add_note("where it was")
        outbox.post("e", unexpected)
        found = box.posted("e")
        assert type(found) is RuntimeError and str(found) == "KeyError: 'x'" and found.__notes__ == ["where it was"]
        record = box.folder / "a.posted"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"done": {"line": "other", "skipped": False}}))
        with pytest.raises(ValueError, match=r"a\.posted"):
            box.posted("a")


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"does not see .*/nowhere: the results folder .* same path"):
        Outbox(tmp_path / "nowhere", tmp_path, 0)


@pytest.mark.parametrize("how", ["told", "gone"])
def test_a_worker_ends_when_it_is_told_to_and_when_its_command_has_ended(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def wait_for_the_end() -> None:
        with sigterm_as_ctrl_c(), exchange(tmp_path) as box:
            Outbox(box.folder, tmp_path, 0)
            box.stop() if how == "told" else box.folder.rmdir()
            time.sleep(30)

    with pytest.raises(KeyboardInterrupt):
        wait_for_the_end()

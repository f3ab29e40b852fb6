"""What is said through a folder arrives once, whole, and as what it was; who is told to stop stops."""

from __future__ import annotations

import errno
import json
import pickle
import time
from pathlib import Path

import pytest

from kdsuite.errors import OutOfMemory, RunError, SettingsError, StorageError
from kdsuite.executors.exchange import Outbox, exchange
from kdsuite.executors.hand import portable
from kdsuite.jobs.job import Done
from kdsuite.models.source import TooLarge
from kdsuite.runtime.process import sigterm_as_ctrl_c
from kdsuite.teacher.client import ServerError


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
        for error in (RunError("no loss"), OutOfMemory("large"), TooLarge("larger"), ServerError("it is not reached")):
            outbox.post(str(error), portable(error))
            found = box.posted(str(error))
            assert type(found) is type(error) and str(found) == str(error)
        outbox.post("d", portable(OSError(errno.ENOSPC, "full", Path("/disk/file"))))
        found = box.posted("d")
        assert isinstance(found, OSError) and (found.errno, found.filename) == (errno.ENOSPC, "/disk/file")
        record = box.folder / "a.posted"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"done": {"line": "other", "skipped": False}}))
        with pytest.raises(ValueError, match=r"a\.posted"):
            box.posted("a")


class Odd(Exception):
    """As some libraries' are: what made it cannot make it again, and it holds what no process gives to another."""

    def __init__(self, code: int, reply: object):
        super().__init__(f"status {code}")
        self.reply = reply


class OddSettings(SettingsError):
    def __init__(self, key: str, value: object):
        super().__init__(f"{key} is {value}")


def test_an_error_of_any_kind_can_be_told_to_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, immortal: None
) -> None:
    def told(error: Exception) -> list[Exception]:
        """Through a pipe, and through a folder."""
        made = portable(error)
        with exchange(tmp_path) as box:
            Outbox(box.folder, tmp_path, 0).post("job", made)
            posted = box.posted("job")
        assert isinstance(posted, Exception)
        return [pickle.loads(pickle.dumps(made)), posted]

    monkeypatch.chdir(tmp_path)
    for found in told(OddSettings("seeds", [])):
        assert type(found) is SettingsError and str(found) == "seeds is []"
    try:
        raise Odd(503, lambda: None)
    except Odd as error:
        for found in told(error):
            assert type(found) is RuntimeError and str(found) == "Odd: status 503"
            assert "raise Odd(503" in found.__notes__[0]


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

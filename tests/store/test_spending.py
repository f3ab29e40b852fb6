"""The teacher's time is counted once, over interruptions, and not when there was nothing to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdsuite.store.spending import counted, seconds_spent


def test_work_and_interrupted_work_add_up_and_idle_visits_do_not(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert seconds_spent(folder) is None
    with pytest.raises(KeyboardInterrupt), counted(folder):
        raise KeyboardInterrupt
    interrupted = seconds_spent(folder)
    assert interrupted is not None
    with counted(folder):
        (folder / "part").write_text("x")
    finished = seconds_spent(folder)
    assert finished is not None and finished > interrupted > 0
    with counted(folder):
        pass
    assert seconds_spent(folder) == finished


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"seconds": null}'])
def test_a_damaged_count_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "seconds.json").write_text(content)
    assert seconds_spent(tmp_path) is None


@pytest.mark.parametrize("name", [".tmp-12-0a1b2c3d-part-00001.safetensors", "answers-of-1-00000.json"])
def test_what_another_worker_takes_away_meanwhile_is_no_error(tmp_path: Path, name: str) -> None:
    """A link to nothing is as a file that is listed and gone when it is looked at."""
    (tmp_path / name).symlink_to("gone")
    with counted(tmp_path):
        (tmp_path / "part").write_text("x")
    assert seconds_spent(tmp_path)


def test_what_another_worker_is_writing_is_no_work_of_ones_own(tmp_path: Path) -> None:
    with counted(tmp_path):
        (tmp_path / ".tmp-12-0a1b2c3d-part-00001.safetensors").write_text("x")
    assert seconds_spent(tmp_path) is None

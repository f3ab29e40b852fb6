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

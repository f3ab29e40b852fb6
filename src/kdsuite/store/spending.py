"""How long the teacher was at work for a task: seconds that accumulate over interrupted invocations."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from kdsuite.store.files import atomic_write_record, changes, read_json
from kdsuite.store.layout import SECONDS


@contextmanager
def counted(folder: Path, alone: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Iterator[None]:
    """Add the block's seconds to what was spent on `folder`, unless it found everything done.

    A block that is interrupted or fails has cost its time, too. The count is changed while `alone` is entered.
    """
    before, started, done = changes(folder), time.perf_counter(), False
    try:
        yield
        done = True
    finally:
        if not done or changes(folder) != before:
            seconds = time.perf_counter() - started
            with alone():
                atomic_write_record(folder / SECONDS, {"seconds": (seconds_spent(folder) or 0.0) + seconds})


def seconds_spent(folder: Path) -> float | None:
    """All seconds so far; None where nobody has counted, or the count is damaged."""
    try:
        return read_json(folder / SECONDS)["seconds"]
    except (FileNotFoundError, ValueError):
        return None

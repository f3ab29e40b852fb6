"""How long the teacher was at work for a task: seconds that accumulate over interrupted invocations."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from kdsuite.store.files import atomic_write_record, changes, read_json
from kdsuite.store.layout import SECONDS


@contextmanager
def counted(
    folder: Path, alone: Callable[[], AbstractContextManager[Any]] = nullcontext, made: Path | None = None
) -> Iterator[None]:
    """Add the block's seconds to what was spent on `folder`, unless it found everything done: there, or in the folder
    that is `made` of it.

    A block that is interrupted or fails has cost its time, too. The count is changed while `alone` is entered.
    """
    made = made or folder
    before, started, done = changes(made), time.perf_counter(), False
    try:
        yield
        done = True
    finally:
        if not done or changes(made) != before:
            seconds = time.perf_counter() - started
            with alone():
                atomic_write_record(folder / SECONDS, {"seconds": (seconds_spent(folder) or 0.0) + seconds})


def seconds_spent(*folders: Path) -> float | None:
    """All seconds so far, of folders together; None where nobody has counted, or the counts are damaged."""
    found = []
    for folder in folders:
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            found.append(float(read_json(folder / SECONDS)["seconds"]))
    return sum(found) if found else None

"""What a command and its workers on other machines say to each other: files of a folder that all of them see.

A worker appends what it would show to a file of its number, as lines of JSON, and may post what came of a job as a file
of its name. A file `stop`, or that the folder is gone, ends every worker after its step.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from kdsuite.errors import StorageError
from kdsuite.jobs.job import Done
from kdsuite.runtime.progress import Progress
from kdsuite.store.files import atomic_write_record, read_json

SAID, POSTED, STOP = ".said", ".posted", "stop"
LOOK = 0.5  # seconds between two looks into the folder
SLOW = 1.0  # seconds between two updates of what a worker shows, at least


@dataclass
class Exchange:
    """The command's side."""

    folder: Path
    _heard: Counter[str] = field(default_factory=Counter)  # of each worker, how many bytes

    def show(self, progress: Progress) -> None:
        """What workers have said since."""
        for path in self.folder.glob(f"*{SAID}"):
            with path.open("rb") as stream:
                stream.seek(self._heard[path.stem])
                whole, end, _ = stream.read().rpartition(b"\n")
            self._heard[path.stem] += len(whole + end)
            for what, value in map(json.loads, whole.splitlines()):
                if what == "line":
                    progress.say(value)
                else:
                    progress.mirror(int(path.stem), value)

    def posted(self, name: str) -> Done | Exception | None:
        """What came of a job, if that was posted."""
        try:
            found = read_json(self.folder / f"{name}{POSTED}")
        except FileNotFoundError:
            return None
        if "done" in found:
            return Done(**found["done"])
        error = resolve_name(found["kind"])(*found["args"])
        error.__notes__ = found["notes"]
        return error

    def stop(self) -> None:
        """End all workers that there are, after their step."""
        (self.folder / STOP).touch()

    def go_on(self) -> None:
        """Others may begin."""
        (self.folder / STOP).unlink(missing_ok=True)


@contextmanager
def exchange(within: Path) -> Iterator[Exchange]:
    """A folder of its own below `within`, removed when the block ends."""
    folder = within.resolve() / uuid.uuid4().hex[:12]
    folder.mkdir(parents=True)
    try:
        yield Exchange(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a worker that is just ending may add to it


# --- in the worker


class Outbox:
    """A worker's side, which begins in the working folder of the command. StorageError for what is not seen here."""

    def __init__(self, folder: Path, working: Path, number: int) -> None:
        for place in (folder, working):
            if not place.is_dir():
                raise StorageError(
                    f"{socket.gethostname()} does not see {place}: the results folder and the one that the command "
                    "is given in have to lie where every machine sees them under the same path"
                )
        os.chdir(working)
        self.folder, self._file = folder, folder / f"{number}{SAID}"
        threading.Thread(target=self._end_when_told, daemon=True).start()

    def tell(self, what: str, value: Any) -> None:
        """Have a line said, or work shown; closed each time, so that other machines see it."""
        with suppress(FileNotFoundError), self._file.open("a", encoding="utf-8") as stream:  # the command has ended
            stream.write(json.dumps([what, value]) + "\n")

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}{POSTED}").exists()

    def post(self, name: str, result: Done | Exception) -> None:
        """Say what came of a job; an error is a `portable` one."""
        if isinstance(result, Done):
            found: dict[str, Any] = {"done": asdict(result)}
        else:
            made: Any = result.__reduce__()
            kind, args = made[:2]
            place = f"{kind.__module__}:{kind.__qualname__}"
            found = {"kind": place, "args": args, "notes": getattr(result, "__notes__", [])}
        atomic_write_record(self.folder / f"{name}{POSTED}", found)

    def _end_when_told(self) -> None:
        while self.folder.is_dir() and not (self.folder / STOP).exists():
            time.sleep(LOOK)
        os.kill(os.getpid(), signal.SIGTERM)

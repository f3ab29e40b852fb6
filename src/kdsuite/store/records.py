"""What is known on disk about each run: `raw_runs/<run_id>/run.json`, atomic, resumable, fingerprinted.

A folder always holds the newest settings' run. When a run starts with another fingerprint, the old folder
is renamed to `<run_id>--<first 8 of its fingerprint>` and kept. A record that says `running` carries the
process and host that wrote it: when that process is gone, the run was interrupted and is run again.
(A process of another host cannot be asked; its run counts as interrupted after an hour without a write.)
"""

import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import psutil

from kdsuite.errors import KdsuiteError
from kdsuite.store.files import atomic_write_record, changes, read_json
from kdsuite.store.layout import CHECKPOINTS, PREDICTED, RECORD, SUPERSEDED, Layout

State = Literal["pending", "running", "completed", "failed", "interrupted"]
STATES: tuple[State, ...] = ("completed", "running", "interrupted", "failed", "pending")

SAME_PROCESS = 2.0  # seconds that two readings of one process's start may differ
STALE = 3600.0  # seconds without a write after which a run of another host counts as interrupted


def now() -> str:
    """The time as ISO 8601, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Registry:
    """The run records below one results folder. `say` is told, once each, about records set aside."""

    def __init__(self, results: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self.layout, self.say = Layout(Path(results)), say

    def read(self, run_id: str) -> dict[str, Any] | None:
        """The record of a run, or None. A corrupt record is set aside, so that the run is pending again.

        SettingsError for an id that would lie outside of `raw_runs`.
        """
        path = self.layout.run(run_id) / RECORD
        try:
            record = read_json(path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            return self._set_aside(path, str(error))
        if isinstance(record, dict) and record.get("run_id") == run_id and record.get("status") in STATES:
            return record
        return self._set_aside(path, f"{path}: not the record of {run_id}")

    def state(self, run_id: str, fingerprint: str) -> State:
        """The state of the run with these very settings; with others on disk it is pending."""
        record = self.read(run_id)
        return self._status(record) if record and record.get("fingerprint") == fingerprint else "pending"

    def start(self, run_id: str, fingerprint: str, spec: dict[str, Any], **extra: Any) -> Path:
        """Mark a run as running by this process and return its folder, ready to be written to.

        A record of other settings is put beside it first; partial files of an earlier attempt with the
        same settings are removed, except its checkpoints and predictions.
        """
        folder, old = self.layout.run(run_id), self.read(run_id)
        if old and old.get("fingerprint") != fingerprint:
            first = f"{folder}{SUPERSEDED}{str(old.get('fingerprint'))[:8]}"
            kept = map(Path, chain([first], (f"{first}-{number}" for number in count(2))))  # it may have been before
            folder.rename(next(path for path in kept if not path.exists()))
        folder.mkdir(parents=True, exist_ok=True)
        survivors = (RECORD, CHECKPOINTS, PREDICTED, f"{RECORD}.corrupt-*")
        for entry in set(folder.iterdir()) - {entry for name in survivors for entry in folder.glob(name)}:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        process = psutil.Process()
        record = {
            "run_id": run_id,
            "fingerprint": fingerprint,
            "status": "running",
            "reason": None,
            "spec": spec,
            "started": now(),
            "finished": None,
            "process": {"pid": process.pid, "host": socket.gethostname(), "since": process.create_time()},
        }
        atomic_write_record(folder / RECORD, record | extra)
        return folder

    def complete(self, run_id: str, **fields: Any) -> None:
        """Mark a started run as completed, with its metrics and whatever else `fields` hold."""
        self._finish(run_id, "completed", None, fields)

    def fail(self, run_id: str, reason: str, **fields: Any) -> None:
        """Mark a started run as failed, with the reason in one line."""
        self._finish(run_id, "failed", " ".join(reason.split()) or "unknown", fields)

    def interrupt(self, run_id: str, reason: str = "interrupted") -> None:
        """Mark a started run as interrupted: the next invocation goes on with it."""
        self._finish(run_id, "interrupted", reason, {})

    def records(self) -> list[dict[str, Any]]:
        """All current records by run id, with the status as it is now; superseded ones are left out."""
        names = sorted(p.parent.name for p in self.layout.runs.glob(f"*/{RECORD}"))
        current = [self.read(name) for name in names if SUPERSEDED not in name]
        return [record | {"status": self._status(record)} for record in current if record]

    def counts(self, expected: Iterable[tuple[str, str]]) -> dict[State, int]:
        """How many of the expected (run id, fingerprint) pairs are in which state; every state is named."""
        found = Counter(self.state(run_id, fingerprint) for run_id, fingerprint in expected)
        return {state: found[state] for state in STATES}

    def _status(self, record: dict[str, Any]) -> State:
        """The recorded status, with `running` seen as interrupted when its process is gone."""
        if record["status"] != "running":
            return record["status"]
        process, alive = record.get("process") or {}, False
        if process.get("host") == socket.gethostname():
            with suppress(psutil.Error, KeyError, TypeError, ValueError):  # it may be another one that got its number
                since = psutil.Process(process["pid"]).create_time()
                alive = abs(since - process.get("since", since)) < SAME_PROCESS
        else:  # all that can be known of a process on another host is whether anything of its run is fresh
            newest = max(changes(self.layout.run(record["run_id"])).values(), default=0) / 1e9
            alive = time.time() - newest < STALE
        return "running" if alive else "interrupted"

    def _finish(self, run_id: str, status: State, reason: str | None, fields: dict[str, Any]) -> None:
        record = self.read(run_id)
        if record is None:
            raise KdsuiteError(f"{run_id}: cannot be marked as {status}, it was never started in {self.layout.runs}")
        record.pop("process", None)
        record |= fields | {"status": status, "reason": reason, "finished": now()}
        atomic_write_record(self.layout.run(run_id) / RECORD, record)

    def _set_aside(self, path: Path, problem: str) -> None:
        taken = len(list(path.parent.glob(f"{RECORD}.corrupt-*")))
        aside = path.with_name(f"{RECORD}.corrupt-{taken + 1}")
        try:
            os.replace(path, aside)
        except FileNotFoundError:  # another process did
            return
        self.say(f"{problem}; set aside as {aside.name}, the run will be done again")

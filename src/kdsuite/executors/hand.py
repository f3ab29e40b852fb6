"""A worker process's side: jobs one after the other, whoever placed them."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from kdsuite.config import TEACHER
from kdsuite.errors import KdsuiteError, RunError
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.job import Done, Job, do
from kdsuite.jobs.models import let_go_of_models
from kdsuite.runtime import device
from kdsuite.runtime.process import freeze_imports
from kdsuite.runtime.progress import Remote


class Hand:
    """Does jobs on a device in a dtype; what it would show goes to `tell`, as a kind and a value."""

    def __init__(
        self, place: str, dtype: str, threads: int | None, interval: float, tell: Callable[[str, Any], None]
    ) -> None:
        """SettingsError where the device is not there."""
        freeze_imports()
        self.choice, self.progress = device.choose(place, dtype, threads), Remote(tell, interval)
        self._bench: Bench | None = None
        self._asks: bool | None = None  # whether the job before was the teacher's

    def bench(self, job: Job) -> Bench:
        """Where a job is done: where the one before was, if it can be."""
        if self._bench is None or job.settings != self._bench.settings:
            self._bench = Bench(job.settings, job.results, self.choice, self.progress)
        return self._bench

    def do(self, job: Job) -> Done | Exception:
        """What came of it; the caller holds its lock. An unexpected error tells its reader where it was."""
        bench, asks = self.bench(job), job.spec.method == TEACHER
        if self._asks not in (None, asks):
            let_go_of_models(bench)
        self._asks = asks
        try:
            return do(job, bench)
        except Exception as error:  # noqa: BLE001 (the command that placed it raises it)
            return portable(error)

    def attempt(self, job: Job) -> Done | Exception | None:
        """What came of it; None, after a moment, if somebody else is at it."""
        locks = self.bench(job).locks
        with locks.attempt(job.name) as ours:
            if ours:
                return self.do(job)
        locks.wait([job.name])
        return None


def portable(error: Exception) -> Exception:
    """An error as any process can be told it: of this package's own kinds, of the system's, else of one that names its
    kind. An unexpected one tells its reader where it was."""
    kinds = [kind for kind in type(error).__mro__ if kind.__module__.startswith("kdsuite.")]
    if kinds and issubclass(kinds[0], KdsuiteError):
        made = kinds[0](str(error))
    elif isinstance(error, OSError) and error.errno:
        made = OSError(error.errno, error.strerror, error.filename and str(error.filename))
    else:
        made = RuntimeError(f"{type(error).__name__}: {error}")
    if not isinstance(error, RunError):
        made.add_note("".join(traceback.format_exception(error)))
    return made


def outcome(result: Done | Exception) -> Callable[[], Done]:
    """As `settle` takes it: a function that returns what came of a job, or raises it."""

    def told() -> Done:
        if isinstance(result, Exception):
            raise result
        return result

    return told

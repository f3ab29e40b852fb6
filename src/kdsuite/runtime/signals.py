"""Ctrl-C and SIGTERM: the first asks work to come to a good end, the second ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STDERR = 2
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """While the block lasts, a first signal only makes the yielded function true; a second is KeyboardInterrupt.

    Outside of the main thread signals cannot be caught, and nothing changes.
    """
    requests: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)
        with suppress(OSError):  # not print: the signal may have come in the middle of one
            os.write(STDERR, b"\nstopping after this step; once more stops at once\n")

    with _handled_by(note):
        yield lambda: bool(requests)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """While the block lasts, SIGTERM is KeyboardInterrupt, as SIGINT is."""
    with _handled_by(signal.default_int_handler):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)

"""How far it is: a bar for everything, a bar for the current work, with rate and time left.

On a terminal the bars are live; elsewhere (a log file, a notebook server, CI) a plain line is printed at most
every ten seconds for the current work, and one for each finished unit. `Work.advance` is called for every
training step, so it only counts; the display is touched a few times a second at most.
Everything is written to stderr: stdout stays free for results.
"""

import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TextIO, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from kdsuite.runtime.duration import duration

Item = TypeVar("Item")
Shown = tuple[str, int, int, str]  # of some work its label, what is done, of how much, and how it stands

LIVE_INTERVAL = 0.2  # seconds between two updates of a live bar
PLAIN_INTERVAL = 10.0  # seconds between two plain lines


class Work:
    """Counted work. `done` starts at what an earlier invocation did, which does not enter the rate."""

    def __init__(
        self,
        label: str,
        total: int,
        unit: str,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
        changed: Callable[[Self], None] = lambda work: None,
    ) -> None:
        self.label, self.total, self.unit, self.done, self.note, self.bar = label, total, unit, done, "", TaskID(0)
        self._clock, self._changed, self._started, self._earlier = clock, changed, clock(), done

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count finished work; `note` is a word shown beside the bar (a loss, an accuracy)."""
        self.done += count
        if note is not None:
            self.note = note
        self._changed(self)

    def skip(self, count: int) -> None:
        """Count what was done before, too."""
        self.done += count
        self._earlier += count

    def pieces(self, items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
        """`size` items at a time, counted when the next are asked for."""
        for at in range(0, len(items), size):
            some = items[at : at + size]
            yield some
            self.advance(len(some))

    @property
    def rate(self) -> float | None:
        """Units per second since the start, None while nothing is known."""
        elapsed = self._clock() - self._started
        return (self.done - self._earlier) / elapsed if elapsed > 0 and self.done > self._earlier else None

    @property
    def left(self) -> str:
        """How long it still takes, at this rate."""
        return duration(max(self.total - self.done, 0) / self.rate if self.rate else None) + " left"

    @property
    def stand(self) -> str:
        """How far it is, with rate and time left; slow work is told in seconds per unit."""
        rate, pace = self.rate, []
        if rate is not None:
            pace = [f"{rate:.1f} {self.unit}/s" if rate >= 1 else f"{1 / rate:.1f} s each"]
        note = [self.note] if self.note else []
        return ", ".join([f"{self.done}/{self.total} {self.unit}", *pace, self.left, *note])

    def __str__(self) -> str:
        return f"{self.label}: {self.stand}"


class Progress:
    """The overall bar, the bars of the current work below it, and lines said in between.

    Use it as a context manager: `with Progress(total=38) as progress: …`.
    """

    def __init__(
        self,
        total: int = 0,
        stream: TextIO | None = None,
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`live`: bars instead of lines; default: whether `stream` (default stderr) is a terminal."""
        self._stream: TextIO = stream if stream is not None else sys.stderr
        self._live = self._stream.isatty() if live is None else live
        self._clock, self._shown = clock, clock()
        self.interval = LIVE_INTERVAL if self._live else PLAIN_INTERVAL
        self._mirrored: dict[int, TaskID] = {}
        self._overall = Work("all runs", total, "runs", clock=clock)
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[text]}", style="dim"),
            console=Console(file=self._stream),
            refresh_per_second=4,
            transient=True,  # the bars vanish at the end, the lines said stay
            disable=not self._live,
        )
        self._add_bar(self._overall)

    @classmethod
    def silent(cls) -> Self:
        """One that shows nothing: for tests, notebooks and calls from other programs."""
        return cls(stream=io.StringIO(), live=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def expect(self, count: int) -> None:
        """Add units to the overall total."""
        self._overall.total += count

    def finish(self, line: str, skipped: bool = False) -> None:
        """One unit of the overall work is finished; `line` says how. Skipped ones do not enter the rate."""
        overall = self._overall
        if skipped:
            overall.skip(1)
        else:
            overall.done += 1
        if self._live:
            self._show(overall)
        else:
            line = f"[{overall.done}/{overall.total}, {overall.left}] {line}"
        self.say(line)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        if self._live:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)

    @contextmanager
    def work(self, label: str, total: int, unit: str = "steps", done: int = 0) -> Iterator[Work]:
        """A bar for the current work while the block lasts; blocks may be nested."""
        work = Work(label, total, unit, done, clock=self._clock, changed=self._changed)
        self._add_bar(work)
        try:
            yield work
        finally:
            self._bars.remove_task(work.bar)

    def _changed(self, work: Work) -> None:
        if self._clock() - self._shown >= self.interval:
            self._shown = self._clock()
            self._show(work)

    def _add_bar(self, work: Work) -> None:
        work.bar = self._bars.add_task(
            escape(work.label), completed=work.done, total=work.total, text=escape(work.stand)
        )

    def _show(self, work: Work) -> None:
        if self._live:
            self._bars.update(work.bar, completed=work.done, total=work.total, text=escape(work.stand))
        else:
            self.say(str(work))

    def mirror(self, number: int, shown: Shown | None) -> None:
        """What a worker process shows instead of what it showed before; None for nothing."""
        if shown and not self._live:
            self.say(f"{shown[0]}: {shown[3]}")
        if not self._live:
            return
        if number in self._mirrored:
            self._bars.remove_task(self._mirrored.pop(number))
        if shown:
            label, done, total, stand = shown
            self._mirrored[number] = self._bars.add_task(escape(label), completed=done, total=total, text=escape(stand))


class Remote(Progress):
    """That of a worker process: what it would show goes, as a kind and a value, to its parent."""

    def __init__(self, tell: Callable[[str, Any], None], interval: float) -> None:
        super().__init__(stream=io.StringIO(), live=False)
        self._tell, self.interval = tell, interval

    def say(self, line: str) -> None:
        self._tell("line", line)

    def _show(self, work: Work) -> None:
        self._tell("work", (work.label, work.done, work.total, work.stand))

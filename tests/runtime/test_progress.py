"""Progress tells rate and time left, is cheap, and prints few lines where nobody watches."""

from __future__ import annotations

import io

import pytest

from kdsuite.runtime.duration import duration
from kdsuite.runtime.progress import PLAIN_INTERVAL, Progress, Remote, Work


class Clock:
    """A clock that goes when told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-:--"), (0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05")]
)
def test_durations_read_like_a_clock(seconds: float | None, text: str):
    assert duration(seconds) == text


def test_rate_and_time_left_leave_out_what_was_done_before():
    clock = Clock()
    work = Work("train", 400, "steps", done=200, clock=clock)
    assert (work.rate, work.left) == (None, "-:-- left")
    clock.seconds += 10
    work.advance(50)
    assert (work.rate, work.left) == (5.0, "0:30 left")
    assert str(work) == "train: 250/400 steps, 5.0 steps/s, 0:30 left"


def test_slow_work_is_told_in_seconds_per_unit():
    clock = Clock()
    work = Work("runs", 10, "runs", clock=clock)
    clock.seconds += 40
    work.advance(2, note="loss 0.5")
    assert str(work) == "runs: 2/10 runs, 20.0 s each, 2:40 left, loss 0.5"


def test_without_a_terminal_a_line_now_and_then_and_one_per_unit():
    clock, stream = Clock(), io.StringIO()
    with Progress(total=2, stream=stream, clock=clock) as progress:
        with progress.work("B0", total=1000) as work:
            for _ in range(1000):
                clock.seconds += PLAIN_INTERVAL / 320  # a binary fraction: the sum is exact
                work.advance()
        progress.finish("B0 completed")
        progress.finish("KD1 skipped", skipped=True)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("B0: 320/1000 steps, 32.0 steps/s, 0:21 left")
    assert len(lines) == 3 + 2
    assert lines[3:] == ["[1/2, 0:31 left] B0 completed", "[2/2, 0:00 left] KD1 skipped"]


def test_skipped_units_do_not_make_the_rest_look_quick():
    clock, stream = Clock(), io.StringIO()
    with Progress(total=12, stream=stream, clock=clock) as progress:
        for _ in range(10):
            progress.finish("skipped", skipped=True)
        clock.seconds += 60
        progress.finish("trained")
    assert stream.getvalue().splitlines()[-1] == "[11/12, 1:00 left] trained"


def test_live_bars_show_labels_as_they_are_and_leave_only_the_lines():
    stream = io.StringIO()
    with (
        Progress(total=2, stream=stream, live=True) as progress,
        progress.work("KD1 [a0.5]", total=10) as work,
        progress.work("evaluate", total=5, unit="examples"),
    ):
        work.advance(3, note="loss [/red] 0.3")
        progress.say("note: [bold] is text, " + "long " * 40)
        progress.finish("one")
    assert "note: [bold] is text, " + "long " * 40 + "\n" in stream.getvalue()


def test_a_step_is_counted_without_touching_the_display():
    """Cheapness, without a clock: a step inside of the interval writes and formats nothing."""
    shown: list[str] = []

    class Watched(Work):
        def __str__(self) -> str:
            shown.append("formatted")
            return super().__str__()

    stream = io.StringIO()
    progress = Progress(stream=stream, clock=Clock())
    work = Watched("train", 10_000, "steps", clock=Clock(), changed=progress._changed)
    for _ in range(10_000):
        work.advance()
    assert (work.done, shown, stream.getvalue()) == (10_000, [], "")


def test_the_silent_one_counts_like_the_others(capsys: pytest.CaptureFixture[str]):
    with Progress.silent() as progress, progress.work("x", total=3) as work:
        work.advance(3)
        progress.finish("done")
    assert work.done == 3
    assert capsys.readouterr() == ("", "")


def test_what_a_worker_shows_is_shown_by_its_parent() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress(stream=stream, clock=clock) as parent:
        told = {"line": parent.say, "work": lambda shown: parent.mirror(0, shown)}
        remote = Remote(lambda what, value: told[what](value), interval=0.0)
        remote.say("loading a model")
        with remote.work("B0", total=10) as work:
            work.advance(4)
        parent.mirror(0, None)
    first, second = stream.getvalue().splitlines()
    assert first == "loading a model" and second.startswith("B0: 4/10 steps, ")


def test_each_worker_has_one_live_bar() -> None:
    with Progress(stream=io.StringIO(), live=True) as parent:
        for number, done in ((0, 1), (1, 2), (0, 3)):
            parent.mirror(number, ("B0", done, 10, f"{done}/10"))
        assert [(task.completed, task.fields["text"]) for task in parent._bars.tasks][1:] == [(2, "2/10"), (3, "3/10")]
        parent.mirror(1, None)
        assert [task.completed for task in parent._bars.tasks][1:] == [3]

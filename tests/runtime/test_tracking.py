"""What trackers show is what a run records; they send nothing anywhere, and whatever becomes of one, a run goes on."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdsuite import cli, pipeline
from kdsuite.config import Settings
from kdsuite.runtime import tracking
from kdsuite.runtime.progress import Progress
from kdsuite.runtime.tracking import PACKAGES, Tracker
from kdsuite.store.files import read_json

Shown = list[tuple[str, int, float]]  # name, step, value, in order
ABOUT = {"project": "results", "run": "B0_sst2_S1_seed42", "config": {"method": "B0", "seed": 42, "student": None}}
TOLD: list[tuple[int, dict[str, float]]] = [
    (10, {"loss": 1 / 3, "learning_rate": 2e-5}),
    (20, {"loss": 0.1, "learning_rate": 1e-5}),
    (20, {"dev_metric": 87.12345678901234}),
    (20, {"validation/accuracy": 84.1}),
]
NO_SOCKETS = """
import os, sys

def refuse(event, arguments):
    to_a_file = event == "socket.connect" and isinstance(arguments[1], str | bytes)  # a process of this machine
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto") and not to_a_file:
        open(os.environ["SENT"], "a").write(f"{event} {arguments}\\n")
        raise OSError("the network is not to be used")

sys.addaudithook(refuse)
"""


def test_the_environments_own_word_on_where_to_send_goes_before_ours(monkeypatch, tmp_path: Path) -> None:
    given: list[dict[str, str]] = []

    def not_started(*_: Any, env: dict[str, str], **__: Any) -> None:
        given.append(env)
        raise OSError("not to be started")

    monkeypatch.setattr(tracking.subprocess, "Popen", not_started)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    Tracker("wandb", tmp_path, ABOUT, lambda line: None)
    own = {"WANDB_MODE": "online", "MLFLOW_TRACKING_URI": "http://tracking.test", "TRACKIO_SPACE_ID": "me/space"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    Tracker("wandb", tmp_path, ABOUT, lambda line: None)
    assert given[0]["WANDB_MODE"] == "offline" and own.items() <= given[1].items()


def of_tensorboard(folder: Path, run: str) -> Shown:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(folder / run), size_guidance={"tensors": 0})
    events.Reload()
    rows = [(name, event) for name in events.Tags()["tensors"] for event in events.Tensors(name)]
    return sorted((name, event.step, tensor_util.make_ndarray(event.tensor_proto).item()) for name, event in rows)


def of_trackio(folder: Path, run: str) -> Shown:
    rows = sqlite3.connect(folder / "results.db").execute("select step, metrics from metrics where run_name = ?", [run])
    return sorted((name, step, value) for step, told in rows for name, value in json.loads(told).items())


def of_mlflow(folder: Path, run: str) -> Shown:
    [metrics] = folder.glob("*/*/metrics")
    files = [path for path in metrics.rglob("*") if path.is_file()]
    rows = [(path.relative_to(metrics).as_posix(), line.split()) for path in files for line in path.open()]
    return sorted((name, int(step), float(value)) for name, (_, value, step) in rows)


def of_wandb(folder: Path, run: str) -> Shown:
    """Its format has no public reader: the numbers stand in it as JSON."""
    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    written = path.read_bytes()
    return sorted((k, step, v) for step, told in TOLD for k, v in told.items() if json.dumps(v).encode() in written)


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Processes that are started cannot use the network; what they tried stands in this file."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(NO_SOCKETS)
    monkeypatch.setenv("SENT", str(tmp_path / "sent"))
    path = os.pathsep.join(filter(None, [str(tmp_path / "guard"), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    return tmp_path / "sent"


READ: dict[str, Callable[[Path, str], Shown]] = {
    "tensorboard": of_tensorboard,
    "trackio": of_trackio,
    "mlflow": of_mlflow,
    "wandb": of_wandb,
}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_tracker_has_every_value_to_the_last_digit_and_sends_nothing(name: str, tmp_path: Path, sent: Path) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed here")
    said: list[str] = []
    tracker = Tracker(name, tmp_path / name, ABOUT, said.append)
    for step, values in TOLD:
        tracker.log(step, values)
    tracker.finish("completed")
    assert said == []
    assert READ[name](tmp_path / name, ABOUT["run"]) == sorted(
        (k, step, v) for step, row in TOLD for k, v in row.items()
    )
    assert not sent.exists()


@pytest.mark.slow
def test_what_an_earlier_attempt_showed_is_replaced(tmp_path: Path) -> None:
    for loss in (0.5, 0.25):
        tracker = Tracker("tensorboard", tmp_path, ABOUT, print)
        tracker.log(10, {"loss": loss})
        tracker.finish("interrupted")
    assert of_tensorboard(tmp_path, ABOUT["run"]) == [("loss", 10, 0.25)]


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts another trackio in the place of that one, whose `init` does this."""

    def put(body: str) -> None:
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "trackio.py").write_text(f"import os, time\ndef init(**about):\n    {body}\n")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "bad"), os.environ.get("PYTHONPATH", "")]))
        monkeypatch.syspath_prepend(tmp_path / "bad")

    return put


FAILED = "failed, what it shows is not whole:"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise RuntimeError('no room')", f"{FAILED} RuntimeError: no room"),
        ("time.sleep(600)", "was not done 1 s after the run and was stopped: what it shows is not whole"),
        pytest.param("os._exit(3)", f"{FAILED} exit code 3", marks=pytest.mark.slow),
        pytest.param("os.kill(os.getpid(), 9)", f"{FAILED} exit code -9", marks=pytest.mark.slow),
        pytest.param("pass", f"{FAILED} AttributeError: module 'trackio' has no", marks=pytest.mark.slow),
    ],
)
def test_a_tracker_that_crashes_or_hangs_is_told_and_holds_nobody_up(
    body: str, expected: str, bad: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 1.0 if "sleep" in body else 30.0)
    bad(body)
    said: list[str] = []
    tracker = Tracker("trackio", tmp_path / "t", ABOUT, said.append)
    for step in range(2000):  # more than a pipe holds
        tracker.log(step, {f"loss_{part}": 0.123456789 for part in range(5)})
    tracker.finish("completed")
    [line] = said
    assert line.startswith(f"trackio {expected}")


@pytest.mark.slow
def test_a_slow_tracker_gets_all_of_it(bad: Callable[[str], None], tmp_path: Path) -> None:
    note = "open(os.environ['TRACKIO_DIR'] + '/steps', 'a').write(f'{step} ')"
    bad(f"time.sleep(0.5)\ndef log(values, step):\n    {note}\ndef finish():\n    pass")
    tracker = Tracker("trackio", tmp_path, ABOUT, print)
    for step in range(3000):
        tracker.log(step, {"loss": 0.123456789})
    tracker.finish("completed")
    assert (tmp_path / "steps").read_text().split() == [str(step) for step in range(3000)]


def test_a_tracker_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said: list[str] = []
    tracker = Tracker("tensorboard", tmp_path / "file", ABOUT, said.append)
    tracker.log(1, {"loss": 1.0})
    tracker.finish("completed")
    assert len(said) == 1 and said[0].startswith("tensorboard cannot be started, the run goes on without it")


def test_a_tracker_that_is_not_installed_or_not_known_is_one_line_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "PathFinder", SimpleNamespace(find_spec=lambda name: None))
    for value, expected in [
        ("[wandb]", "error: tracking: wandb is not installed; `pip install wandb`, or take it out of `tracking`"),
        ("[wanbd]", "error: offline.yaml: tracking.0: Input should be 'tensorboard', 'trackio', 'mlflow' or 'wandb'"),
        ("[wandb, wandb]", "error: offline.yaml: tracking: repeats wandb"),
    ]:
        assert cli.main(["run", "--results", str(tmp_path / "r"), "--set", f"tracking={value}"]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(expected)
    assert not (tmp_path / "r").exists()


def rows(path: Path) -> Shown:
    """history.csv by column and step."""
    with path.open() as stream:
        found = [(name, row["step"], value) for row in csv.DictReader(stream) for name, value in row.items() if value]
    return sorted((name, int(step), float(value)) for name, step, value in found if name != "step")


@pytest.mark.slow
def test_runs_are_tracked_as_they_are_recorded_beside_a_tracker_that_crashes(
    one_task: Settings, bad: Callable[[str], None], sent: Path, tmp_path: Path
) -> None:
    bad("raise RuntimeError('no room')")
    tree: dict[str, Any] = one_task.model_dump() | {"tracking": ["tensorboard", "trackio"], "methods": ["B0"]}
    tree["tasks"]["mine"]["training"]["logging_steps"] = 2
    said: list[str] = []
    progress = Progress()
    progress.say = said.append
    outcome = pipeline.run(Settings.model_validate(tree), tmp_path / "r", ("train",), progress=progress)
    assert outcome.failed == [] and outcome.completed == 3
    assert sum(line == f"trackio {FAILED} RuntimeError: no room" for line in said) == 3
    for run in ("teacher_mine", "zero-shot_mine_little", "B0_mine_little_seed42"):
        shown, folder = (
            of_tensorboard(tmp_path / "r" / "tracking" / "tensorboard", run),
            tmp_path / "r" / "raw_runs" / run,
        )
        record = read_json(folder / "run.json")
        final = {(f"{split}/{name}", v) for split, values in record["metrics"].items() for name, v in values.items()}
        assert final <= {(name, value) for name, _, value in shown}
        if (folder / "history.csv").exists():
            history = [row for row in shown if "/" not in row[0]]
            assert history == rows(folder / "history.csv") and any(row[:2] == ("loss", 2) for row in history)
    assert not sent.exists()

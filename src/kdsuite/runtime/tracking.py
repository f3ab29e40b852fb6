"""Trackers beside a run: TensorBoard, Trackio, MLflow and Weights & Biases, each in a process of its own.

They are told what the run records, as it comes, as lines through a pipe that a run never waits for, so that a tracker
may be slow, hang or crash; only at the end it gets PATIENCE seconds. All write into the results folder and send nothing
anywhere, unless their own environment variables say where to.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from kdsuite.errors import SettingsError, without_token

PATIENCE = 30.0  # seconds that a tracker has at the end of a run for what it has not written yet
PACKAGES = {"tensorboard": "tensorboard", "trackio": "trackio", "mlflow": "mlflow-skinny", "wandb": "wandb"}
OFFLINE = {  # what is said to them unless the environment says otherwise
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # a database would need more than mlflow-skinny
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
Log = Callable[[int, Mapping[str, float]], Any]  # a step and its values, by name
Finish = Callable[[str], Any]  # how the run ended: completed, failed, interrupted


def refuse_missing(names: Iterable[str]) -> None:
    """SettingsError for a tracker that is not installed here."""
    for name in names:
        if PathFinder.find_spec(name) is None:
            raise SettingsError(
                f"tracking: {name} is not installed; `pip install {PACKAGES[name]}`, or take it out of `tracking`"
            )


class Tracker:
    """One tracker of one run, from the side of the run: nothing here raises, and nothing but `finish` waits.

    `about`: what the run is called (`project`, `run`) and what it is (`config`).
    """

    def __init__(self, name: str, folder: Path, about: Mapping[str, Any], say: Callable[[str], None]):
        self.name, self._say, self._waiting, self._process = name, say, b"", None
        self._errors = TemporaryFile()  # noqa: SIM115
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, name, str(folder.absolute())],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=OFFLINE | os.environ,
                start_new_session=True,  # Ctrl-C is the run's, which tells it that it ended
            )
        except OSError as error:
            self._say(f"{name} cannot be started, the run goes on without it: {error}")
            return
        self._pipe = self._process.stdin.fileno()  # pyright: ignore[reportOptionalMemberAccess]
        os.set_blocking(self._pipe, False)
        self._tell(about)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._tell({"step": step, "values": values})

    def finish(self, status: str) -> None:
        """Wait until all is written, but not for long; say what went wrong."""
        if self._process is None:
            return
        until = time.monotonic() + PATIENCE
        self._tell({"end": status})
        while self._waiting and time.monotonic() < until:
            select.select([], [self._pipe], [], 0.1)
            self._pass_on()
        self._process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
        try:
            code = self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._say(
                f"{self.name} was not done {PATIENCE:g} s after the run and was stopped: what it shows is not whole"
            )
            return
        if code:
            self._errors.seek(0)
            told = self._errors.read().decode("utf-8", "replace").split("\n")
            reason = next((line.strip() for line in reversed(told) if line.strip()), f"exit code {code}")
            self._say(f"{self.name} failed, what it shows is not whole: {without_token(reason)}")

    def _tell(self, line: Mapping[str, Any]) -> None:
        if self._process is not None:
            self._waiting += json.dumps(line).encode() + b"\n"
            self._pass_on()

    def _pass_on(self) -> None:
        """As much as the pipe takes now; the rest waits here."""
        try:
            self._waiting = self._waiting[os.write(self._pipe, self._waiting) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # it is gone; `finish` says why
            self._waiting = b""


# --- in the tracker's own process: it imports what it needs and nothing of torch


def tensorboard(folder: Path, about: Mapping[str, Any]) -> tuple[Log, Finish]:
    """Scalars in double precision, in a folder per run; what an earlier attempt left there is replaced."""
    protos = "tensorboard.compat.proto"
    event, summary, tensor = (import_module(f"{protos}.{name}_pb2") for name in ("event", "summary", "tensor"))
    shutil.rmtree(folder / about["run"], ignore_errors=True)
    writer = import_module("tensorboard.summary.writer.event_file_writer").EventFileWriter(str(folder / about["run"]))
    plugin = summary.SummaryMetadata.PluginData(plugin_name="scalars")
    scalar = summary.SummaryMetadata(plugin_data=plugin, data_class=summary.DATA_CLASS_SCALAR)

    def log(step: int, values: Mapping[str, float]) -> None:
        tensors = {name: tensor.TensorProto(dtype="DT_DOUBLE", double_val=[value]) for name, value in values.items()}
        shown = [summary.Summary.Value(tag=name, tensor=one, metadata=scalar) for name, one in tensors.items()]
        writer.add_event(event.Event(step=step, wall_time=time.time(), summary=summary.Summary(value=shown)))
        writer.flush()

    return log, lambda status: writer.close()


def trackio(folder: Path, about: Mapping[str, Any]) -> tuple[Log, Finish]:
    os.environ.setdefault("TRACKIO_DIR", str(folder))  # read when it is imported
    module = import_module("trackio")
    module.init(project=about["project"], name=about["run"], config=about["config"], embed=False)
    return lambda step, values: module.log(dict(values), step=step), lambda status: module.finish()


def mlflow(folder: Path, about: Mapping[str, Any]) -> tuple[Log, Finish]:
    module = import_module("mlflow")
    if "MLFLOW_TRACKING_URI" not in os.environ:
        module.set_tracking_uri(folder.as_uri())
    module.set_experiment(about["project"])
    module.start_run(run_name=about["run"])
    module.log_params(about["config"])
    states = {"completed": "FINISHED", "interrupted": "KILLED"}
    return (
        lambda step, values: module.log_metrics(dict(values), step=step),
        lambda status: module.end_run(states.get(status, "FAILED")),
    )


def wandb(folder: Path, about: Mapping[str, Any]) -> tuple[Log, Finish]:
    module = import_module("wandb")
    settings = module.Settings(console="off", save_code=False, disable_git=True)
    named = {"project": about["project"], "name": about["run"], "config": about["config"]}
    run = module.init(dir=str(folder), settings=settings, **named)
    return lambda step, values: run.log(dict(values), step=step), lambda status: run.finish(status != "completed")


def main(name: str, folder: str, lines: Iterator[str]) -> None:
    """Write what comes as lines; their end without a word is that of the run's process."""
    log, finish = globals()[name](Path(folder), json.loads(next(lines)))
    status = "interrupted"
    for line in map(json.loads, lines):
        if "end" in line:
            status = line["end"]
            break
        log(line["step"], line["values"])
    finish(status)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.stdin)

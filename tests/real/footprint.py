"""The peak of one stage with a real model in this process: `python footprint.py` reads settings, prints two figures.

On standard input {"stage": …, "results": …, "settings": …} with one task and one student; on standard output
{"measured": …, "forecast": …} in bytes. The measurement is that of the run record.
"""

# ruff: noqa: E402
from __future__ import annotations

from kdsuite.runtime.process import silence

silence()

import json
import sys
from pathlib import Path

from kdsuite.config import Settings
from kdsuite.forecast.calibration import Measured
from kdsuite.forecast.footprint import memory_rows
from kdsuite.forecast.scene import Machine, Scene
from kdsuite.jobs.asking import build_teacher_outputs
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.training import execute
from kdsuite.plan import RunSpec, expand
from kdsuite.runtime import device
from kdsuite.runtime.progress import Progress


def measured(stage: str, settings: Settings, results: Path) -> float:
    choice = device.choose("cpu", settings.dtype, settings.threads)
    shop = Bench(settings, results, choice, Progress.silent())
    [task] = settings.tasks
    if stage == "train":
        record = execute(shop, RunSpec(settings.methods[0], task, "S1", settings.seeds[0]))
        return record["timing"]["peak_memory_mb"] * device.MB
    if stage == "cache":
        build_teacher_outputs(shop, task)
    else:
        execute(shop, RunSpec("zero-shot", task, "S1"))
    return device.peak_memory_mb(choice.device) * device.MB


def forecast(stage: str, settings: Settings) -> float:
    choice = device.choose("cpu", settings.dtype, settings.threads)
    machine = Machine("cpu", settings.dtype, 1, Measured(choice))  # nothing is asked of its speeds
    [row] = [row for row in memory_rows(Scene.of(settings, expand(settings), machine)) if row.stage == stage]
    assert row.bytes is not None
    return row.bytes


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    wanted = Settings.model_validate(asked["settings"])
    peak = measured(asked["stage"], wanted, Path(asked["results"]))
    print(json.dumps({"measured": peak, "forecast": forecast(asked["stage"], wanted)}))

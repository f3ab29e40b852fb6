"""What a plan says of memory is what stages take with real models, within 30 %, each in a fresh process.

Skipped unless $KDSUITE_REAL_MODELS names a folder with one save_pretrained folder per model; on the data in
$KDSUITE_REAL_DATA where there are some, whose passages fill `max_length`. `pytest -s` prints the figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdsuite import cli

FOLDER, DATA = os.environ.get("KDSUITE_REAL_MODELS"), os.environ.get("KDSUITE_REAL_DATA")
MODELS = sorted(path.parent for path in Path(FOLDER).glob("*/config.json")) if FOLDER else []
PACKAGE = Path(cli.__file__).parents[1]
LARGE = 1_500_000_000  # bytes of weights from which on batches are smaller, to fit a laptop
STAGES = ("train", "cache", "evaluate")

pytestmark = pytest.mark.skipif(not MODELS, reason="no real models here; set KDSUITE_REAL_MODELS")


def source(task: str) -> dict[str, Any]:
    """The real data, if there are some; a part of SQuAD's training set will do."""
    if DATA is None:
        return {}
    folder = Path(DATA)
    names = {"sst2": "train.tsv", "squad": "train-v1.1*.json"}
    return {"source": str(folder / task), "splits": {"train": next((folder / task).glob(names[task])).name}}


def make(model: Path, task: str, stage: str) -> dict[str, Any]:
    size = (model / "model.safetensors").stat().st_size
    batch = 2 if size > LARGE else 4
    section = source(task) | {
        "train_size": 12, "dev_size": 4, "validation_size": 8, "max_length": 320, "quality_floor": 0,
        "training": {"epochs": 1, "batch_size": batch},
    }  # fmt: skip
    return {
        "threads": 1,
        "dtype": "bfloat16",
        "seeds": [1],
        "methods": ["B0", "KD1", "KD2"] if stage == "cache" else ["B0"],
        "tasks": {task: section},
        "models": {"teacher": {"name": str(model), "batch_size": batch}, "students": {"S1": {"name": str(model)}}},
        "evaluation": {"batch_size": batch},
    }


@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="the peak since the start of a run is Linux's")
@pytest.mark.parametrize("task", ["sst2", "squad"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_a_stage_takes_the_memory_that_was_said(model: Path, stage: str, task: str, tmp_path: Path) -> None:
    asked = {"stage": stage, "results": str(tmp_path), "settings": make(model, task, stage)}
    command = [sys.executable, str(Path(__file__).with_name("footprint.py"))]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    ratio = found["forecast"] / found["measured"]
    print(
        f"\n{model.name:10} {stage:8} {task:5} measured {found['measured'] / 1e9:.2f} GB, "
        f"said {found['forecast'] / 1e9:.2f} GB, {ratio:.2f}"
    )
    assert 0.7 < ratio < 1.3

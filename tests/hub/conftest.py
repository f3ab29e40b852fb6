"""Repositories for the stand-in: tiny real models under names that say how it treats them, data in parquet form."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kdsuite.extras.offline import corpora as generated
from kdsuite.models.loading import save_trained

CARD = """---
configs:
- config_name: {config}
  data_files:
  - split: train
    path: {config}/train-*
  - split: validation
    path: {config}/validation-*
---
"""


@pytest.fixture(scope="package")
def met(tmp_path_factory, qwen_model, qwen_chat, llama_model, llama_chat) -> dict[str, Any]:
    """What came of everything that `worker.py` tried, by name; under `folder`, where it did."""
    folder = tmp_path_factory.mktemp("hub")
    _models(folder / "hub" / "models", "teacher", qwen_model, qwen_chat, ("open", "gated"))
    _models(folder / "hub" / "models", "student", llama_model, llama_chat, ("open", "shaky", "dropped"))
    _data(folder / "hub" / "datasets")
    worker = Path(__file__).with_name("worker.py")
    source = Path(__file__).parents[2] / "src"
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(worker), str(folder)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"folder": folder}


def _models(root: Path, name: str, model: Any, chat: Any, owners: tuple[str, ...]) -> None:
    for owner in owners:
        (root / owner / name).mkdir(parents=True)
        save_trained(model, chat, root / owner / name)


def _data(root: Path) -> None:
    films = [
        {"sentence": row["sentence"], "label": int(row["label"] == "positive"), "idx": i}
        for i, row in enumerate(generated.film_opinions(120, 0))
    ]
    passages = [
        {"id": str(i), "title": row["context"][:30], "context": row["context"], "question": row["question"],
         "answers": {"text": [row["answer"]], "answer_start": [row["answer_start"]]}}
        for i, row in enumerate(generated.passages(120, 0))
    ]  # fmt: skip
    for name, config, rows in (("glue", "sst2", films), ("squad", "plain_text", passages)):
        folder = root / "open" / name
        (folder / config).mkdir(parents=True)
        (folder / "README.md").write_text(CARD.format(config=config))
        for split, part in (("train", rows[:80]), ("validation", rows[80:])):
            pd.DataFrame(part).to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
        shutil.copytree(folder, root / "gated" / name)

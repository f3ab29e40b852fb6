"""DSS from configuration to report, on every kind of task; the teacher's reasons are asked once and mended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdsuite import pipeline
from kdsuite.config import Settings
from kdsuite.runtime.progress import Progress

KINDS = {"classification": {"labels": ["a", "b"]}, "short_answer": {}, "generation": {}}


def make(folder: Path, teacher: Path, student: Path, kinds: dict[str, Any], **sections: Any) -> Settings:
    rows = [
        {"text": f"text {i}", "label": "ab"[i % 2], "question": f"what {i}?", "answer": f"word {i}",
         "prompt": f"say {i}", "completion": f"word {i}"}
        for i in range(40)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"source": str(folder / "rows.jsonl"), "max_new_tokens": 4, "training": {"epochs": 1, "batch_size": 8}}
    tree = {
        "threads": 1,
        "dtype": "float32",
        "seeds": [1],
        "methods": ["B0", "DSS"],
        "tasks": {kind: task | {"kind": kind} | own for kind, own in kinds.items()},
        "models": {
            "teacher": {"name": str(teacher)},
            "students": {"S1": {"name": str(student)}},
            "lora": {"enabled": False},
        },
        "dss": {"weights": [0, 1], "max_new_tokens": 12},
        "report": {"permutations": 100},
    }
    return Settings.model_validate(tree | sections)


def run(settings: Settings, results: Path, stages=("prepare", "cache", "train"), **narrow: Any) -> pipeline.Outcome:
    return pipeline.run(settings, results, stages, progress=Progress.silent(), **narrow)


@pytest.mark.parametrize("student", ["student", "teacher"])  # another tokenizer, the same one
def test_every_kind_of_task_is_explained(tmp_path: Path, models, student: str) -> None:
    settings = make(tmp_path, models["teacher"], models[student], KINDS)
    outcome = run(settings, tmp_path / "r")
    assert outcome.failed == []

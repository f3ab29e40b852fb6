"""What to change where a stage does not fit: the fewest settings that make it fit, found by trying them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from kdsuite.config import changed
from kdsuite.forecast.footprint import memory_rows
from kdsuite.forecast.rows import MemoryRow
from kdsuite.forecast.scene import TEACHER, Scene

SMALL_TEACHER, SMALL_STUDENT = "Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"
Change = dict[str, Any]


def advice(scene: Scene, memory: Sequence[MemoryRow]) -> list[str]:
    """One line per stage that does not fit."""
    lines = []
    for stage in dict.fromkeys(row.stage for row in memory if row.fits is False):
        found = _enough(scene, stage)
        if found is None:
            lines.append(
                f"{stage}: no setting makes it fit; take smaller models or a machine with more memory"
            )
        else:
            lines.append(f"{stage} fits with {_options(found)}")
    return lines


def on_fallback(scene: Scene) -> list[str]:
    """A line where the fallback will be taken for want of memory: why, and what would spare it."""
    wanted, taken = scene.settings.models.teacher.name, scene.model(TEACHER).name
    if wanted == taken:
        return []
    alone = replace(scene, settings=changed(scene.settings, {"models.teacher.fallback": None}))
    found = _enough(alone, "cache") or {"models.teacher.name": None}
    instead = "" if "models.teacher.name" in found else f"; it would fit with {_options(found)}"
    return [
        f"the weights of {wanted} alone are more than the memory, so the fallback {taken} will be taken{instead}"
    ]


def _enough(scene: Scene, stage: str) -> Change | None:
    """The smallest set of changes that makes a stage fit; of several the one that costs the least quality."""
    candidates = _candidates(scene, stage)
    for count in range(1, len(candidates) + 1):
        for chosen in combinations(candidates, count):
            change = {key: value for one in chosen for key, value in one.items()}
            tried = replace(scene, settings=changed(scene.settings, change))
            if all(row.fits for row in memory_rows(tried) if row.stage == stage):
                return change
    return None


def _candidates(scene: Scene, stage: str) -> list[Change]:
    """Changes worth trying for a stage, those first that alter the experiment the least."""
    half: Change = {"dtype": "bfloat16"}
    student: Change = {"models.students.S1.name": SMALL_STUDENT}
    teacher: Change = {"models.teacher.name": scene.settings.models.teacher.fallback or SMALL_TEACHER}
    tasks = [f"tasks.{task}.training" for task in scene.tasks]
    return {
        "cache": [{"models.teacher.batch_size": 1}, half, teacher, {"models.teacher.name": SMALL_STUDENT}],
        "train": [
            {f"{task}.gradient_checkpointing": True for task in tasks},
            {f"{task}.micro_batch_size": 1 for task in tasks},
            {"models.lora.enabled": True},
            half,
            student,
        ],
        "evaluate": [{"evaluation.batch_size": 4}, half, student],
        "benchmark": [{"benchmark.batch_sizes": [1]}, half, teacher, {"models.teacher.name": SMALL_STUDENT}],
    }[stage]


def _options(change: Change) -> str:
    return " ".join(f"--set {key}={_yaml(value)}" for key, value in change.items())


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")

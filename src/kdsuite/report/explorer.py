"""The data of the page's example explorer: every example once, with what every run said about it.

Compact, since a report may hold ten thousand examples with a dozen runs each: inputs that repeat (passages)
are stored once, answers once per example with their score, and runs point at them. The prompt is stored once
as a pattern, taken from the task itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kdsuite.config.plugins import TASKS, plugins
from kdsuite.evaluate.selection import Record
from kdsuite.report.analysis import TaskAnalysis
from kdsuite.report.cells import Cell
from kdsuite.report.load import TEACHER, ZERO_SHOT, Predictions
from kdsuite.report.wording import metric_name, task_name
from kdsuite.tasks.example import Example

OPEN, CLOSE = "\ue000", "\ue001"  # private-use characters around an input's name in the prompt pattern


def explorer_data(task: TaskAnalysis, limit: int) -> Record:
    """JSON-ready data of one task; of more than `limit` examples the most disputed ones are kept."""
    cells = [cell for cell in task.cells if cell.runs]
    runs = [
        (cell, run.seed, predictions)
        for cell in cells
        for run, predictions in zip(cell.runs, cell.predictions, strict=True)
    ]
    fields = _fields(task)
    order = _order(task, cells, limit)
    pool: dict[str, int] = {}
    return {
        "task": task_name(task.name),
        "metric": metric_name(task.metric),
        "fields": fields,
        "prompt": _pattern(task, fields),
        "total": len(task.ids),
        "methods": [cell.label if len(task.students) > 1 else cell.method for cell in cells],
        "baseline": next((i for i, cell in enumerate(cells) if cell.method == "B0"), None),
        "trained": [i for i, cell in enumerate(cells) if cell.method not in (TEACHER, ZERO_SHOT)],
        "runs": [[cells.index(cell), seed] for cell, seed, _ in runs],
        "examples": [_example(task, fields, [p for _, _, p in runs], index, pool) for index in order],
        "pool": list(pool),
    }


def _fields(task: TaskAnalysis) -> list[str]:
    first = next(iter(task.examples.values()), None)
    return list(first["inputs"]) if first else []


def _pattern(task: TaskAnalysis, fields: list[str]) -> str:
    """The task's prompt with marked names in place of the inputs."""
    if not fields:
        return ""
    sample = Example("", {name: f"{OPEN}{name}{CLOSE}" for name in fields}, "", ("",), "")
    return "\n\n".join(message["content"] for message in plugins(TASKS)[task.name]().messages(sample))


def _order(task: TaskAnalysis, cells: list[Cell], limit: int) -> list[int]:
    count = len(task.ids)
    if count <= limit or not cells:
        return list(range(min(count, limit)))
    spread = np.concatenate([cell.scores for cell in cells if cell.scores is not None]).std(axis=0)
    return sorted(np.argsort(-spread, kind="stable")[:limit].tolist())


def _example(
    task: TaskAnalysis, fields: list[str], runs: list[Predictions], index: int, pool: dict[str, int]
) -> list[Any]:
    """[id, inputs as pool indices, references, [[answer, score], …], answer index per run]."""
    name = task.ids[index]
    inputs = [pool.setdefault(task.examples[name]["inputs"][f], len(pool)) for f in fields]
    answers: dict[str, int] = {}
    scored: list[list[Any]] = []
    said = []
    for predictions in runs:
        text = predictions.texts[index]
        if text not in answers:
            answers[text] = len(scored)
            scored.append([text, round(float(predictions.scores[task.metric][index]), 2)])
        said.append(answers[text])
    references = list(dict.fromkeys(runs[0].references[index])) if runs else []
    return [name, inputs, references, scored, said]

"""The data of the page's example explorer: every example once, with what every run said about it.

Compact, since a report may hold ten thousand examples with a dozen runs each: inputs that repeat (passages)
are stored once, answers once per example with their score, and runs point at them. The prompt is stored once
as a pattern, taken from the plan.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kdsuite.evaluate.selection import Record
from kdsuite.report.analysis import TaskAnalysis
from kdsuite.report.load import BASELINE, Predictions
from kdsuite.report.words import metric_name

OPEN, CLOSE = "\ue000", "\ue001"  # private-use characters around an input's name in the prompt pattern


def explorer_data(task: TaskAnalysis, limit: int) -> Record:
    """JSON-ready data of one task; of more than `limit` examples the most disputed ones are kept."""
    cells = [cell for cell in task.cells if cell.runs]
    predictions = [p for cell in cells for p in cell.predictions]
    fields = list(next(iter(task.examples.values()))["inputs"]) if task.examples else []
    shown = np.arange(len(task.ids))
    if len(shown) > limit:
        scores = [cell.scores for cell in cells if cell.scores is not None]
        spread = np.concatenate(scores).std(axis=0) if scores else np.zeros(len(shown))
        shown = np.sort(np.argsort(-spread, kind="stable")[:limit])
    pool: dict[str, int] = {}
    marked = [f"{name}: {OPEN}{name}{CLOSE}" for name in fields]  # alone, where the plan does not tell the prompt
    return {
        "task": task.title,
        "metric": metric_name(task.metric),
        "fields": fields,
        "prompt": (task.about.get("prompt") or "\n\n".join(marked)) if fields else "",
        "total": len(task.ids),
        "methods": [task.called(cell) for cell in cells],
        "baseline": next((i for i, cell in enumerate(cells) if cell.method == BASELINE), None),
        "trained": [i for i, cell in enumerate(cells) if cell.trained],
        "runs": [[i, run.seed] for i, cell in enumerate(cells) for run in cell.runs],
        "examples": [_example(task, fields, predictions, index, pool) for index in shown.tolist()],
        "pool": list(pool),
    }


def _example(
    task: TaskAnalysis, fields: list[str], runs: list[Predictions], index: int, pool: dict[str, int]
) -> list[Any]:
    """[id, inputs as pool indices, references, [[answer, score], …], answer index per run]."""
    name = task.ids[index]
    inputs = [pool.setdefault(task.examples[name]["inputs"][f], len(pool)) for f in fields]
    scored: dict[str, list[Any]] = {}  # by answer, in order
    for predictions in runs:
        text = predictions.texts[index]
        if text not in scored:
            scored[text] = [text, round(float(predictions.scores[task.metric][index]), 2)]
    place = {text: number for number, text in enumerate(scored)}
    references = list(dict.fromkeys(runs[0].references[index])) if runs else []
    return [name, inputs, references, list(scored.values()), [place[p.texts[index]] for p in runs]]

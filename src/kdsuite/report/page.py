"""report.html: one self-contained page (no network, no fonts, no libraries), light and dark, wide and narrow.

The template lays out and rounds what the analysis holds. Texts of examples and predictions travel as JSON and are put
on the page by the browser as text, never as markup; compact, since a report may hold ten thousand examples with a dozen
runs each: inputs that repeat (passages) are stored once, answers once per example with their score, and runs point at
them; the prompt is a pattern, taken from the plan.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from kdsuite.evaluate.selection import Record
from kdsuite.report import answers, words
from kdsuite.report.analysis import Analysis, TaskAnalysis
from kdsuite.report.drawing import Canvas
from kdsuite.report.figures_cost import COSTS
from kdsuite.report.latex import columns_of
from kdsuite.report.load import BASELINE, Predictions, flatten, read_manifest, teacher_quality
from kdsuite.report.tables import Table, written
from kdsuite.report.words import ENVIRONMENT, TEMPLATES, metric_name

OPEN, CLOSE = "\ue000", "\ue001"  # private-use characters around an input's name in the prompt pattern


def render(
    analysis: Analysis, tables: Sequence[Table], figures: Sequence[Canvas], curves: Sequence[Canvas] = ()
) -> str:
    """The whole page as text; `curves` are figures over fractions of the training examples, where there are any."""
    named, limit = {table.name: table for table in tables}, analysis.settings.explorer_examples
    methods, costs = analysis.results.plan.get("methods") or {}, named["training_costs"].rows
    return ENVIRONMENT.get_template("report.html.j2").render(
        analysis=analysis,
        tables=named,
        words=words,
        answers=answers,
        written=written,
        include_raw=lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8")),
        figures=figures[: -len(COSTS)],
        cost_figures=figures[-len(COSTS) :],
        curves=curves,
        columns_of=columns_of,
        seconds={(r["task"], r["student"], r["method"]): r["train_seconds"] + r["evaluate_seconds"] for r in costs},
        provenance=_provenance(analysis),
        titles={name: about["title"] for name, about in methods.items() if about.get("title")},
        explorer={task.name: _embedded(explorer_data(task, limit)) for task in analysis.tasks},
    )


def _embedded(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _provenance(analysis: Analysis) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titled lists of facts: the plan, data, models, teacher and machine, under dotted names.

    Without a plan, the machine is the distinct environments that the runs recorded.
    """
    results, plan = analysis.results, analysis.results.plan
    used = [cell.runs[0] for task in analysis.tasks for cell in task.cells if cell.runs]
    recorded = (run.record.get("environment") for run in results.runs)
    machines = sorted({json.dumps(machine, sort_keys=True) for machine in recorded if machine})
    environments = {str(index): json.loads(text) for index, text in enumerate(machines, start=1)}
    blocks = {
        "Plan": {key: plan[key] for key in ("created", "code_version") if plan.get(key)},
        "Data": {task: read_manifest(results.root, task) for task in results.tasks},
        "Models": {run.run_id: run.record["model"] for run in used if run.record.get("model")},
        "Teacher outputs": {task: teacher_quality(results.root, task) for task in results.tasks},
        "Machine and libraries": plan.get("environment") or environments,
        "Settings": plan.get("settings"),
    }
    return [(title, list(flatten(value))) for title, value in blocks.items() if value]


def explorer_data(task: TaskAnalysis, limit: int) -> Record:
    """JSON-ready data of one task; of more than `limit` examples the most disputed ones are kept."""
    cells = [cell for cell in task.cells if cell.runs]
    predictions = [p for cell in cells for p in cell.predictions]
    fields = list(dict.fromkeys(name for example in task.examples.values() for name in example["inputs"]))
    shown = np.arange(len(task.ids))
    if len(shown) > limit:
        scores = [cell.scores for cell in cells if cell.scores is not None]
        spread = np.concatenate(scores).std(axis=0) if scores else np.zeros(len(shown))
        shown = np.sort(np.argsort(-spread, kind="stable")[:limit])
    b0 = [i for i, cell in enumerate(cells) if cell.method == BASELINE]  # the student's; for the teacher, the first
    pool: dict[str, int] = {}
    marked = [f"{name}: {OPEN}{name}{CLOSE}" for name in fields]  # alone, where the plan does not tell the prompt
    return {
        "task": task.title,
        "metric": metric_name(task.metric),
        "fields": fields,
        "prompt": (task.about.get("prompt") or "\n\n".join(marked)) if fields else "",
        "total": len(task.ids),
        "methods": [task.called(cell) for cell in cells],
        "baseline": [next((i for i in b0 if cell.student in (cells[i].student, None)), None) for cell in cells],
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
    inputs = [pool.setdefault(task.examples[name]["inputs"].get(f, ""), len(pool)) for f in fields]
    scored: dict[str, list[Any]] = {}  # by answer, in order
    for predictions in runs:
        text = predictions.texts[index]
        if text not in scored:
            score = float(predictions.scores[task.metric][index])
            scored[text] = [text, score if score in (0, 1) else min(max(round(score, 2), 0.01), 0.99)]  # partly right
    place = {text: number for number, text in enumerate(scored)}
    references = list(dict.fromkeys(runs[0].references[index])) if runs else []
    return [name, inputs, references, list(scored.values()), [place[p.texts[index]] for p in runs]]

"""How numbers and names are written, and the findings in sentences: a headline per task, what each test means in plain
words, a paragraph for a thesis. `templates/sentences.j2` words them.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kdsuite.config import TEACHER, ZERO_SHOT
from kdsuite.evaluate import selection
from kdsuite.evaluate.crossed import FEWEST_SEEDS, MOST_SEEDS, Interval
from kdsuite.report import comparisons, fractions
from kdsuite.report.analysis import Analysis, TaskAnalysis
from kdsuite.report.load import BASELINE

NOT_APPLICABLE, NOT_TESTABLE = "n/a", "not testable"
TEMPLATES = Path(__file__).parent / "templates"
CONTENTS = yaml.safe_load((TEMPLATES / "contents.yaml").read_text(encoding="utf-8"))  # tables and figures


def metric_name(metric: str) -> str:
    """A metric's name for reading: macro-F1, ROUGE-L, chrF, exact match; one's own without underscores."""
    known = {"f1": "F1", "token_f1": "token F1", "macro_f1": "macro-F1", "rouge_l": "ROUGE-L", "chrf": "chrF"}
    return known.get(metric, metric.replace("_", " "))


def number(value: float | None, digits: int = 4, missing: str = NOT_APPLICABLE) -> str:
    """`value` with fixed digits; `missing` for None and everything that is not finite."""
    if value is None or not math.isfinite(value):
        return missing
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def p_text(value: float) -> str:
    """A p-value as it stands in a sentence: "p = 0.013", "p < 0.001"."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def minus(text: str) -> str:
    """A number with a true minus, for reading."""
    return text.replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign: +1.2, −0.3 (a true minus), 0.0."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else minus(text)


def span(interval: Interval | None, digits: int = 1) -> str:
    """An interval for reading, e.g. "80.1 to 84.3"; empty if there is none."""
    return " to ".join(minus(number(bound, digits)) for bound in interval or ())


def lasting(seconds: float) -> str:
    """A duration for reading: "40 s", "12 min", "3.2 h"."""
    if not math.isfinite(seconds):
        return NOT_APPLICABLE
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def caption(
    analysis: Analysis, kind: str, name: str, read: Callable[[str], str] = str, told: Callable[[str], str] = str
) -> str:
    """What stands below a table or figure (`kind`: tables, figures). Tables' own words are LaTeX, which `read` may
    rewrite; `told` escapes those of the tasks.
    """
    settings = analysis.settings
    return read(CONTENTS[kind][name]["caption"]).format(
        level=f"{100 * settings.confidence:g}",
        power=f"{100 * settings.power:g}",
        margin=f"{settings.margin:g}",
        cost="" if settings.cost_per_hour is None else f" Cost at {settings.cost_per_hour:g} per hour.",
        answered=told(answered(analysis)),
    )


def answered(analysis: Analysis) -> str:
    """How the examples of each task are answered, as a clause."""
    clauses = []
    for task in analysis.tasks:
        labels = task.about.get("labels") or ()
        way = f"scoring {'both' if len(labels) == 2 else 'all'} labels"
        clauses.append(f"{task.title} by {way if labels else 'generation until the answer ends'}")
    return ", ".join(clauses)


ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=lambda name: bool(name) and ".html" in name,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters.update(
    counted=counted,
    lasting=lasting,
    metric=metric_name,
    minus=minus,
    number=lambda value, digits, missing="": number(value, digits, missing),
    p=lambda value: "" if value is None else p_text(value).removeprefix("p ").removeprefix("= "),
    p_text=p_text,
    signed=signed,
    span=span,
)
ENVIRONMENT.globals.update(
    verdicts=comparisons,
    pictures=fractions,
    states=selection,
    BASELINE=BASELINE,
    TEACHER=TEACHER,
    ZERO_SHOT=ZERO_SHOT,
    MOST_SEEDS=MOST_SEEDS,
)


def said(name: str, *about: Any) -> str:
    """A macro of the sentences, its paragraphs' white space as single blanks."""
    text: str = getattr(ENVIRONMENT.get_template("sentences.j2").module, name)(*about)
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))


def headline(task: TaskAnalysis) -> str:
    """One honest sentence on the task (a clause per student where there are several)."""
    return f"{task.title}: {said('finding', task)}"


def doubts(tasks: Iterable[TaskAnalysis]) -> list[str]:
    """Where the comparison itself is doubtful: each doubt once, with the tasks and students that it is about."""
    about: dict[str, list[str]] = {}
    for task in tasks:
        for found in task.doubts:
            whose = f"{task.title} ({found['student']})" if len(task.students) > 1 else task.title
            about.setdefault(said("doubt", found), []).append(whose)
    return [f"{', '.join(whose)}: {text}" for text, whose in about.items()]


def fewest(task: TaskAnalysis, seconds: Mapping[tuple[str, str, str], float]) -> list[str]:
    """What is still to run where seeds are too few, per student; `seconds` of a run by task, student and method."""
    texts = []
    for student in task.students:
        few = [c for c in task.comparisons if (c.student, c.verdict) == (student, comparisons.TOO_FEW_SEEDS)]
        methods = dict.fromkeys(method for c in few for method in (c.b, c.a) if (task.name, student, method) in seconds)
        runs = {cell.method: len(cell.runs) for cell in task.cells if cell.student == student}
        missing = {method: FEWEST_SEEDS - runs[method] for method in methods if runs[method] < FEWEST_SEEDS}
        time = sum(count * seconds[task.name, student, method] for method, count in missing.items())
        if missing:
            texts.append(said("fewest", task, student, min(c.seeds for c in few), missing, lasting(time)))
    return texts

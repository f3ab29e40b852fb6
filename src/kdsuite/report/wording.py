"""How numbers and names are written, in one place: fixed digits, and a word where there is no number."""

from __future__ import annotations

import math

from kdsuite.report.cells import Cell
from kdsuite.report.comparisons import Comparison
from kdsuite.report.statistics import Interval

NOT_APPLICABLE, NOT_TESTABLE = "n/a", "not testable"
TASK_NAMES = {"sst2": "SST-2", "squad": "SQuAD"}
METRIC_NAMES = {"accuracy": "accuracy", "f1": "F1", "exact_match": "exact match"}


def task_name(task: str) -> str:
    return TASK_NAMES.get(task, task)


def metric_name(metric: str) -> str:
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def number(value: float | None, digits: int = 4, missing: str = NOT_APPLICABLE) -> str:
    """`value` with fixed digits; `missing` for None and everything that is not finite."""
    if value is None or not math.isfinite(value):
        return missing
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def p_value(value: float | None, missing: str = NOT_TESTABLE) -> str:
    """Four digits of p, in a form that sorts and parses."""
    return missing if value is None else f"{value:.4g}"


def p_text(value: float) -> str:
    """A p-value as it stands in a sentence: "p = 0.013", "p < 0.001"."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def minus(text: str) -> str:
    """A number with a true minus, for reading."""
    return text.replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign: +1.2, −0.3 (a true minus), 0.0."""
    text = f"{value:+.{digits}f}"
    return minus(text) if float(text) else text[1:]


def span(interval: Interval | None, digits: int = 1) -> str:
    """An interval for reading, e.g. "80.1 to 84.3"; empty if there is none."""
    if interval is None:
        return ""
    low, high = (minus(number(bound, digits)) for bound in interval)
    return f"{low} to {high}"


def seeds_and_examples(comparison: Comparison) -> str:
    return f"{counted(comparison.seeds, 'seed')} × {counted(comparison.examples, 'example')}"


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def cell_name(cell: Cell, students: int) -> str:
    """The method, with its student where there are several, and its hyper-parameters."""
    name = cell.label if students > 1 else cell.method
    return f"{name} ({cell.hyperparameters})" if cell.hyperparameters else name

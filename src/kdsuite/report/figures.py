"""The figures of a report, in the order of its page: the six of the contract and four that explain them.

Only what exists is drawn: a missing cell keeps its place and says `not run` or `failed`, a figure without any
data says what is missing. Every figure carries the numbers it draws.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

from kdsuite.report import drawing, figures_cost, figures_insight, figures_quality
from kdsuite.report.analysis import Analysis
from kdsuite.report.drawing import Canvas, Drawn
from kdsuite.report.wording import number

FIGURES: tuple[Callable[[Analysis], Canvas], ...] = (
    figures_quality.kd_comparison,
    figures_quality.kd_gain,
    figures_cost.performance_vs_size,
    figures_cost.pareto,
    figures_cost.latency,
    figures_cost.memory,
    figures_insight.temperature_alpha,
    figures_insight.learning_curves,
    figures_quality.teacher_agreement,
    figures_insight.calibration,
)


def draw_all(analysis: Analysis) -> list[Drawn]:
    with drawing.styled():
        return [drawing.render(make(analysis)) for make in FIGURES]


def data_csv(drawn: Drawn) -> str:
    """What a figure draws, one line per mark; only a header where nothing is drawn."""
    columns = list(dict.fromkeys(name for row in drawn.rows for name in row)) or ["task"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in drawn.rows:
        writer.writerow({k: number(v, missing="") if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()

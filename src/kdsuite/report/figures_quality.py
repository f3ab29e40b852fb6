"""How good the methods are: scores, gains and agreement with the teacher, as dot plots with intervals."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from kdsuite.config import TEACHER
from kdsuite.report import drawing
from kdsuite.report.analysis import Analysis, TaskAnalysis
from kdsuite.report.cells import Cell
from kdsuite.report.comparisons import NO_EVIDENCE, TOO_FEW_SEEDS, Comparison
from kdsuite.report.drawing import INK, PANEL, ROW, Canvas
from kdsuite.report.words import counted, metric_name, number, signed, span


def kd_comparison(analysis: Analysis) -> Canvas:
    """Figure 4.3: every method's score with its interval and its single seeds."""
    target, panels = _stacked(analysis, "fig_4_3_kd_comparison", [len(task.cells) for task in analysis.tasks])
    for task, (axes,) in zip(analysis.tasks, panels, strict=True):
        drawing.dot_rows(axes, [task.called(cell) for cell in task.cells])
        for row, cell in enumerate(task.cells):
            if cell.runs:
                _score_row(target, axes, row, task, cell)
            else:
                drawing.absent(axes, row, cell.status)
        drawing.title(axes, task.title, f"{metric_name(task.metric)} (%)")
    return target


def _score_row(target: Canvas, axes: Axes, row: int, task: TaskAnalysis, cell: Cell) -> None:
    low, high = cell.interval or (None, None)
    if cell.interval is not None:
        drawing.bar(axes, cell.interval, row, cell.method)
    _seeds(axes, cell.seed_means.tolist(), row, cell.method)
    name, size = f"{cell.label} {cell.hyperparameters}".strip(), counted(len(cell.runs), "run")
    text = f"{name}: {number(cell.mean, 1)} ({span(cell.interval)}), {size}"
    target.tip(drawing.mark(axes, cell.mean, row, cell.method), text=text)
    about = {"student": cell.student, "method": cell.method, "metric": task.metric}
    target.add(task.name, **about, kind="mean", seed="", value=cell.mean, ci_low=low, ci_high=high)
    for run, mean in zip(cell.runs, cell.seed_means.tolist(), strict=True):
        target.add(task.name, **about, kind="seed", seed=run.seed, value=mean)


def kd_gain(analysis: Analysis) -> Canvas:
    """Figure 4.5: the gain of every comparison as a forest plot."""
    target, panels = _stacked(analysis, "fig_4_5_kd_gain", [len(task.comparisons) for task in analysis.tasks])
    for task, (axes,) in zip(analysis.tasks, panels, strict=True):
        several = len(task.students) > 1
        names = [f"{c.student} {c.name}" if several else c.name for c in task.comparisons]
        drawing.dot_rows(axes, names or [""])
        axes.axvline(0, color=INK, linewidth=0.8)
        for row, comparison in enumerate(task.comparisons):
            _gain_row(target, axes, row, comparison)
        if not names:
            drawing.absent(axes, 0, "no method besides B0 was planned")
        drawing.title(axes, task.title, f"difference in {metric_name(task.metric)} (points)")
    return target


def _gain_row(target: Canvas, axes: Axes, row: int, c: Comparison) -> None:
    if c.interval is None:
        drawing.absent(axes, row, c.verdict)
        return
    drawing.bar(axes, c.interval, row, c.a)
    dot = drawing.mark(axes, c.difference, row, c.a, hollow=c.verdict in (NO_EVIDENCE, TOO_FEW_SEEDS))
    target.tip(dot, text=f"{c.name}: {signed(c.difference)} ({span(c.interval)}), {c.verdict}")
    at_right = axes.get_yaxis_transform()
    axes.text(1.02, row, signed(c.difference), transform=at_right, ha="left", va="center")
    low, high = c.interval
    about = {"student": c.student, "comparison": c.name, "metric": c.metric, "verdict": c.verdict}
    target.add(c.task, **about, difference=c.difference, ci_low=low, ci_high=high)


def teacher_agreement(analysis: Analysis) -> Canvas:
    """How often a student says what the teacher says."""
    shown = [(task, [c for c in task.cells if c.method != TEACHER]) for task in analysis.tasks]
    target, panels = _stacked(analysis, "fig_teacher_agreement", [len(cells) for _, cells in shown])
    for (task, cells), (axes,) in zip(shown, panels, strict=True):
        drawing.dot_rows(axes, [task.called(cell) for cell in cells] or [""])
        for row, cell in enumerate(cells):
            if not cell.agreement:
                drawing.absent(axes, row, "no teacher" if cell.runs else cell.status)
                continue
            mean = sum(cell.agreement) / len(cell.agreement)
            _seeds(axes, cell.agreement, row, cell.method)
            dot = drawing.mark(axes, mean, row, cell.method)
            target.tip(dot, text=f"{cell.label}: {number(mean, 1)} %")
            for run, share in zip(cell.runs, cell.agreement, strict=True):
                about = {"student": cell.student, "method": cell.method, "seed": run.seed}
                target.add(task.name, **about, agreement=share)
        drawing.title(axes, task.title, "same answer as the teacher (%)")
    return target


def _seeds(axes: Axes, values: Sequence[float], row: int, method: str) -> None:
    if len(values) > 1:
        for value in values:
            drawing.mark(axes, value, row + 0.27, method, hollow=True, size=2.2)


def _stacked(analysis: Analysis, name: str, rows: Sequence[int]) -> tuple[Canvas, list[list[Axes]]]:
    return drawing.stacked(analysis, name, [PANEL + ROW * max(1, count) for count in rows])

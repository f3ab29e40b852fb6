"""Why a method does what it does: its grid, its learning curves, the calibration of its probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from kdsuite.evaluate.selection import Candidate
from kdsuite.report import drawing
from kdsuite.report.analysis import Analysis, TaskAnalysis
from kdsuite.report.cells import Cell
from kdsuite.report.drawing import FAINT, Canvas
from kdsuite.report.load import TEACHER, ZERO_SHOT, read_history
from kdsuite.report.statistics import Floats, Reliability, reliability
from kdsuite.report.wording import counted, metric_name, number, task_name

CHOSEN = "#D55E00"


def temperature_alpha(analysis: Analysis) -> Canvas:
    """The grid of KD1 on the dev split, as a heat map."""
    name, title = "fig_temperature_alpha", "Temperature and α"
    caption = (
        "Mean of the primary metric on the dev split over seeds (%), for every temperature T and weight α "
        "of the hard label. The framed field is the one that was chosen; a hatched one has no completed run."
    )
    shown = [(task, cell) for task in analysis.tasks for cell in task.cells if _has_grid(cell)]
    if not shown:
        return drawing.empty(name, title, caption, "no grid of temperatures and weights was planned")
    heights = [0.8 + 0.26 * len(_axis(cell)[1]) for _, cell in shown]
    target = drawing.canvas(name, title, caption, sum(heights))
    for (task, cell), (axes,) in zip(shown, drawing.panels(target, len(shown), heights), strict=True):
        _heat_map(target, axes, task, cell)
    return target


def _has_grid(cell: Cell) -> bool:
    return "temperature" in dict(cell.identity.point) and len(cell.selection.candidates) > 1


def _axis(cell: Cell) -> tuple[list[float], list[float]]:
    """The grid's temperatures and weights, ascending."""
    points = [dict(candidate.configuration.point) for candidate in cell.selection.candidates]
    return sorted({p["temperature"] for p in points}), sorted({p["alpha"] for p in points})


def _heat_map(target: Canvas, axes: Axes, task: TaskAnalysis, cell: Cell) -> None:
    temperatures, alphas = _axis(cell)
    values = [c.dev_mean for c in cell.selection.candidates if math.isfinite(c.dev_mean)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    for candidate in cell.selection.candidates:
        point = dict(candidate.configuration.point)
        place = temperatures.index(point["temperature"]), alphas.index(point["alpha"])
        level = (candidate.dev_mean - low) / (high - low) if high > low else 0.5
        chosen = candidate is cell.chosen
        _field(target, axes, candidate, place, level, chosen)
        about = {
            "student": cell.student,
            "method": cell.method,
            "temperature": point["temperature"],
            "alpha": point["alpha"],
        }
        target.add(task.name, **about, dev_mean=candidate.dev_mean, selected="yes" if chosen else "no")
    axes.set_xticks(range(len(temperatures)), [f"T = {t:g}" for t in temperatures])
    axes.set_yticks(range(len(alphas)), [f"α = {a:g}" for a in alphas])
    axes.set_xlim(-0.6, len(temperatures) - 0.4)
    axes.set_ylim(-0.6, len(alphas) - 0.4)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{task_name(task.name)}: {cell.label}, {metric_name(task.metric)}")


def _field(
    target: Canvas, axes: Axes, candidate: Candidate, place: tuple[int, int], level: float, chosen: bool
) -> None:
    """One field of the heat map; `level` is its brightness from 0 to 1."""
    (x, y), known = place, math.isfinite(candidate.dev_mean)
    face = matplotlib.colormaps["cividis"](0.1 + 0.8 * level) if known else "none"
    corner, size = (x - 0.47, y - 0.44), (0.94, 0.88)
    hatch = None if known else "////"
    box = Rectangle(corner, *size, facecolor=face, edgecolor=FAINT, linewidth=0.4, hatch=hatch)
    axes.add_patch(box)
    if chosen:
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=CHOSEN, linewidth=2))
    ink = ("white" if level < 0.55 else "black") if known else FAINT
    axes.text(x, y, number(candidate.dev_mean, 1, missing="none"), ha="center", va="center", color=ink)
    runs = counted(len(candidate.completed), "seed")
    target.tip(
        box, text=f"{candidate.configuration.hyperparameters}: {number(candidate.dev_mean, 2)} on dev, {runs}"
    )


def learning_curves(analysis: Analysis) -> Canvas:
    """The dev metric after every epoch, of the selected configurations."""
    name, title = "fig_learning_curves", "Learning curves"
    caption = (
        "Primary metric on the dev split after each epoch: mean over seeds (line) and single seeds (faint)."
    )
    shown = [(task, found) for task in analysis.tasks if (found := _curves(task))]
    if not shown:
        return drawing.empty(name, title, caption, "no run has recorded a dev score per epoch")
    target = drawing.canvas(name, title, caption, 0.5 + 1.6 * len(shown))
    for (task, found), (axes,) in zip(shown, drawing.panels(target, len(shown)), strict=True):
        for cell, epochs, scores in found:
            _draw_curve(target, axes, cell, epochs, scores)
        drawing.grid(axes)
        _epoch_axis(axes, {epoch for _, epochs, _ in found for epoch in epochs.tolist()})
        drawing.title(axes, task.name, "epoch", f"{metric_name(task.metric)} on dev (%)")
    cells = list({cell.label: cell for _, found in shown for cell, _, _ in found}.values())
    several = any(len(task.students) > 1 for task, _ in shown)
    labels = [cell.label if several else cell.method for cell in cells]
    drawing.legend_below(target, [_line_handle(cell.method) for cell in cells], labels, columns=4)
    return target


def _curves(task: TaskAnalysis) -> list[tuple[Cell, Floats, Floats]]:
    """Per trained cell its epochs [E] and dev scores [S, E], up to the shortest of its seeds."""
    found = []
    for cell in task.cells:
        if cell.method in (TEACHER, ZERO_SHOT) or not cell.runs:
            continue
        histories = [[row for row in read_history(run) if _has_dev(row)] for run in cell.runs]
        length = min(len(rows) for rows in histories)
        if length:
            scores = np.array([[row["dev_metric"] for row in rows[:length]] for rows in histories])
            found.append((cell, np.array([row["epoch"] for row in histories[0][:length]]), scores))
    return found


def _has_dev(row: dict[str, float]) -> bool:
    return math.isfinite(row.get("dev_metric", math.nan)) and math.isfinite(row.get("epoch", math.nan))


def _draw_curve(target: Canvas, axes: Axes, cell: Cell, epochs: Floats, scores: Floats) -> None:
    style, mean = drawing.look(cell.method), scores.mean(axis=0)
    axes.plot(epochs, scores.T, color=style.color, linewidth=0.5, alpha=0.4)
    look = {"color": style.color, "linestyle": style.line, "marker": style.marker, "markersize": 3.5}
    (line,) = axes.plot(epochs, mean, **look)
    target.tip(line, text=f"{cell.label}: {number(float(mean[-1]), 1)} after epoch {epochs[-1]:g}")
    for run, values in zip(cell.runs, scores.tolist(), strict=True):
        about = {"student": cell.student, "method": cell.method, "seed": run.seed}
        for epoch, value in zip(epochs.tolist(), values, strict=True):
            target.add(cell.identity.task, **about, epoch=epoch, dev=value)


def _epoch_axis(axes: Axes, epochs: set[float]) -> None:
    """A tick at every epoch, as long as they can be told apart."""
    if len(epochs) <= 10:
        axes.set_xticks(sorted(epochs), [f"{epoch:g}" for epoch in sorted(epochs)])
    if len(epochs) == 1:
        axes.set_xlim(min(epochs) - 1, max(epochs) + 1)


def _line_handle(method: str) -> Line2D:
    style = drawing.look(method)
    return Line2D([], [], color=style.color, linestyle=style.line, marker=style.marker, markersize=3.5)


def calibration(analysis: Analysis) -> Canvas:
    """Reliability of the label probabilities, with the expected calibration error."""
    name, title = "fig_calibration", "Calibration"
    caption = (
        "Share of right answers against the probability that the model gave its answer, seeds pooled; on the "
        "diagonal, probabilities are true. ECE is the expected calibration error in points, lower is better."
    )
    shown = [(task, cells) for task in analysis.tasks if (cells := _with_confidence(task))]
    if not shown:
        return drawing.empty(name, title, caption, "no task with scored labels has a completed run")
    heights = [2.3 + 0.16 * len(cells) for _, cells in shown]
    target = drawing.canvas(name, title, caption, sum(heights))
    for (task, cells), (axes,) in zip(shown, drawing.panels(target, len(shown), heights), strict=True):
        _reliability_panel(target, axes, task, cells, analysis.settings.calibration_bins)
    return target


def _with_confidence(task: TaskAnalysis) -> list[Cell]:
    return [cell for cell in task.cells if cell.predictions and cell.predictions[0].confidence is not None]


def _reliability_panel(
    target: Canvas, axes: Axes, task: TaskAnalysis, cells: Sequence[Cell], bins: int
) -> None:
    lowest = 1 / cells[0].predictions[0].labels
    axes.plot([lowest, 1], [lowest, 1], color=FAINT, linewidth=0.8)
    several = len(task.students) > 1
    for cell in cells:
        curve, style = cell_reliability(cell, task, bins), drawing.look(cell.method)
        used = np.flatnonzero(curve.count)
        look = {"color": style.color, "linestyle": style.line, "marker": style.marker, "markersize": 3.5}
        label = f"{cell.label if several else cell.method}: ECE {number(100 * curve.error, 1)}"
        (line,) = axes.plot(curve.confidence[used], curve.accuracy[used], linewidth=0.9, label=label, **look)
        target.tip(line, text=f"{label} points")
        for i in used.tolist():
            target.add(
                task.name,
                student=cell.student,
                method=cell.method,
                confidence=float(curve.confidence[i]),
                right=float(curve.accuracy[i]),
                count=int(curve.count[i]),
                ece_points=100 * curve.error,
            )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    drawing.grid(axes)
    drawing.title(axes, task.name, "probability of the answer", "share right")


def cell_reliability(cell: Cell, task: TaskAnalysis, bins: int) -> Reliability:
    """The reliability of all runs of a cell together."""
    confidence = np.concatenate([p.confidence for p in cell.predictions if p.confidence is not None])
    right = np.concatenate([p.scores[task.metric] for p in cell.predictions])
    return reliability(confidence, right, bins, lowest=1 / cell.predictions[0].labels)

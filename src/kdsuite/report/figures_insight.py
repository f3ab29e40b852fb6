"""Why a method does what it does: its grid, its learning curves, the calibration of its probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

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
from kdsuite.report.load import read_history
from kdsuite.report.statistics import Floats, Reliability, reliability
from kdsuite.report.words import counted, metric_name, number

CHOSEN = "#D55E00"


def temperature_alpha(analysis: Analysis) -> Canvas:
    """The grids on the dev split as heat maps, over the first two values of their points; a panel for all others."""
    shown = [(task, cell, grid) for task in analysis.tasks for cell in task.cells for grid in _grids(cell)]
    heights = [0.8 + 0.26 * len(_values(grid, 1)) for *_, grid in shown]
    target, panels = drawing.stacked(analysis, "fig_temperature_alpha", heights)
    for (task, cell, grid), (axes,) in zip(shown, panels, strict=True):
        _heat_map(target, axes, task, cell, grid)
    return target


def _grids(cell: Cell) -> list[list[Candidate]]:
    """The candidates of a grid, apart by all but the first two values of their points."""
    grids: dict[Any, list[Candidate]] = {}
    for candidate in cell.selection.candidates:
        grids.setdefault(candidate.configuration.point[2:], []).append(candidate)
    return list(grids.values()) if len(cell.selection.candidates) > 1 else []


def _values(grid: Sequence[Candidate], place: int) -> list[float]:
    """The first or second values of a grid's points, ascending; a 0 where points are shorter."""
    points = [candidate.configuration.point for candidate in grid]
    return sorted({point[place][1] if place < len(point) else 0.0 for point in points})


def _heat_map(target: Canvas, axes: Axes, task: TaskAnalysis, cell: Cell, grid: Sequence[Candidate]) -> None:
    every, first = cell.selection.candidates, grid[0].configuration
    scores = [c.dev_mean for c in every if math.isfinite(c.dev_mean)]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    xs, ys = _values(grid, 0), _values(grid, 1)
    rest = slice(2, None if len(grid) < len(every) else 2)  # told where there are several panels
    for candidate in grid:
        point = candidate.configuration.point
        place = xs.index(point[0][1]), ys.index(point[1][1] if len(point) > 1 else 0.0)
        level = (candidate.dev_mean - low) / (high - low) if high > low else 0.5
        chosen = candidate is cell.chosen
        _field(target, axes, candidate, place, level, chosen)
        about = {"student": cell.student, "method": cell.method, **dict(point[:2] + point[rest])}
        target.add(task.name, **about, dev_mean=candidate.dev_mean, selected="yes" if chosen else "no")
    names = [first.symbol(name) for name, _ in first.point]
    axes.set_xticks(range(len(xs)), [f"{names[0]} = {x:g}" for x in xs])
    axes.set_yticks(range(len(ys)), [f"{names[1]} = {y:g}" if names[1:] else "" for y in ys])
    axes.set_xlim(-0.6, len(xs) - 0.4)
    axes.set_ylim(-0.6, len(ys) - 0.4)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    where = "".join(f" {first.symbol(name)}={value:g}" for name, value in first.point[rest])
    axes.set_title(f"{task.title}: {cell.label}{where}, {metric_name(task.metric)}")


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
    point, runs = candidate.configuration.hyperparameters, counted(len(candidate.completed), "seed")
    target.tip(box, text=f"{point}: {number(candidate.dev_mean, 2)} on dev, {runs}")


def learning_curves(analysis: Analysis) -> Canvas:
    """The dev metric after every epoch, of the selected configurations."""
    shown = [(task, found) for task in analysis.tasks if (found := list(_curves(task)))]
    target, panels = drawing.stacked(analysis, "fig_learning_curves", [1.6] * len(shown), base=0.5)
    labels: dict[str, Cell] = {}
    for (task, found), (axes,) in zip(shown, panels, strict=True):
        for cell, epochs, scores in found:
            _draw_curve(target, axes, cell, epochs, scores)
            labels.setdefault(cell.label if analysis.several else cell.method, cell)
        drawing.grid(axes)
        ticks = sorted({epoch for _, epochs, _ in found for epoch in epochs.tolist()})
        if len(ticks) <= 10:  # as long as they can be told apart
            axes.set_xticks(ticks, [f"{epoch:g}" for epoch in ticks])
        if len(ticks) == 1:
            axes.set_xlim(ticks[0] - 1, ticks[0] + 1)
        drawing.title(axes, task.title, "epoch", f"{metric_name(task.metric)} on dev (%)")
    if shown:
        handles = [Line2D([], [], **drawing.line(cell.method)) for cell in labels.values()]
        drawing.legend_below(target, handles, labels, columns=4)
    return target


def _curves(task: TaskAnalysis) -> Iterator[tuple[Cell, Floats, Floats]]:
    """Per trained cell its epochs [E] and dev scores [S, E], up to the shortest of its seeds."""
    for cell in (cell for cell in task.cells if cell.trained and cell.runs):
        rows = [read_history(run).reindex(columns=["epoch", "dev_metric"]).to_numpy(float) for run in cell.runs]
        rows = [row[np.isfinite(row).all(axis=1)] for row in rows]
        length = min(map(len, rows))
        if length:
            yield cell, rows[0][:length, 0], np.array([row[:length, 1] for row in rows])


def _draw_curve(target: Canvas, axes: Axes, cell: Cell, epochs: Floats, scores: Floats) -> None:
    look, mean = drawing.line(cell.method), scores.mean(axis=0)
    axes.plot(epochs, scores.T, color=look["color"], linewidth=0.5, alpha=0.4)
    (line,) = axes.plot(epochs, mean, **look)
    target.tip(line, text=f"{cell.label}: {number(float(mean[-1]), 1)} after epoch {epochs[-1]:g}")
    for run, values in zip(cell.runs, scores.tolist(), strict=True):
        about = {"student": cell.student, "method": cell.method, "seed": run.seed}
        for epoch, value in zip(epochs.tolist(), values, strict=True):
            target.add(cell.identity.task, **about, epoch=epoch, dev=value)


def calibration(analysis: Analysis) -> Canvas:
    """Reliability of the label probabilities, with the expected calibration error."""
    scored = [
        (task, [c for c in task.cells if c.predictions and c.predictions[0].confidence is not None])
        for task in analysis.tasks
    ]
    shown = [(task, cells) for task, cells in scored if cells]
    heights = [2.3 + 0.16 * len(cells) for _, cells in shown]
    target, panels = drawing.stacked(analysis, "fig_calibration", heights)
    for (task, cells), (axes,) in zip(shown, panels, strict=True):
        lowest = 1 / cells[0].predictions[0].labels
        axes.plot([lowest, 1], [lowest, 1], color=FAINT, linewidth=0.8)
        for cell in cells:
            _draw_reliability(target, axes, task, cell, analysis.settings.calibration_bins)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        drawing.grid(axes)
        drawing.title(axes, task.title, "probability of the answer", "share right")
    return target


def _draw_reliability(target: Canvas, axes: Axes, task: TaskAnalysis, cell: Cell, bins: int) -> None:
    curve = cell_reliability(cell, task, bins)
    used = np.flatnonzero(curve.count)
    label = f"{task.called(cell)}: ECE {number(100 * curve.error, 1)}"
    look = drawing.line(cell.method) | {"linewidth": 0.9, "label": label}
    (line,) = axes.plot(curve.confidence[used], curve.accuracy[used], **look)
    target.tip(line, text=f"{label} points")
    for i in used.tolist():
        place = {"confidence": float(curve.confidence[i]), "right": float(curve.accuracy[i])}
        about = {"student": cell.student, "method": cell.method, **place, "count": int(curve.count[i])}
        target.add(task.name, **about, ece_points=100 * curve.error)


def cell_reliability(cell: Cell, task: TaskAnalysis, bins: int) -> Reliability:
    """The reliability of all runs of a cell together."""
    confidence = np.concatenate([p.confidence for p in cell.predictions if p.confidence is not None])
    right = np.concatenate([p.scores[task.metric] for p in cell.predictions])
    return reliability(confidence, right, bins, lowest=1 / cell.predictions[0].labels)

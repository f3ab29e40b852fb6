"""The figures of the report: those of the contract and four that explain them, in the order of the page.

How good the methods are (gains, scores, agreement with the teacher: dot plots with intervals), and why a method does
what it does (the calibration of its probabilities, its learning curves, its grid); what the models cost is in
`figures_cost.py`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from kdsuite.config import TEACHER
from kdsuite.evaluate.crossed import Floats
from kdsuite.evaluate.selection import Candidate
from kdsuite.report import drawing
from kdsuite.report.analysis import Analysis, Cell, TaskAnalysis
from kdsuite.report.comparisons import BETTER, NO_EVIDENCE, WORSE
from kdsuite.report.drawing import FAINT, INK, PANEL, ROW, Canvas
from kdsuite.report.figures_cost import COSTS
from kdsuite.report.fractions import band
from kdsuite.report.load import read_history
from kdsuite.report.statistics import reliability
from kdsuite.report.tables import bounds
from kdsuite.report.words import counted, metric_name, number, signed, span

CHOSEN = "#D55E00"


def kd_comparison(analysis: Analysis) -> Canvas:
    """Figure 4.3: every method's score with its interval and its single seeds."""
    target, panels = _dot_plot(analysis, "fig_4_3_kd_comparison", [len(task.cells) for task in analysis.tasks])
    for task, (axes,) in zip(analysis.tasks, panels, strict=True):
        drawing.dot_rows(axes, [task.called(cell) for cell in task.cells])
        for row, cell in enumerate(task.cells):
            if not cell.runs:
                drawing.absent(axes, row, cell.status)
                continue
            seeds = cell.seed_means.tolist()
            name, size = f"{cell.label} {cell.hyperparameters}".strip(), counted(len(cell.runs), "run")
            told = f" ({span(cell.interval)})" if cell.interval else ""
            if cell.interval is not None:
                drawing.bar(axes, cell.interval, row, cell.method)
            text = f"{name}: {number(cell.mean, 1)}{told}, {size}"
            _mark_with_seeds(target, axes, row, cell, seeds, cell.mean, text)
            about = {"student": cell.student, "method": cell.method, "metric": task.metric}
            target.add(task.name, **about, kind="mean", seed="", value=cell.mean, **bounds(cell.interval))
            for run, mean in zip(cell.runs, seeds, strict=True):
                target.add(task.name, **about, kind="seed", seed=run.seed, value=mean)
        axes.set(title=task.title, xlabel=f"{metric_name(task.metric)} (%)")
    return target


def kd_gain(analysis: Analysis) -> Canvas:
    """Figure 4.5: the gain of every comparison as a forest plot."""
    target, panels = _dot_plot(analysis, "fig_4_5_kd_gain", [len(task.comparisons) for task in analysis.tasks])
    for task, (axes,) in zip(analysis.tasks, panels, strict=True):
        several = len(task.students) > 1
        names = [f"{c.student} {c.name}" if several else c.name for c in task.comparisons]
        drawing.dot_rows(axes, names or [""])
        axes.axvline(0, color=INK, linewidth=0.8)
        for row, c in enumerate(task.comparisons):
            if c.interval is None:
                drawing.absent(axes, row, c.verdict)
                continue
            drawing.bar(axes, c.interval, row, c.a)
            dot = drawing.mark(axes, c.difference, row, c.a, hollow=c.verdict == NO_EVIDENCE)
            target.tip(dot, text=f"{c.name}: {signed(c.difference)} ({span(c.interval)}), {c.verdict}")
            at_right = axes.get_yaxis_transform()
            axes.text(1.02, row, signed(c.difference), transform=at_right, ha="left", va="center")
            about = {"student": c.student, "comparison": c.name, "metric": c.metric, "verdict": c.verdict}
            target.add(c.task, **about, difference=c.difference, **bounds(c.interval))
        if not names:
            drawing.absent(axes, 0, "no method besides B0 was planned")
        if not any(c.interval for c in task.comparisons):
            axes.set_xticks([])
        axes.set(title=task.title, xlabel=f"difference in {metric_name(task.metric)} (points)")
    return target


def teacher_agreement(analysis: Analysis) -> Canvas:
    """How often a student says what the teacher says."""
    shown = [(task, [c for c in task.cells if c.method != TEACHER]) for task in analysis.tasks]
    target, panels = _dot_plot(analysis, "fig_teacher_agreement", [len(cells) for _, cells in shown])
    for (task, cells), (axes,) in zip(shown, panels, strict=True):
        drawing.dot_rows(axes, [task.called(cell) for cell in cells] or [""])
        for row, cell in enumerate(cells):
            if not cell.agreement:
                drawing.absent(axes, row, "no teacher" if cell.runs else cell.status)
                continue
            mean = sum(cell.agreement) / len(cell.agreement)
            _mark_with_seeds(target, axes, row, cell, cell.agreement, mean, f"{cell.label}: {number(mean, 1)} %")
            for run, share in zip(cell.runs, cell.agreement, strict=True):
                target.add(task.name, student=cell.student, method=cell.method, seed=run.seed, agreement=share)
        axes.set(title=task.title, xlabel="same answer as the teacher (%)")
    return target


def data_curves(analysis: Analysis) -> Canvas:
    """Scores over the number of training examples: a curve and a band per method, a line for what learns from none."""
    shown = [(task, student) for task in analysis.tasks if task.parts for student in task.students]
    target, panels = drawing.stacked(analysis, "fig_data_fractions", [2.2] * len(shown), base=0.6)
    drawn: dict[str, Line2D] = {}
    for (task, student), (axes,) in zip(shown, panels, strict=True):
        sizes = [part.examples for part in task.parts]
        for cell in (cell for cell in task.cells if cell.student in (None, student) and cell.runs and not cell.trained):
            color, _, style = drawing.look(cell.method)
            drawn[cell.method] = line = axes.axhline(cell.mean, linewidth=0.9, color=color, linestyle=style)
            target.tip(line, text=f"{cell.label}: {number(cell.mean, 1)}")
            target.add(task.name, student=student, method=cell.method, examples="", mean=cell.mean)
        for method in (cell.method for cell in task.cells if cell.student == student and cell.trained):
            at = [(part, cell) for part in task.parts if (cell := part.task.cell(method, student)) and cell.runs]
            known = np.array([(part.examples, *interval) for part, cell in at if (interval := band(cell))])
            look: dict[str, Any] = drawing.line(method) | {"marker": ""}
            if known.size:
                axes.fill_between(*known.T, color=look["color"], alpha=0.13, linewidth=0)
            axes.plot([part.examples for part, _ in at], [cell.mean for _, cell in at], **look)
            drawn[method] = drawing.handle(method)
            for part, cell in at:
                gain = part.task.comparison(student, method)
                hollow = gain is not None and gain.verdict not in (BETTER, WORSE)
                dot = drawing.mark(axes, part.examples, cell.mean, method, hollow=hollow)
                told = f" ({span(band(cell))})" if band(cell) else ""
                target.tip(dot, text=f"{cell.label}, {part.name}: {number(cell.mean, 1)}{told}")
                about = {"student": student, "method": method, "examples": part.examples, "fraction": part.fraction}
                target.add(task.name, **about, mean=cell.mean, **bounds(band(cell)))
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(True)
        title = f"{task.title}: {student}" if len(task.students) > 1 else task.title
        axes.set(title=title, xlabel="training examples", ylabel=f"{metric_name(task.metric)} (%)")
    drawing.legend_below(target, drawn.values(), drawn, columns=4)
    return target


def _dot_plot(analysis: Analysis, name: str, rows: Sequence[int]) -> tuple[Canvas, list[list[Axes]]]:
    return drawing.stacked(analysis, name, [PANEL + ROW * max(1, count) for count in rows])


def _mark_with_seeds(
    target: Canvas, axes: Axes, row: int, cell: Cell, seeds: Sequence[float], mean: float, text: str
) -> None:
    """The mark of a cell, and below it small ones of its seeds where there are several."""
    if len(seeds) > 1:
        for value in seeds:
            drawing.mark(axes, value, row + 0.27, cell.method, hollow=True, size=2.2)
    target.tip(drawing.mark(axes, mean, row, cell.method), text=text)


def temperature_alpha(analysis: Analysis) -> Canvas:
    """The grids on the dev split as heat maps, over the first two values of their points; a panel for all others."""
    shown = [(task, cell, grid) for task in analysis.tasks for cell in task.cells for grid in _grids(cell)]
    heights = [0.8 + 0.26 * len(_values(grid, 1)) for *_, grid in shown]
    target, panels = drawing.stacked(analysis, "fig_temperature_alpha", heights)
    for (task, cell, grid), (axes,) in zip(shown, panels, strict=True):
        every, first = cell.selection.candidates, grid[0].configuration
        scores = [c.dev_mean for c in every if math.isfinite(c.dev_mean)]
        low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
        xs, ys = _values(grid, 0), _values(grid, 1)
        rest = slice(2, None if len(grid) < len(every) else 2)  # told where there are several panels
        for candidate in grid:
            point = candidate.configuration.point
            place = xs.index(point[0][1]), ys.index(point[1][1] if len(point) > 1 else 0.0)
            chosen, known = cell.selection.has(candidate), math.isfinite(candidate.dev_mean)
            level = (candidate.dev_mean - low) / (high - low) if high > low else 0.5  # brightness of the field
            field: Any = {"xy": (place[0] - 0.47, place[1] - 0.44), "width": 0.94, "height": 0.88}
            face, hatch = (matplotlib.colormaps["cividis"](0.1 + 0.8 * level), None) if known else ("none", "////")
            box = Rectangle(**field, facecolor=face, edgecolor=FAINT, linewidth=0.4, hatch=hatch)
            axes.add_patch(box)
            if chosen:
                axes.add_patch(Rectangle(**field, fill=False, edgecolor=CHOSEN, linewidth=2))
            ink = ("white" if level < 0.55 else "black") if known else FAINT
            axes.text(*place, number(candidate.dev_mean, 1, missing="none"), ha="center", va="center", color=ink)
            name, runs = candidate.configuration.hyperparameters, counted(len(candidate.completed), "seed")
            target.tip(box, text=f"{name}: {number(candidate.dev_mean, 2)} on dev, {runs}")
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


def learning_curves(analysis: Analysis) -> Canvas:
    """The dev metric after every epoch, of the selected configurations."""
    shown = [(task, found) for task in analysis.tasks if (found := list(_curves(task)))]
    target, panels = drawing.stacked(analysis, "fig_learning_curves", [1.6] * len(shown), base=0.5)
    labels: dict[str, Cell] = {}
    for (task, found), (axes,) in zip(shown, panels, strict=True):
        for cell, epochs, scores in found:
            look, mean = drawing.line(cell.method), scores.mean(axis=0)
            axes.plot(epochs, scores.T, color=look["color"], linewidth=0.5, alpha=0.4)
            (line,) = axes.plot(epochs, mean, **look)
            target.tip(line, text=f"{cell.label}: {number(float(mean[-1]), 1)} after epoch {epochs[-1]:g}")
            for run, values in zip(cell.runs, scores.tolist(), strict=True):
                about = {"student": cell.student, "method": cell.method, "seed": run.seed}
                for epoch, value in zip(epochs.tolist(), values, strict=True):
                    target.add(task.name, **about, epoch=epoch, dev=value)
            labels.setdefault(cell.label if analysis.several else cell.method, cell)
        axes.grid(True)
        ticks = sorted({epoch for _, epochs, _ in found for epoch in epochs.tolist()})
        if len(ticks) <= 10:  # as long as they can be told apart
            axes.set_xticks(ticks, [f"{epoch:g}" for epoch in ticks])
        if len(ticks) == 1:
            axes.set_xlim(ticks[0] - 1, ticks[0] + 1)
        axes.set(title=task.title, xlabel="epoch", ylabel=f"{metric_name(task.metric)} on dev (%)")
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


def calibration(analysis: Analysis) -> Canvas:
    """Reliability of the label probabilities, all runs of a cell together, with the expected calibration error."""
    scored = ((task, [c for c in task.cells if c.predictions and c.predictions[0].labels]) for task in analysis.tasks)
    shown = [(task, cells) for task, cells in scored if cells]
    heights = [2.3 + 0.16 * len(cells) for _, cells in shown]
    target, panels = drawing.stacked(analysis, "fig_calibration", heights)
    for (task, cells), (axes,) in zip(shown, panels, strict=True):
        lowest = 1 / cells[0].predictions[0].labels
        axes.plot([lowest, 1], [lowest, 1], color=FAINT, linewidth=0.8)
        for cell in cells:
            confidence = np.concatenate([p.confidence for p in cell.predictions if p.confidence is not None])
            right = np.concatenate([p.scores[task.metric] for p in cell.predictions])
            curve = reliability(confidence, right, analysis.settings.calibration_bins, lowest)
            used = np.flatnonzero(curve.count)
            label = f"{task.called(cell)}: ECE {number(100 * curve.error, 1)}"
            look = drawing.line(cell.method) | {"linewidth": 0.9, "label": label}
            (line,) = axes.plot(curve.confidence[used], curve.accuracy[used], **look)
            target.tip(line, text=f"{label} points")
            for i in used.tolist():
                place = {"confidence": float(curve.confidence[i]), "right": float(curve.accuracy[i])}
                about = {"student": cell.student, "method": cell.method, **place, "count": int(curve.count[i])}
                target.add(task.name, **about, ece_points=100 * curve.error)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        axes.grid(True)
        axes.set(title=task.title, xlabel="probability of the answer", ylabel="share right")
    return target


FIGURES: tuple[Callable[[Analysis], Canvas], ...] = (
    kd_gain,
    kd_comparison,
    teacher_agreement,
    calibration,
    learning_curves,
    temperature_alpha,
    *COSTS,
)

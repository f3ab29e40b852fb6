"""The figures of the report: those of the contract and four that explain them, in the order of the page.

How good the methods are (scores, gains, agreement with the teacher: dot plots with intervals), what the models cost
(size, latency and memory as benchmarked, alone and against quality), and why a method does what it does (its grid,
its learning curves, the calibration of its probabilities).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator

from kdsuite.config import TEACHER
from kdsuite.evaluate.crossed import Floats, Interval
from kdsuite.evaluate.selection import Candidate, Record, finite
from kdsuite.report import drawing
from kdsuite.report.analysis import Analysis, TaskAnalysis
from kdsuite.report.cells import Cell
from kdsuite.report.comparisons import NO_EVIDENCE, TOO_FEW_SEEDS
from kdsuite.report.drawing import FAINT, INK, PANEL, ROW, Canvas
from kdsuite.report.load import read_history
from kdsuite.report.statistics import reliability
from kdsuite.report.tables import bounds
from kdsuite.report.words import counted, metric_name, number, signed, span

SCATTER = 1.75  # inches: height of a panel
OTHER = "other"  # the method of models that are no part of the plan
LOGARITHMIC = 4.0  # sizes that differ by more than this factor get a logarithmic axis
CHOSEN = "#D55E00"


# ------------------------------------------------------------------------------------------------- quality


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
            text = f"{name}: {number(cell.mean, 1)} ({span(cell.interval)}), {size}"
            if cell.interval is not None:
                drawing.bar(axes, cell.interval, row, cell.method)
            _mark_with_seeds(target, axes, row, cell, seeds, cell.mean, text)
            about = {"student": cell.student, "method": cell.method, "metric": task.metric}
            target.add(task.name, **about, kind="mean", seed="", value=cell.mean, **bounds(cell.interval))
            for run, mean in zip(cell.runs, seeds, strict=True):
                target.add(task.name, **about, kind="seed", seed=run.seed, value=mean)
        drawing.title(axes, task.title, f"{metric_name(task.metric)} (%)")
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
            dot = drawing.mark(axes, c.difference, row, c.a, hollow=c.verdict in (NO_EVIDENCE, TOO_FEW_SEEDS))
            target.tip(dot, text=f"{c.name}: {signed(c.difference)} ({span(c.interval)}), {c.verdict}")
            at_right = axes.get_yaxis_transform()
            axes.text(1.02, row, signed(c.difference), transform=at_right, ha="left", va="center")
            about = {"student": c.student, "comparison": c.name, "metric": c.metric, "verdict": c.verdict}
            target.add(c.task, **about, difference=c.difference, **bounds(c.interval))
        if not names:
            drawing.absent(axes, 0, "no method besides B0 was planned")
        drawing.title(axes, task.title, f"difference in {metric_name(task.metric)} (points)")
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
        drawing.title(axes, task.title, "same answer as the teacher (%)")
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


# ------------------------------------------------------------------------------------- cost against quality


@dataclass(frozen=True)
class Point:
    """A measured variant whose quality is known: `x` is the measured column, `quality` in percent.

    `noise` is by how many percent decoding times differ by chance.
    """

    variant: str
    method: str
    x: float
    quality: float
    interval: Interval | None
    quantized: bool
    parameters: int | None
    noise: float

    @property
    def label(self) -> str:
        """What the legend's method alone would not tell, "S2 int4" or a model's name; empty for the others."""
        return self.variant.replace(f"{self.method} ", "") if self.quantized or self.method == OTHER else ""


def performance_vs_size(analysis: Analysis) -> Canvas:
    """Figure 4.1: quality against size on disk."""
    return _scatter(analysis, "fig_4_1_performance_vs_size", "disk_mb", "weights on disk (MB)", front=False)


def pareto(analysis: Analysis) -> Canvas:
    """Figure 4.4: quality against decoding time, with the front of what nothing else beats in both."""
    label = "decoding time (ms per token)"
    return _scatter(analysis, "fig_4_4_pareto", "decode_ms_per_token", label, front=True)


def _scatter(analysis: Analysis, name: str, column: str, label: str, front: bool) -> Canvas:
    shown = [(task, points) for task in analysis.tasks if (points := _points(analysis, task, column))]
    target, panels = drawing.stacked(analysis, name, [SCATTER] * len(shown), base=0.55)
    for (task, points), (axes,) in zip(shown, panels, strict=True):
        sizes = [point.x for point in points]
        if max(sizes) > LOGARITHMIC * min(sizes):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        for rank, point in enumerate(points):
            _draw_point(target, axes, point, 1.0 if front else _apart(points, rank), label)
            about = {"variant": point.variant, "method": point.method, "parameters": point.parameters}
            values = {column: point.x, "metric": task.metric, "quality": point.quality}
            target.add(task.name, **about, **values, **bounds(point.interval))
        # names beside the marks that need one, below and above in turn, so that neighbours' stay apart
        for rank, point in enumerate(sorted((p for p in points if p.label), key=lambda p: p.x)):
            side, align = ((-5, "top"), (5, "bottom"))[rank % 2]
            place = {"xytext": (0, side), "textcoords": "offset points", "ha": "center", "va": align}
            axes.annotate(point.label, (point.x, point.quality), fontsize=6, **place)
        if front:
            best = sorted((p for p in points if not any(beats(q, p) for q in points)), key=lambda p: p.x)
            line = {"color": FAINT, "linewidth": 0.9, "zorder": 1}
            axes.plot([p.x for p in best], [p.quality for p in best], "--", **line)
        axes.margins(x=0.12, y=0.22)
        drawing.grid(axes)
        drawing.title(axes, task.title, label, f"{metric_name(task.metric)} (%)")
    every = [point for _, points in shown for point in points]
    handles = {point.method: drawing.handle(point.method) for point in every}
    if any(point.quantized for point in every):
        handles["quantized"] = Line2D([], [], marker="o", color=FAINT, markerfacecolor="none", linestyle="none")
    if shown:
        drawing.legend_below(target, handles.values(), handles)
    return target


def _points(analysis: Analysis, task: TaskAnalysis, column: str) -> list[Point]:
    """The quality is this report's mean where the variant is one of its cells, else what the benchmark recorded."""
    points = []
    for row in _basic_rows(analysis, task):
        method, bits = str(row.get("method")), bool(row.get("quantization"))
        cell = None if bits else task.cell(method, None if method == TEACHER else row.get("student"))
        interval = cell.interval if cell else None
        quality = cell.mean if cell and interval else finite(row.get("metric_value"))
        x, noise = finite(row.get(column)), finite(row.get("noise_percent"))
        if x > 0 and math.isfinite(quality):
            noise = 0.0 if math.isnan(noise) else noise
            points.append(Point(_variant(row), method, x, quality, interval, bits, row.get("parameters"), noise))
    return points


def _draw_point(target: Canvas, axes: Axes, point: Point, shift: float, label: str) -> None:
    x = point.x * shift
    if point.interval:
        axes.plot([x, x], point.interval, color=drawing.look(point.method).color, linewidth=0.9, alpha=0.8)
    dot = drawing.mark(axes, x, point.quality, point.method, hollow=point.quantized)
    target.tip(dot, text=f"{point.variant}: {number(point.quality, 1)} % at {number(point.x, 1)}, {label}")


def _apart(points: Sequence[Point], rank: int) -> float:
    """A factor that sets marks of one size side by side."""
    same = [i for i, point in enumerate(points) if math.isclose(point.x, points[rank].x, rel_tol=0.05)]
    return 1.05 ** (same.index(rank) - (len(same) - 1) / 2)


def beats(one: Point, other: Point) -> bool:
    """Better and not slower, or as good and faster; times within the noise are equal."""
    ahead = one.x < other.x / (1 + other.noise / 100)
    level = one.x <= other.x * (1 + other.noise / 100)
    return (one.quality > other.quality and level) or (one.quality == other.quality and ahead)


# --------------------------------------------------------------------------------------------- measurements


@dataclass(frozen=True)
class Quantity:
    """A column of the benchmark with its axis label; `upper` ends its line, `base` is a part of it."""

    column: str
    label: str
    upper: str = ""
    base: str = ""


def latency(analysis: Analysis) -> Canvas:
    """Figure 4.2: time to the first token and per further token."""
    first = Quantity("first_token_ms", "first token (ms)", upper="p95_first_token_ms")
    further = Quantity("decode_ms_per_token", "each further token (ms)", upper="p95_ms_per_token")
    return _measured(analysis, "fig_4_2_latency", (first, further))


def memory(analysis: Analysis) -> Canvas:
    """Figure 4.6: peak memory in inference, beside the size on disk."""
    peak = Quantity("peak_memory_mb", "peak memory (MB)", base="runtime_memory_mb")
    return _measured(analysis, "fig_4_6_memory", (peak, Quantity("disk_mb", "weights on disk (MB)")))


def _measured(analysis: Analysis, name: str, quantities: Sequence[Quantity]) -> Canvas:
    """A dot plot of measurements, a panel per task and quantity."""
    shown = [(task, rows) for task in analysis.tasks if (rows := _basic_rows(analysis, task))]
    heights, count = [PANEL + ROW * len(rows) for _, rows in shown], len(quantities)
    target, panels = drawing.stacked(analysis, name, heights, columns=count)
    columns = [name for q in quantities for name in (q.column, q.upper, q.base) if name]
    for (task, rows), line in zip(shown, panels, strict=True):
        for axes, quantity in zip(line, quantities, strict=True):
            drawing.dot_rows(axes, [_variant(row) for row in rows])
            for place, row in enumerate(rows):
                _draw_measured(target, axes, place, row, quantity)
            axes.set_xlim(left=0)
            axes.set_xlabel(quantity.label)
        line[0].set_title(task.title)
        for row in rows:
            about = {name: row.get(name) for name in ("batch_size", "prompt_tokens", "threads")}
            values = {name: finite(row.get(name)) for name in columns}
            target.add(task.name, variant=_variant(row), **about, **values)
    return target


def _draw_measured(target: Canvas, axes: Axes, place: int, row: Record, quantity: Quantity) -> None:
    value, method = finite(row.get(quantity.column)), str(row.get("method"))
    if math.isnan(value):
        drawing.absent(axes, place, "not measured")
        return
    high, base = finite(row.get(quantity.upper)), finite(row.get(quantity.base))
    color, text = drawing.look(method).color, f"{_variant(row)}: {number(value, 2)}"
    if not quantity.upper:
        start = base if 0 < base < value else 0.0
        axes.plot([0, start], [place, place], color=FAINT, linewidth=1.0)
        axes.plot([start, value], [place, place], color=color, linewidth=2.0)
    elif math.isfinite(high):
        axes.plot([value, high], [place, place], color=color, linewidth=1.2)
        text += f", 95th percentile {number(high, 2)}"
    dot = drawing.mark(axes, value, place, method, hollow=bool(row.get("quantization")))
    target.tip(dot, text=text)


def _basic_rows(analysis: Analysis, task: TaskAnalysis) -> list[Record]:
    """Per variant the row of the plainest conditions: smallest batch, median (or shortest) prompt, most threads."""
    best: dict[tuple[bool, str], Record] = {}
    for row in analysis.results.benchmarks:
        if row.get("task") in (task.name, None):
            name = row.get("method") == OTHER, _variant(row)
            if name not in best or _plainness(row) < _plainness(best[name]):
                best[name] = row
    return list(best.values())


def _plainness(row: Record) -> tuple[float, ...]:
    prompt = 0 if row.get("prompt") in ("median", None) else 1
    return (row.get("batch_size") or 0, prompt, row.get("prompt_tokens") or 0, -(row.get("threads") or 0))


def _variant(row: Record) -> str:
    return str(row.get("variant") or row.get("model"))


# -------------------------------------------------------------------------------------------------- insight


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
    """The reliability of all runs of a cell together."""
    confidence = np.concatenate([p.confidence for p in cell.predictions if p.confidence is not None])
    right = np.concatenate([p.scores[task.metric] for p in cell.predictions])
    curve = reliability(confidence, right, bins, lowest=1 / cell.predictions[0].labels)
    used = np.flatnonzero(curve.count)
    label = f"{task.called(cell)}: ECE {number(100 * curve.error, 1)}"
    look = drawing.line(cell.method) | {"linewidth": 0.9, "label": label}
    (line,) = axes.plot(curve.confidence[used], curve.accuracy[used], **look)
    target.tip(line, text=f"{label} points")
    for i in used.tolist():
        place = {"confidence": float(curve.confidence[i]), "right": float(curve.accuracy[i])}
        about = {"student": cell.student, "method": cell.method, **place, "count": int(curve.count[i])}
        target.add(task.name, **about, ece_points=100 * curve.error)


FIGURES: tuple[Callable[[Analysis], Canvas], ...] = (
    kd_comparison,
    kd_gain,
    performance_vs_size,
    pareto,
    latency,
    memory,
    temperature_alpha,
    learning_curves,
    teacher_agreement,
    calibration,
)

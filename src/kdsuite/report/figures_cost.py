"""What the models cost: size, latency and memory as benchmarked, alone and against quality."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from kdsuite.config import TEACHER
from kdsuite.evaluate.crossed import Interval
from kdsuite.evaluate.selection import Record, finite
from kdsuite.report import drawing
from kdsuite.report.analysis import Analysis, TaskAnalysis
from kdsuite.report.drawing import FAINT, PANEL, ROW, Canvas
from kdsuite.report.tables import bounds
from kdsuite.report.words import metric_name, number

SCATTER = 1.75  # inches: height of a panel
OTHER = "other"  # the method of models that are no part of the plan
LOGARITHMIC = 4.0  # sizes that differ by more than this factor get a logarithmic axis


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
        shifts = {p.variant: 1.0 if front else _apart(points, rank) for rank, p in enumerate(points)}
        for point in points:
            x = point.x * shifts[point.variant]
            if point.interval:
                axes.plot([x, x], point.interval, color=drawing.look(point.method).color, linewidth=0.9, alpha=0.8)
            dot = drawing.mark(axes, x, point.quality, point.method, hollow=point.quantized)
            target.tip(dot, text=f"{point.variant}: {number(point.quality, 1)} % at {number(point.x, 1)}, {label}")
            about = {"variant": point.variant, "method": point.method, "parameters": point.parameters}
            values = {column: point.x, "metric": task.metric, "quality": point.quality}
            target.add(task.name, **about, **values, **bounds(point.interval))
        # names beside the marks that need one: at the right end of a crowd, else below and above in turn
        for rank, point in enumerate(sorted((p for p in points if p.label), key=lambda p: p.x)):
            near = [p for p in points if 0.6 < p.x / point.x < 1.7]
            at_end = len(near) > 2 and point is max(near, key=lambda p: (p.x, points.index(p)))
            (x, y), align = ((6, 0), "center") if at_end else ((0, -5), "top") if rank % 2 == 0 else ((0, 5), "bottom")
            place = {"xytext": (x, y), "textcoords": "offset points", "ha": "left" if at_end else "center", "va": align}
            axes.annotate(point.label, (point.x * shifts[point.variant], point.quality), fontsize=6, **place)
        if front:
            best = sorted((p for p in points if not any(beats(q, p) for q in points)), key=lambda p: p.x)
            line = {"color": FAINT, "linewidth": 0.9, "zorder": 1}
            axes.plot([p.x for p in best], [p.quality for p in best], "--", **line)
        axes.margins(x=0.12, y=0.22)
        axes.grid(True)
        axes.set(title=task.title, xlabel=label, ylabel=f"{metric_name(task.metric)} (%)")
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


def _apart(points: Sequence[Point], rank: int) -> float:
    """A factor that sets marks of one size side by side."""
    same = [i for i, point in enumerate(points) if math.isclose(point.x, points[rank].x, rel_tol=0.05)]
    return 1.05 ** (same.index(rank) - (len(same) - 1) / 2)


def beats(one: Point, other: Point) -> bool:
    """Better and not slower, or as good and faster; times within the noise are equal."""
    ahead = one.x < other.x / (1 + other.noise / 100)
    level = one.x <= other.x * (1 + other.noise / 100)
    return (one.quality > other.quality and level) or (one.quality == other.quality and ahead)


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
    variants: dict[tuple[bool, str], list[Record]] = {}
    for row in analysis.results.benchmarks:
        if row.get("task") in (task.name, None):
            variants.setdefault((row.get("method") == OTHER, _variant(row)), []).append(row)
    return [min(rows, key=_plainness) for rows in variants.values()]


def _plainness(row: Record) -> tuple[float, ...]:
    other = row.get("prompt") not in ("median", None)
    return (row.get("batch_size") or 0, other, row.get("prompt_tokens") or 0, -(row.get("threads") or 0))


def _variant(row: Record) -> str:
    return str(row.get("variant") or row.get("model"))


COSTS: tuple[Callable[[Analysis], Canvas], ...] = (performance_vs_size, pareto, latency, memory)

"""How figures look and how they are saved: one style for print and page.

A figure is one column wide (3.5 inches) with its panels below each other, so that it can be read in a
two-column paper and on a phone. Every method has one colour (Okabe & Ito's colour-blind-safe set) and one
marker, the same everywhere, so that grey prints stay readable. Where there is no number, the place says why.

Each figure is laid out once and written as PNG (300 dpi), PDF and SVG. In the SVG the ink becomes
`currentColor` (light and dark pages) and every mark carries its values for a tooltip.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from fontTools import subset
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdsuite.report.wording import task_name

INK, FAINT = "#222222", "#8c8c8c"
WIDTH, ROW, PANEL = 3.5, 0.2, 0.72  # inches: of a figure, per row of a dot plot, of a panel's own furniture
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "hatch.linewidth": 0.5,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
COLORS = {
    "teacher": "#D55E00",
    "zero-shot": "#999999",
    "B0": "#6E7B8B",
    "KD1": "#0072B2",
    "KD2": "#E69F00",
    "KD3": "#009E73",
    "KD1+KD3": "#CC79A7",
}
MARKERS = {"teacher": "*", "zero-shot": "X", "B0": "o", "KD1": "s", "KD2": "^", "KD3": "D", "KD1+KD3": "P"}
LINES = {"B0": "-", "KD1": "--", "KD2": "-.", "KD3": ":", "KD1+KD3": (0, (5, 1, 1, 1, 1, 1))}

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Look:
    color: str
    marker: str
    line: Any


def look(method: str) -> Look:
    """The method's colour, marker and line; a method that is not listed gets a neutral one."""
    return Look(COLORS.get(method, "#56B4E9"), MARKERS.get(method, "v"), LINES.get(method, "-"))


@dataclass
class Canvas:
    """A figure on its way: panels, the rows that its CSV will hold, and the tooltips of its marks."""

    name: str
    title: str
    caption: str
    figure: Figure
    rows: Rows = field(default_factory=list)
    tips: list[str] = field(default_factory=list)

    def add(self, task: str, **values: Any) -> None:
        """A row of the figure's CSV."""
        self.rows.append({"task": task} | values)

    def tip(self, *artists: Any, text: str) -> None:
        """Show `text` over these marks in the page."""
        for artist in artists:
            artist.set_gid(f"tip-{len(self.tips)}-")
        self.tips.append(text)


@dataclass(frozen=True)
class Drawn:
    """A finished figure as bytes, with its data and what it shows in words."""

    name: str
    title: str
    caption: str
    png: bytes
    pdf: bytes
    svg: str
    rows: Rows


def styled(**more: Any) -> AbstractContextManager[None]:
    """The common style while figures are made."""
    rc: Any = STYLE | more
    return matplotlib.rc_context(rc)


def canvas(name: str, title: str, caption: str, height: float) -> Canvas:
    return Canvas(name, title, caption, Figure(figsize=(WIDTH, height), layout="constrained"))


def panels(
    target: Canvas, count: int, heights: Sequence[float] | None = None, columns: int = 1
) -> list[list[Axes]]:
    """A grid of `count` rows of axes; with several columns the panels of a row share their vertical axis."""
    grid = target.figure.subplots(count, columns, squeeze=False, sharey="row", height_ratios=heights)
    return [list(row) for row in grid]


def empty(name: str, title: str, caption: str, reason: str) -> Canvas:
    """A figure without data says so."""
    target = canvas(name, title, caption, 1.0)
    axes = panels(target, 1)[0][0]
    axes.axis("off")
    axes.text(0.5, 0.5, reason, ha="center", va="center", color=FAINT, style="italic", wrap=True)
    return target


def dot_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Prepare a dot plot: a labelled row each, the first on top, with faint guides."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=FAINT, alpha=0.3, linewidth=0.4)
    axes.set_axisbelow(True)


def absent(axes: Axes, row: int, word: str) -> None:
    """Mark a row of a dot plot that has no number."""
    axes.text(
        0.5,
        row,
        word,
        transform=axes.get_yaxis_transform(),
        ha="center",
        va="center",
        color=FAINT,
        style="italic",
    )


def bar(axes: Axes, interval: tuple[float, float], row: int, method: str) -> None:
    """The interval of a row of a dot plot."""
    axes.plot(interval, [row, row], color=look(method).color, linewidth=1.6, solid_capstyle="butt")


def grid(axes: Axes) -> None:
    axes.grid(color=FAINT, alpha=0.3, linewidth=0.4)


def title(axes: Axes, task: str, xlabel: str, ylabel: str = "") -> None:
    axes.set_title(task_name(task))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)


def mark(axes: Axes, x: float, y: float, method: str, hollow: bool = False, size: float = 5.0) -> Any:
    style = look(method)
    scale = 1.5 if style.marker == "*" else 1.0
    (artist,) = axes.plot(
        [x],
        [y],
        style.marker,
        color=style.color,
        markersize=size * scale,
        markerfacecolor="none" if hollow else style.color,
        markeredgewidth=0.9,
        linestyle="none",
        zorder=3,
    )
    return artist


def handle(method: str) -> Line2D:
    """A method's entry in a legend of marks."""
    style = look(method)
    return Line2D([], [], marker=style.marker, color=style.color, linestyle="none", markersize=5)


def legend_below(target: Canvas, handles: Iterable[Any], labels: Iterable[str], columns: int = 3) -> None:
    target.figure.legend(
        list(handles),
        list(labels),
        loc="outside lower center",
        ncols=columns,
        handletextpad=0.4,
        columnspacing=1.2,
    )


def render(target: Canvas) -> Drawn:
    """Lay the figure out once, then write it three times; no dates, so that equal data give equal files."""
    with styled():
        _lay_out(target)
        png, pdf = io.BytesIO(), io.BytesIO()
        target.figure.savefig(png, format="png", dpi=300, metadata={"Software": None})
        with _glyphs_alone():
            target.figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
        svg = _svg(target)
    return Drawn(target.name, target.title, target.caption, png.getvalue(), pdf.getvalue(), svg, target.rows)


class _GlyphsAlone(subset.Options):
    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.drop_tables += ["GDEF", "GPOS", "GSUB", "MATH", "kern"]


@contextmanager
def _glyphs_alone() -> Iterator[None]:
    """Embed fonts without their rules for setting text, which is set by then.

    Matplotlib has no setting for it, and cutting the rules down to a figure's glyphs takes half of all drawing.
    """
    usual, subset.Options = subset.Options, _GlyphsAlone
    try:
        yield
    finally:
        subset.Options = usual


def for_page(target: Canvas) -> str:
    """The figure as SVG alone, ready to be part of a page."""
    with styled():
        _lay_out(target)
        return _svg(target)


def _lay_out(target: Canvas) -> None:
    engine = target.figure.get_layout_engine()
    assert engine is not None
    engine.execute(target.figure)
    target.figure.set_layout_engine(None)  # for good: with "none", every file would be drawn twice


def _svg(target: Canvas) -> str:
    written = io.BytesIO()
    with styled(**{"svg.hashsalt": target.name}):
        target.figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(written.getvalue().decode(), target)


def _for_page(svg: str, target: Canvas) -> str:
    """Make a saved SVG part of a page: no prologue, the page's ink and font, names of its own, tooltips."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = (
        svg.replace(INK, "currentColor").replace("'DejaVu Sans'", "inherit").replace("DejaVu Sans", "inherit")
    )
    svg = re.sub(r'<g id="tip-(\d+)-">', lambda m: _tip(target.tips[int(m[1])]), svg)
    svg = re.sub(
        r' id="((?:figure|axes|patch|line2d|matplotlib\.axis|[xy]tick|text|legend|PathCollection)[^"]*)"',
        "",
        svg,
    )
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    label = html.escape(f"{target.title}. {target.caption}", quote=True)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _tip(text: str) -> str:
    escaped = html.escape(text, quote=True)
    return f'<g class="tip" data-tip="{escaped}">'

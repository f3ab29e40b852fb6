"""How figures look and how they are saved: one style for print and page.

A figure is one column wide (3.5 inches) with its panels below each other, so that it can be read in a
two-column paper and on a phone. Every method has one colour (Okabe & Ito's colour-blind-safe set) and one
marker, the same everywhere, so that grey prints stay readable. Where there is no number, the place says why.

Each figure is laid out once and written as PNG (300 dpi), PDF and SVG. In the SVG the ink becomes
`currentColor` (light and dark pages) and every mark carries its values for a tooltip.
"""

import html
import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import matplotlib
from fontTools import subset
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdsuite.report import words
from kdsuite.report.analysis import Analysis
from kdsuite.report.tables import csv_text
from kdsuite.report.words import CONTENTS
from kdsuite.store.files import atomic_write_bytes, atomic_write_text

INK, FAINT = "#222222", "#8c8c8c"
WIDTH, ROW, PANEL = 3.5, 0.2, 0.72  # inches: of a figure, per row of a dot plot, of a panel's own furniture
ABSENT: Any = {"ha": "center", "va": "center", "color": FAINT, "style": "italic"}  # a word instead of a number
STYLE = words.TEMPLATES / "report.mplstyle"


class Look(NamedTuple):
    color: str
    marker: str
    line: Any


LOOKS = {
    "teacher": Look("#D55E00", "*", "-"),
    "zero-shot": Look("#999999", "X", "-"),
    "B0": Look("#6E7B8B", "o", "-"),
    "KD1": Look("#0072B2", "s", "--"),
    "KD2": Look("#E69F00", "^", "-."),
    "KD3": Look("#009E73", "D", ":"),
    "KD1+KD3": Look("#CC79A7", "P", (0, (5, 1, 1, 1, 1, 1))),
    "GKD": Look("#56B4E9", "v", (0, (3, 1, 1, 1))),
    "DSS": Look("#8C6BB1", "p", (0, (1, 1))),  # none of the eight is left that can be read on white
}


OTHERS = (("<", "-"), (">", "--"), ("h", "-."), ("d", ":"), ("8", (0, (5, 1))))  # markers and lines


def look(method: str) -> Look:
    """The method's colour, marker and line. A variant (`KD1-uld`) has its method's colour, one that is not listed a
    neutral one; marker and line are those of its name, so that they are the same everywhere."""
    base = LOOKS.get(method.partition("-")[0], Look("#999933", "", ""))
    return LOOKS.get(method) or Look(base.color, *OTHERS[crc32(method.encode()) % len(OTHERS)])


@dataclass
class Canvas:
    """A figure on its way: panels, the rows that its CSV will hold, and the tooltips of its marks."""

    name: str
    title: str
    caption: str
    figure: Figure
    rows: list[dict[str, Any]] = field(default_factory=list)
    tips: list[str] = field(default_factory=list)
    svg: str = ""  # once saved

    def add(self, task: str, **values: Any) -> None:
        """A row of the figure's CSV."""
        self.rows.append({"task": task} | values)

    def tip(self, *artists: Any, text: str) -> None:
        """Show `text` over these marks in the page."""
        for artist in artists:
            artist.set_gid(f"tip-{len(self.tips)}-")
        self.tips.append(text)


def styled(**more: Any) -> AbstractContextManager[None]:
    """The common style while figures are made, whatever a user's own settings are."""
    rc: Any = more
    return matplotlib.rc_context(rc, STYLE)


Panels = list[list[Axes]]  # rows of axes


def canvas(
    name: str, title: str, caption: str, heights: Sequence[float], base: float = 0.0, columns: int = 1
) -> tuple[Canvas, Panels]:
    """A figure with panels below each other, of these heights in inches on top of `base`, and their axes; with several
    columns the panels of a row share their vertical axis.
    """
    target = Canvas(name, title, caption, Figure(figsize=(WIDTH, base + sum(heights)), layout="constrained"))
    grid = target.figure.subplots(len(heights), columns, squeeze=False, sharey="row", height_ratios=heights)
    return target, [list(row) for row in grid]


def stacked(
    analysis: Analysis, name: str, heights: Sequence[float], base: float = 0.0, columns: int = 1
) -> tuple[Canvas, Panels]:
    """A figure of the report, as `canvas`; one without any panel says what is missing."""
    about = CONTENTS["figures"][name]
    named = name, about["title"], words.caption(analysis, "figures", name)
    if heights:
        return canvas(*named, heights, base, columns)
    target, [[blank]] = canvas(*named, [1.0])
    blank.axis("off")
    blank.text(0.5, 0.5, about["without"], wrap=True, **ABSENT)
    return target, []


def dot_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Prepare a dot plot: a labelled row each, the first on top, with faint guides."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)


def absent(axes: Axes, row: int, word: str) -> None:
    """Mark a row of a dot plot that has no number."""
    axes.text(0.5, row, word, transform=axes.get_yaxis_transform(), **ABSENT)


def bar(axes: Axes, interval: tuple[float, float], row: int, method: str) -> None:
    """The interval of a row of a dot plot."""
    axes.plot(interval, [row, row], color=look(method).color, linewidth=1.6, solid_capstyle="butt")


def mark(axes: Axes, x: float, y: float, method: str, hollow: bool = False, size: float = 5.0) -> Any:
    color, marker, _ = look(method)
    fill = {"markerfacecolor": "none" if hollow else color, "markeredgewidth": 0.9}
    size *= 1.5 if marker == "*" else 1.0
    (artist,) = axes.plot([x], [y], marker, color=color, markersize=size, linestyle="none", zorder=3, **fill)
    return artist


def line(method: str) -> dict[str, Any]:
    """How a method's curve is drawn."""
    color, marker, style = look(method)
    return {"color": color, "linestyle": style, "marker": marker, "markersize": 3.5}


def handle(method: str) -> Line2D:
    """A method's entry in a legend of marks."""
    color, marker, _ = look(method)
    return Line2D([], [], marker=marker, color=color, linestyle="none", markersize=5)


def legend_below(target: Canvas, handles: Iterable[Any], labels: Iterable[str], columns: int = 3) -> None:
    place = {"loc": "outside lower center", "ncols": columns, "handletextpad": 0.4, "columnspacing": 1.2}
    target.figure.legend(list(handles), list(labels), **place)


def save(target: Canvas, folder: Path) -> None:
    """Write the figure three times: PNG and PDF beside a CSV of what is drawn, one line per mark, and `svg` for the
    page. No dates, so that equal data give equal files.
    """
    target.svg = for_page(target)
    png, pdf = io.BytesIO(), io.BytesIO()
    with styled():
        target.figure.savefig(png, format="png", dpi=300, metadata={"Software": None})
        with _glyphs_alone():
            target.figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    columns = list(dict.fromkeys(name for row in target.rows for name in row)) or ["task"]
    atomic_write_bytes(folder / f"{target.name}.png", png.getvalue())
    atomic_write_bytes(folder / f"{target.name}.pdf", pdf.getvalue())
    atomic_write_text(folder / f"{target.name}.csv", csv_text(columns, target.rows, missing=""))


@contextmanager
def _glyphs_alone() -> Iterator[None]:
    """Embed fonts without their rules for setting text, which is set by then.

    Matplotlib has no setting for it, and cutting the rules down to a figure's glyphs takes half of all drawing.
    """
    usual = subset.Options

    def without_rules(**named: Any) -> subset.Options:
        options = usual(**named)
        options.drop_tables += ["GDEF", "GPOS", "GSUB", "MATH", "kern"]
        return options

    subset.Options = without_rules
    try:
        yield
    finally:
        subset.Options = usual


def for_page(target: Canvas) -> str:
    """The figure, laid out for good, as SVG that is part of a page: no prologue, the page's ink and font, no names but
    its own, tooltips.
    """
    engine, written = target.figure.get_layout_engine(), io.BytesIO()
    assert engine is not None
    with styled(**{"svg.hashsalt": target.name}):
        for axes in target.figure.axes:
            if len(title := axes.get_title("left")) > 40:  # of a task that a person has named
                axes.set_title(textwrap.fill(title, 40), loc="left")
        engine.execute(target.figure)
        target.figure.set_layout_engine(None)  # with "none", every file would be drawn twice
        target.figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    svg = written.getvalue().decode()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for ours, theirs in ((INK, "currentColor"), ("'DejaVu Sans'", "inherit"), ("DejaVu Sans", "inherit")):
        svg = svg.replace(ours, theirs)
    tips = [html.escape(text, quote=True) for text in target.tips]
    svg = re.sub(r'<g id="tip-(\d+)-">', lambda m: f'<g class="tip" data-tip="{tips[int(m[1])]}">', svg)
    names = r"(?:figure|axes|patch|line2d|matplotlib\.axis|[xy]tick|text|legend|PathCollection)"
    svg = re.sub(rf' id="({names}[^"]*)"', "", svg)
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg [^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    label = html.escape(f"{target.title}. {target.caption}", quote=True)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)

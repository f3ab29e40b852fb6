"""The report for a thesis, to be edited: narrative, tables and figures as Markdown, or as HTML so simple (headings,
paragraphs, tables, embedded images) that a word processor opens it. Both are written from one list of blocks.
"""

import base64
import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdsuite.config.report import ReportSettings
from kdsuite.report.analysis import Analysis, analyse, losses
from kdsuite.report.latex import TEXT, by_task, columns_of
from kdsuite.report.load import load
from kdsuite.report.tables import Table, all_tables
from kdsuite.report.words import CONTENTS, caption, said
from kdsuite.store.files import atomic_write_text
from kdsuite.store.layout import Layout

FILES = {"md": "report.md", "html": "report-plain.html"}
SIGNS = {r"\,": " ", r"$\Delta$": "Δ ", r"$\alpha$": "α"}  # else names between dollars


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Grid:
    """One task's part of a table; of a `strong` row the cell at `mean` is bold."""

    about: str
    headings: Sequence[str]
    numeric: Sequence[bool]
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = frozenset()
    mean: int = -1


@dataclass(frozen=True)
class Picture:
    """A figure by its file in `figures/`."""

    file: str
    title: str
    caption: str


Block = Heading | Grid | Picture | str  # a text is a paragraph


def write(results: Path, settings: ReportSettings, form: str) -> Path:
    """Write `report.md` or `report-plain.html` of a folder whose report is built; returns where. `form`: md, html."""
    analysis, figures = analyse(load(results), settings), Layout(results).figures
    path = results / FILES[form]
    written = as_html(blocks(analysis, figures), figures) if form == "html" else as_markdown(blocks(analysis, figures))
    atomic_write_text(path, written)
    return path


def blocks(analysis: Analysis, figures: Path) -> Iterator[Block]:
    """What the document holds, in order: the narrative, the tables that are shown, the figures there are, remarks."""
    for paragraph in said("narrative", analysis, losses(analysis.runs)).split("\n\n"):
        marks, _, text = paragraph.partition(" ")
        yield Heading(len(marks), text) if set(marks) == {"#"} else paragraph
    yield Heading(1, "Tables")
    for table in all_tables(analysis):
        if "shown" in CONTENTS["tables"][table.name] and table.rows:
            yield Heading(2, _titled(table.name))
            yield caption(analysis, "tables", table.name, read=plain)
            yield from _grids(table, analysis)
    yield Heading(1, "Figures")
    for name, about in CONTENTS["figures"].items():
        if (figures / f"{name}.png").exists():
            yield Picture(f"{name}.png", about["title"], caption(analysis, "figures", name))
    if analysis.notes:
        yield Heading(1, "Remarks on the data")
        yield from analysis.notes


def plain(text: str) -> str:
    """A caption or heading that is written for LaTeX, as text."""
    for sign, written in SIGNS.items():
        text = text.replace(sign, written)
    return re.sub(r"\\([&%#_])", r"\1", re.sub(r"\$([^$]+)\$", r"\1", text))


def _titled(name: str) -> str:
    """`table_4_1_main_results` → "Table 4.1: main results", `benchmarks` → "Benchmarks"."""
    words = re.sub(r"^table_(\d+)_(\d+)_", r"table \1.\2: ", name).replace("_", " ")
    return words[0].upper() + words[1:]


def _grids(table: Table, analysis: Analysis) -> Iterator[Grid]:
    columns = columns_of(table, analysis)
    names = [column.name for column in columns]
    for about, rows in by_task(table, analysis):
        yield Grid(
            about,
            [plain(column.heading) for column in columns],
            [column.form != TEXT for column in columns],
            [[column.text(row) for column in columns] for _, row in rows],
            frozenset(place for place, (index, _) in enumerate(rows) if index in table.strong),
            names.index("mean") if "mean" in names else -1,
        )


def as_markdown(parts: Iterator[Block]) -> str:
    """Pipe tables, and figures linked where they lie."""
    written = []
    for part in parts:
        match part:
            case Heading(level, text):
                written.append(f"{'#' * level} {_escaped(text)}")
            case Picture(file, title, text):
                written.append(f"![{_escaped(f'{title}. {text}')}](figures/{file})")
            case Grid():
                rule = ["---:" if numeric else ":---" for numeric in part.numeric]
                rows = [[*map(_escaped, part.headings)], rule, *_cells(part, _escaped, "**{}**")]
                written += [f"*{_escaped(part.about)}*", "\n".join(f"| {' | '.join(row)} |" for row in rows)]
            case _:
                written.append(_escaped(part))
    return "\n\n".join(written) + "\n"


def as_html(parts: Iterator[Block], figures: Path) -> str:
    """One file without styles or scripts; images are in it."""
    written = []
    for part in parts:
        match part:
            case Heading(level, text):
                written.append(f"<h{level}>{html.escape(text)}</h{level}>")
            case Picture(file, title, text):
                image = base64.b64encode((figures / file).read_bytes()).decode()
                shown = f'<img width="480" alt="{html.escape(title)}" src="data:image/png;base64,{image}">'
                written += [f"<p>{shown}</p>", f"<p><b>{html.escape(title)}.</b> {html.escape(text)}</p>"]
            case Grid():
                written += [f"<p><i>{html.escape(part.about)}</i></p>", _table(part)]
            case _:
                written.append(f"<p>{html.escape(part)}</p>")
    head = '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>Results</title></head>\n<body>\n'
    return head + "\n".join(written) + "\n</body>\n</html>\n"


def _table(grid: Grid) -> str:
    aligned = ["right" if numeric else "left" for numeric in grid.numeric]
    rows = [("th", map(html.escape, grid.headings)), *(("td", row) for row in _cells(grid, html.escape, "<b>{}</b>"))]
    lines = [
        "".join(f'<{tag} align="{side}">{cell}</{tag}>' for side, cell in zip(aligned, cells, strict=True))
        for tag, cells in rows
    ]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table border="1" cellspacing="0" cellpadding="4">\n{body}\n</table>'


def _cells(grid: Grid, escape: Callable[[str], str], bold: str) -> Iterator[list[str]]:
    for place, row in enumerate(grid.rows):
        cells = [*map(escape, row)]
        if place in grid.strong:
            cells[grid.mean] = bold.format(cells[grid.mean])
        yield cells


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, within one line."""
    return re.sub(r"([\\`*_{}\[\]<>|$~])", r"\\\1", " ".join(text.split()))

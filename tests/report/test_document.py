"""Markdown and plain HTML say what the tables say, and stand alone."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kdsuite import cli
from kdsuite.report import document, drawing
from kdsuite.report.analysis import Analysis, analyse
from kdsuite.report.figures import kd_gain
from kdsuite.report.latex import by_task, columns_of
from kdsuite.report.load import load
from kdsuite.report.tables import all_tables
from kdsuite.report.words import CONTENTS

from .conftest import SETTINGS, STEADY
from .synthetic import Study, write_results

ALLOWED = set("html head meta title body h1 h2 p i b img table tr th td".split())
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Elements, images, and tables as lists of rows of texts; an element that is not closed is an error."""

    def __init__(self, text: str):
        super().__init__()
        self.seen: set[str] = set()
        self.tables: list[list[list[str]]] = []
        self.images: list[str] = []
        self.bold: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "img":
            self.images.append(dict(attrs)["src"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"th", "td"} & {*self._open}:
            self.tables[-1][-1][-1] += data
            self.bold += [data] if "b" in self._open else []


def expected(analysis: Analysis) -> list[list[list[str]]]:
    """All tables that are shown, task by task, as texts."""
    found = []
    for table in all_tables(analysis):
        if "shown" in CONTENTS["tables"][table.name] and table.rows:
            columns = columns_of(table, analysis)
            headings = [document.plain(column.heading) for column in columns]
            for _, rows in by_task(table, analysis):
                found.append([headings, *([c.text(row) for c in columns] for _, row in rows)])
    return found


def markdown_tables(text: str) -> list[list[list[str]]]:
    tables = []
    for block in text.split("\n\n"):
        if block.startswith("| "):
            rows = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in block.splitlines()]
            assert all(re.fullmatch(r":---|---:", rule) for rule in rows.pop(1))
            tables.append([[re.sub(r"\\(.)", r"\1", cell.replace("**", "")) for cell in row] for row in rows])
    return tables


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Analysis, str, str]:
    """A folder in which KD1 is better than B0, KD2 failed and one figure is drawn; its analysis, and both forms."""
    lost = {f"KD2_sst2_S1_seed{seed}": "failed" for seed in (42, 123, 456)}
    study = Study(**STEADY, tasks=("sst2",), grid=((4.0, 0.5),), lost=lost)
    root = write_results(tmp_path_factory.mktemp("document"), study)
    analysis, figures = analyse(load(root), SETTINGS), root / "figures"
    with drawing.styled():
        drawing.save(kd_gain(analysis), figures)
    parts = [*document.blocks(analysis, figures)]
    return root, analysis, document.as_markdown(iter(parts)), document.as_html(iter(parts), figures)


def test_both_forms_hold_the_tables_of_the_report(written: tuple[Path, Analysis, str, str]) -> None:
    _, analysis, text, page = written
    tables = expected(analysis)
    assert len(tables) == 6
    assert markdown_tables(text) == tables == Page(page).tables
    verdicts = {c.verdict for task in analysis.tasks for c in task.comparisons}
    assert verdicts and all(any(v in row for table in tables for row in table) for v in verdicts)
    assert not re.search(r"\$|\\[,%a-zA-Z]", re.sub(r"\\([\\`*_{}\[\]<>|$~])", "", text))  # no LaTeX is left
    assert analysis.notes and all(document._escaped(note) in text for note in analysis.notes)


def test_the_best_is_bold_only_where_a_claim_supports_it(written: tuple[Path, Analysis, str, str]) -> None:
    _, analysis, text, page = written
    best = [f"{cell.mean:.1f}" for task in analysis.tasks for cell in task.best]
    assert best and Page(page).bold == best == re.findall(r"\*\*(.+?)\*\*", text)


def test_markdown_links_figures_where_they_lie_and_html_holds_them(written: tuple[Path, Analysis, str, str]) -> None:
    root, _, text, page = written
    pngs = sorted((root / "figures").glob("*.png"))
    assert sorted(re.findall(r"\]\((figures/.+?\.png)\)", text)) == [f"figures/{png.name}" for png in pngs]
    read = Page(page)
    images = [base64.b64decode(src.removeprefix("data:image/png;base64,")) for src in read.images]
    assert sorted(images) == sorted(png.read_bytes() for png in pngs)
    assert read.seen <= ALLOWED and "style=" not in page  # what a word processor reads


def test_it_lies_beside_the_report(written: tuple[Path, Analysis, str, str]) -> None:
    root, _, text, page = written
    assert document.write(root, SETTINGS, "md") == root / "report.md"
    assert document.write(root, SETTINGS, "html") == root / "report-plain.html"
    assert (root / "report.md").read_text(encoding="utf-8") == text
    assert (root / "report-plain.html").read_text(encoding="utf-8") == page


def test_markup_in_texts_stays_text() -> None:
    odd = "a|b <script> *c* _d_ $e$ [f](g) `h`\nnext"
    assert "\n" not in document._escaped(odd)
    assert re.sub(r"\\(.)", r"\1", document._escaped(odd)) == odd.replace("\n", " ")
    assert "<script>" not in document.as_html(iter([odd]), Path())


def test_a_heading_of_a_value_from_outside_is_its_name(tmp_path: Path) -> None:
    """In LaTeX it is escaped; elsewhere nothing of that is left. Nor is a task's title read as LaTeX."""
    skills = {"teacher": 0.9, "zero-shot": 0.5, "B0": 0.7, "OWN": 0.8}
    study = Study(("sst2",), n=40, skills=skills, gammas={"OWN": (0.5, 0.7)})
    analysis = analyse(load(write_results(tmp_path, study)), SETTINGS)
    [cell] = [cell for cell in analysis.tasks[0].cells if cell.method == "OWN"]
    candidates = tuple(
        replace(c, configuration=replace(c.configuration, point=(("mixed_gamma", 0.5 + at),)))
        for at, c in enumerate(cell.selection.candidates)
    )
    other = replace(cell, selection=replace(cell.selection, candidates=candidates))
    about = analysis.tasks[0].about | {"title": "From $5 to $6"}
    task = replace(analysis.tasks[0], about=about, cells=(other,))
    parts = [*document.blocks(replace(analysis, tasks=(task,)), tmp_path)]
    [grid] = [part for part in parts if isinstance(part, document.Grid) and "mixed_gamma" in part.headings]
    assert len(grid.rows) == 2
    assert any("From $5 to $6 by scoring both labels" in part for part in parts if isinstance(part, str))


def test_a_comparison_has_no_such_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "--compare", "a", "b", "--format", "md"]) == 2
    assert "a comparison is printed only" in capsys.readouterr().err

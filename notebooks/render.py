"""Run the notebooks in order and write them, with their outputs, to docs/notebooks as self-contained pages.

python notebooks/render.py          offline, in a temporary folder: about as long as `make run`
"""

from __future__ import annotations

import hashlib
import html
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

NOTEBOOKS = Path(__file__).parent
PAGES = NOTEBOOKS.parent / "docs" / "notebooks"
STYLE = """
:root { color-scheme: light dark; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.55 system-ui, sans-serif; }
pre { overflow-x: auto; font-size: 13px; line-height: 1.4; margin: 0; padding: .6rem .8rem; }
.input pre { border-left: 3px solid #0072B2; background: #80808018; }
.output { margin: .6rem 0 1.2rem; overflow-x: auto; }
table { border-collapse: collapse; border: 0; font-size: 13px; }
th, td { border: 0; border-bottom: 1px solid #80808040; padding: .25rem .6rem; text-align: right; vertical-align: top; }
figcaption { font-size: 13px; opacity: .8; }
a.anchor-link { display: none; }
"""


def sources() -> list[Path]:
    """The notebooks, in order."""
    return sorted(NOTEBOOKS.glob("0*.ipynb"))


def execute(where: Path, configuration: str | None = None) -> Iterator[tuple[Path, NotebookNode]]:
    """Run the notebooks one after the other below `where`; with another configuration if one is given.

    Raises CellExecutionError for a cell that fails.
    """
    folder = where / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sources():
        notebook = nbformat.read(path, as_version=4)
        if configuration is not None:
            parameters(notebook).source = f"CONFIGURATION = {configuration!r}"
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=None, coalesce_streams=True, resources=resources).execute()
        yield path, notebook


def parameters(notebook: NotebookNode) -> NotebookNode:
    """The cell that holds the one variable."""
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    return cell


def digest(path: Path) -> str:
    """Identifies a notebook by its cells, so that a page can be told to be of an older one."""
    cells = nbformat.read(path, as_version=4).cells
    return hashlib.sha256("\0".join(cell.source for cell in cells).encode()).hexdigest()[:16]


def page(path: Path, notebook: NotebookNode) -> str:
    """A run notebook as one page that needs nothing else."""
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    body, _ = exporter.from_notebook_node(notebook)
    colours = HtmlFormatter(style="default").get_style_defs(".highlight")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(path.stem)}</title>'
        f'<meta name="viewport" content="width=device-width"><meta name="notebook" content="{digest(path)}">'
        f"<style>{colours}{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def main() -> None:
    PAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as where:
        for path, notebook in execute(Path(where), *sys.argv[1:2]):
            (PAGES / f"{path.stem}.html").write_text(page(path, notebook), encoding="utf-8")
            print(path.stem, flush=True)


if __name__ == "__main__":
    main()

"""The tables for a thesis: booktabs, escaped, captioned and labelled; numbers of a supported best are bold.

A LaTeX table shows the columns that fit a page, with fewer digits than the CSV, which has everything.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from kdsuite.evaluate.selection import finite
from kdsuite.report.analysis import Analysis
from kdsuite.report.tables import Row, Table, written
from kdsuite.report.words import CONTENTS, NOT_APPLICABLE, NOT_TESTABLE, caption, metric_name, minus, number, span

GREEK = """α alpha β beta γ gamma δ delta ε epsilon ζ zeta η eta θ theta ι iota κ kappa λ lambda μ mu ν nu ξ xi π pi
    ρ rho σ sigma τ tau υ upsilon φ phi χ chi ψ psi ω omega Γ Gamma Δ Delta Θ Theta Λ Lambda Ξ Xi Π Pi Σ Sigma
    Υ Upsilon Φ Phi Ψ Psi Ω Omega""".split()  # letters that a method's values may be called by
SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {letter: rf"$\{name}$" for letter, name in zip(GREEK[::2], GREEK[1::2], strict=True)}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$"}
    | {">": r"\textgreater{}", "–": "--", "−": "$-$", "×": r"$\times$"}
)
PROMPTS = (None, "", "median")  # of a benchmark's rows, so that the table fits a page
TEXT, COUNT, P, INTERVAL, SHARE = "text", "count", "p", "interval", "share"


@dataclass(frozen=True)
class Column:
    """A column for reading: its heading, the value it shows (an interval's lower bound, a share with its interval),
    and how: a number of digits, or one of the words above.
    """

    heading: str
    name: str
    form: int | str = TEXT

    def text(self, row: Row) -> str:
        """As it is read, without markup."""
        value: Any = row.get(self.name)
        if self.form in (TEXT, COUNT):
            return written(self.name, value)
        if value != finite(value):  # a word: why there is no number, short enough for a narrow column
            word = written(self.name, value)
            return "–" if word in ("", NOT_APPLICABLE, NOT_TESTABLE) else word
        if self.form == P:
            return "<0.001" if value < 0.001 else f"{value:.3f}"
        if self.form == INTERVAL:
            return span((value, row[self.name.replace("low", "high")]))
        if self.form == SHARE:
            bounds = 100 * row["gap_ci_low"], 100 * row["gap_ci_high"]
            return f"{minus(f'{100 * value:.0f}')} % ({span(bounds, 0)})"
        return minus(number(value, int(self.form)))


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return text.translate(SPECIAL)


def columns_of(table: Table, analysis: Analysis) -> list[Column]:
    """The columns of a table that are shown for reading."""
    columns = [Column(*column) for column in CONTENTS["tables"][table.name]["shown"]]
    columns = [c for c in columns if c.name != "cost_per_run" or analysis.settings.cost_per_hour is not None]
    if table.name == "table_4_2_kd1_ablation":
        columns[2:2] = [Column(escape(name), name, COUNT) for name in table.more]
    if analysis.several and "student" in table.columns:
        columns.insert(0, Column("Student", "student"))
    return columns


def render(table: Table, analysis: Analysis) -> str:
    """A complete table float; needs `\\usepackage{booktabs}` and nothing else."""
    columns = columns_of(table, analysis)
    lines = [
        "% written by kdsuite; needs \\usepackage{booktabs}",
        r"\begin{table}[htbp]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{caption(analysis, 'tables', table.name, told=escape)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}\vspace{{4pt}}",
        rf"\begin{{tabular}}{{@{{}}{''.join('l' if c.form == TEXT else 'r' for c in columns)}@{{}}}}",
        r"\toprule",
        " & ".join(column.heading for column in columns) + r" \\",
        r"\midrule",
        *_body(table, columns, analysis),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def by_task(table: Table, analysis: Analysis) -> Iterator[tuple[str, list[tuple[int, Row]]]]:
    """The rows that are shown, with their places in the table, by what they are about: a task and its metric."""
    places = [index for index, row in enumerate(table.rows) if row.get("prompt") in PROMPTS]
    for name, own in groupby(places, key=lambda index: table.rows[index]["task"]):
        task = analysis.task(name)
        about = f"{task.title}, {metric_name(task.metric)}" if task else name
        yield about, [(index, table.rows[index]) for index in own]


def _body(table: Table, columns: list[Column], analysis: Analysis) -> list[str]:
    """The rows, under a line that names their task and its metric."""
    lines: list[str] = []
    for about, rows in by_task(table, analysis):
        lines += [r"\addlinespace"] if lines else []
        lines.append(rf"\multicolumn{{{len(columns)}}}{{@{{}}l}}{{\textit{{{escape(about)}}}}} \\")
        lines += [_line(row, columns, index in table.strong) for index, row in rows]
    return lines or [rf"\multicolumn{{{len(columns)}}}{{c}}{{no rows}} \\"]


def _line(row: Row, columns: list[Column], strong: bool) -> str:
    cells = [escape(column.text(row)) for column in columns]
    numeric = [i for i, column in enumerate(columns) if column.form not in (TEXT, COUNT)]
    words = {cells[i] for i in numeric} - {"--"}
    if len(words) == 1 and not any(character.isdigit() for word in words for character in word):
        # one and the same word instead of all numbers stands there once
        word = rf"\multicolumn{{{len(columns) - numeric[0]}}}{{l@{{}}}}{{\textit{{{words.pop()}}}}}"
        cells[numeric[0] :] = [word]
    elif strong:
        place = [column.name for column in columns].index("mean")
        cells[place] = rf"\textbf{{{cells[place]}}}"
    return " & ".join(cells) + r" \\"

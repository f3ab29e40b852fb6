"""The tables for a thesis: booktabs, escaped, captioned and labelled; numbers of a supported best are bold.

A LaTeX table shows the columns that fit a page, with fewer digits than the CSV, which has everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from kdsuite.report.analysis import Analysis
from kdsuite.report.tables import Row, Table
from kdsuite.report.wording import (
    NOT_APPLICABLE,
    NOT_TESTABLE,
    metric_name,
    minus,
    number,
    task_name,
)

SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "α": r"$\alpha$",
    "λ": r"$\lambda$",
    "−": "$-$",
    "×": r"$\times$",
}


PROMPTS = ("", "median")  # of a benchmark's rows, so that the table fits a page
COST = "Cost"


@dataclass(frozen=True)
class Column:
    """A column of a LaTeX table: its heading, its alignment and what a row shows in it."""

    heading: str
    alignment: str
    text: Callable[[Row], str]
    numeric: bool = True


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(SPECIAL.get(character, character) for character in text)


def render(table: Table, analysis: Analysis) -> str:
    """A complete table float; needs `\\usepackage{booktabs}` and nothing else."""
    several = any(len(task.students) > 1 for task in analysis.tasks)
    student = (_text("Student", "student"),) if several and "student" in table.columns else ()
    priced = analysis.settings.cost_per_hour is not None
    columns = (*student, *(c for c in COLUMNS[table.name] if priced or c.heading != COST))
    lines = [
        "% written by kdsuite; needs \\usepackage{booktabs}",
        r"\begin{table}[htbp]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_caption(table, analysis)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}\vspace{{4pt}}",
        rf"\begin{{tabular}}{{@{{}}{''.join(column.alignment for column in columns)}@{{}}}}",
        r"\toprule",
        " & ".join(column.heading for column in columns) + r" \\",
        r"\midrule",
        *_body(table, columns, analysis),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _caption(table: Table, analysis: Analysis) -> str:
    settings = analysis.settings
    return CAPTIONS[table.name].format(
        level=f"{100 * settings.confidence:g}",
        power=f"{100 * settings.power:g}",
        margin=f"{settings.margin:g}",
        cost="" if settings.cost_per_hour is None else f" Cost at {settings.cost_per_hour:g} per hour.",
    )


def _body(table: Table, columns: tuple[Column, ...], analysis: Analysis) -> list[str]:
    """The rows, under a line that names their task and its metric."""
    lines, shown = [], None
    for index, row in enumerate(table.rows):
        if row.get("prompt", "") not in PROMPTS:
            continue
        if row["task"] != shown:
            lines += [r"\addlinespace"] if lines else []
            lines.append(
                rf"\multicolumn{{{len(columns)}}}{{@{{}}l}}{{\textit{{{_about(row['task'], analysis)}}}}} \\"
            )
            shown = row["task"]
        lines.append(_line(row, columns, strong=index in table.strong))
    return lines or [rf"\multicolumn{{{len(columns)}}}{{c}}{{no rows}} \\"]


def _about(name: str, analysis: Analysis) -> str:
    task = analysis.task(name)
    if task is None:
        return escape(task_name(name))
    return escape(f"{task_name(name)}, {metric_name(task.metric)}")


def _line(row: Row, columns: tuple[Column, ...], strong: bool) -> str:
    cells = [column.text(row) for column in columns]
    first = next(i for i, column in enumerate(columns) if column.numeric)
    words = {cell for cell, column in zip(cells, columns, strict=True) if column.numeric} - {"--"}
    if len(words) == 1 and not any(character.isdigit() for word in words for character in word):
        spanned = rf"\multicolumn{{{len(columns) - first}}}{{l@{{}}}}{{\textit{{{words.pop()}}}}}"
        return " & ".join([*cells[:first], spanned]) + r" \\"
    if strong:
        place = [column.heading for column in columns].index("Score")
        cells[place] = rf"\textbf{{{cells[place]}}}"
    return " & ".join(cells) + r" \\"


def _text(heading: str, name: str, alignment: str = "l") -> Column:
    return Column(heading, alignment, lambda row: escape(row.get(name, "")), numeric=False)


def _number(heading: str, name: str, digits: int) -> Column:
    return Column(heading, "r", lambda row: _rounded(row.get(name, ""), digits))


def _interval(heading: str) -> Column:
    return Column(heading, "r", lambda row: _pair(row["ci_low"], row["ci_high"]))


def _share(heading: str) -> Column:
    def text(row: Row) -> str:
        if not _is_number(row["gap_closed"]):
            return "--"
        share, low, high = (
            minus(f"{100 * float(row[n]):.0f}") for n in ("gap_closed", "gap_ci_low", "gap_ci_high")
        )
        return escape(f"{share} % ({low} to {high})")

    return Column(heading, "r", text)


def _p(heading: str, name: str) -> Column:
    def text(row: Row) -> str:
        if not _is_number(row[name]):
            return _word(row[name])
        return "$<$0.001" if float(row[name]) < 0.001 else f"{float(row[name]):.3f}"

    return Column(heading, "r", text)


def _pair(low: str, high: str) -> str:
    return f"{_rounded(low, 1)} to {_rounded(high, 1)}" if _is_number(low) else _word(low)


def _rounded(text: str, digits: int) -> str:
    return escape(minus(number(float(text), digits))) if _is_number(text) else _word(text)


def _word(text: str) -> str:
    """Why there is no number, short enough for a narrow column."""
    return "--" if text in ("", NOT_APPLICABLE, NOT_TESTABLE) else escape(text)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text) is not None


# Captions are formatted with the settings: {{ }} stand for braces.
CAPTIONS = {
    "table_4_1_main_results": (
        "Results on the reported split: mean of the primary metric in percent with its {level}\\,\\% "
        "interval (hierarchical bootstrap over seeds and examples), standard deviation over seeds, "
        "difference to B0 in points, and the secondary metric. Bold: the highest score among the methods "
        "that the Holm-corrected test finds better than B0."
    ),
    "table_4_2_kd1_ablation": (
        "Logit distillation on the dev split: mean and standard deviation over seeds in percent for every "
        "temperature $T$ and weight $\\alpha$ of the hard label."
    ),
    "table_4_3_significance": (
        "Differences in points with their {level}\\,\\% interval. $p_s$: paired t-test over seeds; $p_e$: "
        "exact McNemar or sign-flip test over examples; $p_H$: test over seeds and examples, "
        "Holm-corrected within the task, on which the verdict rests. MDE: difference detectable with "
        "{power}\\,\\% power."
    ),
    "benchmarks": (
        "Latency, throughput, memory and size of the model variants at the median prompt of the task: "
        "milliseconds to the first token and per further one (fixed number of new tokens; fastest repeat over "
        "interleaved blocks, median over tokens), 95th percentile of all readings, tokens per second of a "
        "batch, seconds per answered example end to end (one at a time; SST-2 by scoring both labels, SQuAD by "
        "generation until the answer ends), peak memory and weights on disk in MB, score in percent."
    ),
    "training_costs": (
        "Cost of training, mean per run in seconds: training, evaluation, and the share of the teacher's time "
        "(fine-tuning and cached outputs, paid once, listed apart) that falls to each of the runs it taught; "
        "throughput in examples and supervised tokens per second; peak memory in MB.{cost}"
    ),
    "against_teacher": (
        "Methods against the teacher: difference in points with its {level}\\,\\% interval, "
        "non-inferiority at a margin of {margin} points (one-sided, Holm-corrected), and the share of the "
        "gap between B0 and the teacher that is closed."
    ),
}
COLUMNS: dict[str, tuple[Column, ...]] = {
    "table_4_1_main_results": (
        _text("Method", "method"),
        _text("Parameters", "hyperparameters"),
        _text("Seeds", "n_seeds", "r"),
        _number("Score", "mean", 1),
        _interval("Interval"),
        _number("SD", "std", 1),
        _number(r"$\Delta$B0", "delta_vs_B0", 1),
        _number("2nd", "secondary_mean", 1),
    ),
    "table_4_2_kd1_ablation": (
        _text("$T$", "temperature", "r"),
        _text(r"$\alpha$", "alpha", "r"),
        _text("Seeds", "n_seeds", "r"),
        _number("Mean", "dev_mean", 1),
        _number("SD", "dev_std", 1),
        _text("Selected", "selected"),
    ),
    "table_4_3_significance": (
        _text("Comparison", "comparison"),
        _text("Seeds", "n_seeds", "r"),
        _number("Diff.", "difference", 1),
        _interval("Interval"),
        _number("$d_z$", "cohens_d", 1),
        _p("$p_s$", "p_t_test"),
        _p("$p_e$", "p_paired"),
        _p("$p_H$", "p_holm"),
        _number("MDE", "minimum_detectable", 1),
        _text("Verdict", "verdict"),
    ),
    "benchmarks": (
        _text("Variant", "variant"),
        _text("Batch", "batch_size", "r"),
        _number("First", "first_token_ms", 1),
        _number("Token", "decode_ms_per_token", 2),
        _number("p95", "p95_ms_per_token", 2),
        _number("Tokens/s", "tokens_per_second", 0),
        _number("Answer", "seconds_per_answer", 3),
        _number("Peak", "peak_memory_mb", 0),
        _number("Disk", "disk_mb", 1),
        _number("Score", "metric_value", 1),
    ),
    "training_costs": (
        _text("Method", "method"),
        _text("Runs", "runs", "r"),
        _number("Training", "train_seconds", 1),
        _number("Evaluation", "evaluate_seconds", 1),
        _number("Teacher", "teacher_seconds", 1),
        _number("Ex./s", "examples_per_second", 0),
        _number("Tok./s", "supervised_tokens_per_second", 0),
        _number("Peak", "peak_memory_mb", 0),
        _number(COST, "cost_per_run", 4),
    ),
    "against_teacher": (
        _text("Comparison", "comparison"),
        _number("Diff.", "difference", 1),
        _interval("Interval"),
        _p("$p_H$", "p_holm"),
        _text("Verdict", "verdict"),
        _share("Gap closed"),
    ),
}

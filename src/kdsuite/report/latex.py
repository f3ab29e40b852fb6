"""The tables for a thesis: booktabs, escaped, captioned and labelled; numbers of a supported best are bold.

A LaTeX table shows the columns that fit a page, with fewer digits than the CSV, which has everything.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdsuite.evaluate.selection import finite
from kdsuite.report.analysis import Analysis
from kdsuite.report.tables import Row, Table, written
from kdsuite.report.words import NOT_APPLICABLE, NOT_TESTABLE, answered, metric_name, minus, number, span

SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
    | {">": r"\textgreater{}", "α": r"$\alpha$", "λ": r"$\lambda$", "−": "$-$", "×": r"$\times$"}
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
        value = row.get(self.name)
        if self.form in (TEXT, COUNT):
            return escape(written(self.name, value))
        if value != finite(value):  # a word: why there is no number, short enough for a narrow column
            word = written(self.name, value)
            return "--" if word in ("", NOT_APPLICABLE, NOT_TESTABLE) else escape(word)
        if self.form == P:
            return "$<$0.001" if value < 0.001 else f"{value:.3f}"
        if self.form == INTERVAL:
            return escape(span((value, row["ci_high"])))
        if self.form == SHARE:
            bounds = 100 * row["gap_ci_low"], 100 * row["gap_ci_high"]
            return escape(f"{minus(f'{100 * value:.0f}')} % ({span(bounds, 0)})")
        return escape(minus(number(value, int(self.form))))


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return text.translate(SPECIAL)


def render(table: Table, analysis: Analysis) -> str:
    """A complete table float; needs `\\usepackage{booktabs}` and nothing else."""
    settings = analysis.settings
    columns = [
        c for c in COLUMNS[table.name] if c.name != "cost_per_run" or settings.cost_per_hour is not None
    ]
    if table.name == "table_4_2_kd1_ablation":  # points that the contract does not know
        more = table.columns[table.columns.index("status") + 1 :]
        columns[2:2] = [Column(escape(name), name, COUNT) for name in more]
    if analysis.several and "student" in table.columns:
        columns.insert(0, Column("Student", "student"))
    caption = CAPTIONS[table.name].format(
        level=f"{100 * settings.confidence:g}",
        power=f"{100 * settings.power:g}",
        margin=f"{settings.margin:g}",
        cost="" if settings.cost_per_hour is None else f" Cost at {settings.cost_per_hour:g} per hour.",
        answered=escape(answered(analysis.tasks)),
    )
    lines = [
        "% written by kdsuite; needs \\usepackage{booktabs}",
        r"\begin{table}[htbp]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{caption}}}",
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


def _body(table: Table, columns: list[Column], analysis: Analysis) -> list[str]:
    """The rows, under a line that names their task and its metric."""
    lines, shown = [], None
    for index, row in enumerate(table.rows):
        if row.get("prompt") not in PROMPTS:
            continue
        if row["task"] != shown:
            shown = row["task"]
            task = analysis.task(shown)
            about = escape(f"{task.title}, {metric_name(task.metric)}" if task else shown)
            lines += [r"\addlinespace"] if lines else []
            lines.append(rf"\multicolumn{{{len(columns)}}}{{@{{}}l}}{{\textit{{{about}}}}} \\")
        lines.append(_line(row, columns, strong=index in table.strong))
    return lines or [rf"\multicolumn{{{len(columns)}}}{{c}}{{no rows}} \\"]


def _line(row: Row, columns: list[Column], strong: bool) -> str:
    """A row of the table; one and the same word instead of all its numbers stands there once."""
    cells = [column.text(row) for column in columns]
    numeric = [i for i, column in enumerate(columns) if column.form not in (TEXT, COUNT)]
    words = {cells[i] for i in numeric} - {"--"}
    if len(words) == 1 and not any(character.isdigit() for word in words for character in word):
        cells[numeric[0] :] = [
            rf"\multicolumn{{{len(columns) - numeric[0]}}}{{l@{{}}}}{{\textit{{{words.pop()}}}}}"
        ]
    elif strong:
        place = [column.name for column in columns].index("mean")
        cells[place] = rf"\textbf{{{cells[place]}}}"
    return " & ".join(cells) + r" \\"


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
        "batch, seconds per answered example end to end (one at a time; {answered}), peak memory and weights "
        "on disk in MB, score in percent."
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
        Column("Method", "method"),
        Column("Parameters", "hyperparameters"),
        Column("Seeds", "n_seeds", COUNT),
        Column("Score", "mean", 1),
        Column("Interval", "ci_low", INTERVAL),
        Column("SD", "std", 1),
        Column(r"$\Delta$B0", "delta_vs_B0", 1),
        Column("2nd", "secondary_mean", 1),
    ),
    "table_4_2_kd1_ablation": (
        Column("$T$", "temperature", COUNT),
        Column(r"$\alpha$", "alpha", COUNT),
        Column("Seeds", "n_seeds", COUNT),
        Column("Mean", "dev_mean", 1),
        Column("SD", "dev_std", 1),
        Column("Selected", "selected"),
    ),
    "table_4_3_significance": (
        Column("Comparison", "comparison"),
        Column("Seeds", "n_seeds", COUNT),
        Column("Diff.", "difference", 1),
        Column("Interval", "ci_low", INTERVAL),
        Column("$d_z$", "cohens_d", 1),
        Column("$p_s$", "p_t_test", P),
        Column("$p_e$", "p_paired", P),
        Column("$p_H$", "p_holm", P),
        Column("MDE", "minimum_detectable", 1),
        Column("Verdict", "verdict"),
    ),
    "benchmarks": (
        Column("Variant", "variant"),
        Column("Batch", "batch_size", COUNT),
        Column("First", "first_token_ms", 1),
        Column("Token", "decode_ms_per_token", 2),
        Column("p95", "p95_ms_per_token", 2),
        Column("Tokens/s", "tokens_per_second", 0),
        Column("Answer", "seconds_per_answer", 3),
        Column("Peak", "peak_memory_mb", 0),
        Column("Disk", "disk_mb", 1),
        Column("Score", "metric_value", 1),
    ),
    "training_costs": (
        Column("Method", "method"),
        Column("Runs", "runs", COUNT),
        Column("Training", "train_seconds", 1),
        Column("Evaluation", "evaluate_seconds", 1),
        Column("Teacher", "teacher_seconds", 1),
        Column("Ex./s", "examples_per_second", 0),
        Column("Tok./s", "supervised_tokens_per_second", 0),
        Column("Peak", "peak_memory_mb", 0),
        Column("Cost", "cost_per_run", 4),
    ),
    "against_teacher": (
        Column("Comparison", "comparison"),
        Column("Diff.", "difference", 1),
        Column("Interval", "ci_low", INTERVAL),
        Column("$p_H$", "p_holm", P),
        Column("Verdict", "verdict"),
        Column("Gap closed", "gap_closed", SHARE),
    ),
}

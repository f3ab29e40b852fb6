"""The tables: rows of values under the contract's columns; what writes them decides how they are rounded.

No dates, no paths, fixed digits and a fixed order: equal inputs give equal bytes. Scores and differences are
percent and percentage points. A cell without a number says why (`not run`, `failed`, `not testable`, `n/a`).
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdsuite.config import TEACHER
from kdsuite.evaluate.crossed import MOST_SEEDS, Interval
from kdsuite.evaluate.selection import COMPLETED, INCOMPLETE, finite
from kdsuite.report.analysis import Analysis, Cell, TaskAnalysis
from kdsuite.report.comparisons import Comparison
from kdsuite.report.costs import costs_of_runs, mean_costs
from kdsuite.report.fractions import Part, band
from kdsuite.report.load import BASELINE
from kdsuite.report.words import CONTENTS, NOT_APPLICABLE, NOT_TESTABLE, number

Row = dict[str, Any]  # by column: a number, a text, or the word that stands where there is no number


@dataclass(frozen=True)
class Table:
    """A table by its file name; `strong` are the indices of the rows that a claim supports as best.

    Its columns are those of the contract and `more` at the end.
    """

    name: str
    rows: Sequence[Row]
    strong: frozenset[int] = frozenset()
    more: Sequence[str] = ()

    @property
    def columns(self) -> list[str]:
        return [*CONTENTS["tables"][self.name]["columns"].split(), *self.more]

    def csv(self) -> str:
        return csv_text(self.columns, self.rows)


def csv_text(columns: Sequence[str], rows: Iterable[Row], missing: str = NOT_APPLICABLE) -> str:
    """Rows as CSV, of which only the columns count; `missing` stands for NaN, nothing for None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: written(name, row.get(name), missing) for name in columns} for row in rows)
    return text.getvalue()


def written(name: str, value: Any, missing: str = NOT_APPLICABLE) -> str:
    """A value as the CSV has it: four decimals, or four digits of a p-value."""
    if isinstance(value, float):
        return f"{value:.4g}" if name.startswith("p_") else number(value, missing=missing)
    return "" if value is None else str(value)


def all_tables(analysis: Analysis) -> tuple[Table, ...]:
    """Those of the contract (4.1, 4.2, 4.3 with both classical tests, the one over both and the verdict, and what was
    measured of each model variant), then every trained method against the teacher (non-inferiority, and the share of
    the gap that is closed), the costs and, where a task has them, fractions of the training examples.
    """
    comparisons = [c for task in analysis.tasks for c in task.comparisons]
    gaps = [gap for task in analysis.tasks for gap in task.gaps]
    return (
        main_results(analysis),
        kd1_ablation(analysis),
        Table("table_4_3_significance", [_significance_row(c) for c in comparisons]),
        _with_more("benchmarks", analysis.results.benchmarks),
        Table("against_teacher", [_teacher_row(gap, analysis.settings.margin) for gap in gaps]),
        Table("training_costs", mean_costs(analysis)),
        Table("training_costs_runs", costs_of_runs(analysis)),
        *([data_fractions(analysis)] if analysis.fractions else []),
    )


def bounds(interval: Interval | None, name: str = "ci") -> Row:
    """An interval's two columns."""
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _known(values: Mapping[str, float | None], word: str) -> Row:
    """Numbers, and a word where there is none."""
    return {n: word if v is None or not math.isfinite(v) else v for n, v in values.items()}


def main_results(analysis: Analysis) -> Table:
    """Table 4.1: a row per task, student and planned method, with the teacher and the untrained student."""
    pairs = [(task, cell) for task in analysis.tasks for cell in task.cells]
    strong = frozenset(i for i, (task, cell) in enumerate(pairs) if cell in task.best)
    return Table("table_4_1_main_results", [_main_row(*pair) for pair in pairs], strong)


def _main_row(task: TaskAnalysis, cell: Cell) -> Row:
    numbers = {
        "mean": cell.mean,
        "std": cell.std,
        **bounds(cell.interval),
        **bounds(cell.seed_interval, "seed_ci"),
        "secondary_mean": cell.secondary_mean,
        "cleaned_mean": cell.cleaned_mean,
        "delta_vs_B0": _delta(task, cell),
        "teacher_agreement": sum(cell.agreement) / len(cell.agreement) if cell.agreement else None,
    }
    return _known(numbers, NOT_APPLICABLE if cell.status in (COMPLETED, INCOMPLETE) else cell.status) | {
        "task": task.name,
        "student": cell.student,
        "method": cell.method,
        "hyperparameters": cell.hyperparameters,
        "n_points": cell.points,
        "n_seeds": len(cell.runs),
        "metric": task.metric,
        "secondary_metric": task.secondary,
        "status": cell.status,
        "note": cell.note,
    }


def _delta(task: TaskAnalysis, cell: Cell) -> float | None:
    """The difference of table 4.3 where there is one, so that both tables say the same; else of the means."""
    comparison = task.comparison(cell.student, cell.method)
    if comparison is not None and comparison.estimate is not None:
        return comparison.difference
    baseline = task.cell(BASELINE, cell.student)
    return cell.mean - baseline.mean if baseline and cell.method != TEACHER else None


def kd1_ablation(analysis: Analysis) -> Table:
    """Table 4.2: the grid of logit distillation (alone or combined), and any other grid of several points, on
    the dev split. Names of points that the contract does not know are columns at the end.
    """
    rows = []
    for task, cell in [(of, cell) for of in analysis.tasks for cell in of.cells]:
        candidates = cell.selection.candidates
        if "temperature" not in dict(candidates[0].configuration.point) and len(candidates) == 1:
            continue
        for candidate in candidates:
            status = COMPLETED if candidate.complete else INCOMPLETE
            if not candidate.completed:
                status = min(run.status for run in candidate.runs)
            numbers = {"dev_mean": candidate.dev_mean, "dev_std": candidate.dev_std}
            row = {name: f"{value:g}" for name, value in candidate.configuration.point}
            row |= _known(numbers, NOT_APPLICABLE if candidate.completed else status)
            row |= {"task": task.name, "student": cell.student, "method": cell.method, "metric": task.metric}
            selected = "yes" if cell.selection.has(candidate) else "no"
            rows.append(row | {"n_seeds": len(candidate.completed), "selected": selected, "status": status})
    return _with_more("table_4_2_kd1_ablation", rows)


def _significance_row(c: Comparison) -> Row:
    t, p, d_z = c.seed_test or (None, None, None)
    numbers = {
        "t_statistic": t,
        "p_t_test": p,
        "cohens_d": d_z,
        "p_paired": c.p_paired,
        "p_seeds_and_examples": c.p_both,
        "p_holm": c.p_holm,
        "minimum_detectable": c.detectable,
    }
    needed = c.seeds_needed or (f"over {MOST_SEEDS}" if c.p_holm is not None else NOT_TESTABLE)
    return _difference(c, numbers) | {"seeds_needed": needed}


def _difference(c: Comparison, numbers: Mapping[str, float | None]) -> Row:
    """What both tables of comparisons say, and their own numbers."""
    numbers = {"difference": c.difference, **bounds(c.plain), **bounds(c.interval, "ci_holm"), **numbers}
    return _known(numbers, c.verdict if c.estimate is None else NOT_TESTABLE) | {
        "task": c.task,
        "student": c.student,
        "comparison": c.name,
        "metric": c.metric,
        "n_seeds": c.seeds,
        "n_examples": c.examples,
        "verdict": c.verdict,
    }


def _teacher_row(gap: Comparison, margin: float) -> Row:
    closed = {"gap_closed": gap.share, **bounds(gap.share_interval, "gap_ci")}
    numbers = {"p_not_inferior": gap.p_not_inferior, "p_holm": gap.p_holm}
    return _difference(gap, numbers) | {"margin": f"{margin:.2f}"} | _known(closed, NOT_APPLICABLE)


def data_fractions(analysis: Analysis) -> Table:
    """A row per task, fraction of the training examples, student and method, the fewest examples first."""
    parts = [part for task in analysis.tasks for part in task.parts]
    return Table(
        "data_fractions", [_part_row(part, cell) for part in parts for cell in part.task.cells if cell.trained]
    )


def _part_row(part: Part, cell: Cell) -> Row:
    gain = part.task.comparison(cell.student, cell.method)
    numbers = {"difference": gain and gain.difference, **bounds(gain and gain.interval, "ci_holm")}
    numbers |= {"p_seeds_and_examples": gain and gain.p_both, "p_holm": gain and gain.p_holm}
    seconds = [finite((run.record.get("timing") or {}).get("train_seconds")) for run in cell.runs]
    return _main_row(part.task, cell) | {
        "fraction": f"{part.fraction:g}",
        "n_train": part.examples,
        **_known(bounds(band(cell)), NOT_APPLICABLE if cell.runs else cell.status),
        **_known(numbers, NOT_APPLICABLE if cell.method == BASELINE else NOT_TESTABLE),
        "verdict": gain and gain.verdict,
        "train_seconds": float(np.mean(seconds or [math.nan])),
    }


def _with_more(name: str, rows: Sequence[Row]) -> Table:
    """A table whose further columns come last."""
    known = set(Table(name, ()).columns)
    return Table(name, rows, more=sorted({column for row in rows for column in row} - known))

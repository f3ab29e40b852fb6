"""The tables: rows of strings under the contract's columns, written as CSV.

No dates, no paths, fixed digits and a fixed order: equal inputs give equal bytes. Scores and differences are
percent and percentage points. A cell without a number says why (`not run`, `failed`, `not testable`, `n/a`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from kdsuite.evaluate.selection import COMPLETED, INCOMPLETE, Candidate, Record
from kdsuite.report import costs
from kdsuite.report.analysis import Analysis, TaskAnalysis
from kdsuite.report.cells import Cell
from kdsuite.report.comparisons import BETTER, Comparison, Gap
from kdsuite.report.load import BASELINE, TEACHER
from kdsuite.report.wording import NOT_TESTABLE, number, p_value

Row = dict[str, str]

MAIN_COLUMNS = (
    "task student method hyperparameters n_seeds metric mean std ci_low ci_high seed_ci_low seed_ci_high "
    "secondary_metric secondary_mean delta_vs_B0 teacher_agreement status note"
).split()
ABLATION_COLUMNS = (
    "task student method temperature alpha feature_weight n_seeds metric dev_mean dev_std selected status"
).split()
SIGNIFICANCE_COLUMNS = (
    "task student comparison metric n_seeds n_examples difference ci_low ci_high t_statistic p_t_test "
    "cohens_d p_paired p_seeds_and_examples p_holm minimum_detectable verdict"
).split()
TEACHER_COLUMNS = (
    "task student comparison metric n_seeds n_examples difference ci_low ci_high margin p_not_inferior "
    "p_holm verdict gap_closed gap_ci_low gap_ci_high"
).split()
BENCHMARK_COLUMNS = (
    "model variant task student method device dtype threads batch_size prompt prompt_tokens new_tokens "
    "first_token_ms decode_ms_per_token p95_ms_per_token tokens_per_second seconds_per_answer noise_percent "
    "spread_percent peak_memory_mb disk_mb parameters metric metric_value"
).split()
COST_COLUMNS = (
    "task student method runs train_seconds evaluate_seconds teacher_seconds seconds_per_run total_seconds "
    "cost_per_run total_cost examples_per_second supervised_tokens_per_second peak_memory_mb"
).split()
RUN_COST_COLUMNS = (
    "task student method hyperparameters seed run_id train_seconds evaluate_seconds teacher_seconds seconds "
    "cost examples_per_second supervised_tokens_per_second peak_memory_mb"
).split()
TIMINGS = ("examples_per_second", "supervised_tokens_per_second", "peak_memory_mb")


@dataclass(frozen=True)
class Table:
    """A table by its file name; `strong` are the indices of the rows that a claim supports as best."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    strong: frozenset[int] = frozenset()

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


def all_tables(analysis: Analysis) -> tuple[Table, ...]:
    return (
        main_results(analysis),
        kd1_ablation(analysis),
        significance(analysis),
        benchmarks(analysis),
        against_teacher(analysis),
        training_costs(analysis),
        training_costs_of_runs(analysis),
    )


def main_results(analysis: Analysis) -> Table:
    """Table 4.1: a row per task, student and planned method, with the teacher and the untrained student."""
    pairs = [(task, cell) for task in analysis.tasks for cell in task.cells]
    rows = tuple(_main_row(task, cell) for task, cell in pairs)
    strong = frozenset(i for i, (task, cell) in enumerate(pairs) if cell in best_cells(task))
    return Table("table_4_1_main_results", tuple(MAIN_COLUMNS), rows, strong)


def best_cells(task: TaskAnalysis) -> list[Cell]:
    """Per student, the highest mean among the methods that the corrected test finds better than B0."""
    best = []
    for student in task.students:
        cells = [c for c in task.cells if c.student == student and _is_better(task, c)]
        best += sorted(cells, key=lambda cell: -cell.mean)[:1]
    return best


def _is_better(task: TaskAnalysis, cell: Cell) -> bool:
    comparison = task.comparison(cell.student, cell.method)
    return comparison is not None and comparison.verdict == BETTER


def _main_row(task: TaskAnalysis, cell: Cell) -> Row:
    word = cell.status if cell.status not in (COMPLETED, INCOMPLETE) else "n/a"
    low, high = cell.interval or (None, None)
    seed_low, seed_high = cell.seed_interval or (None, None)
    agreement = sum(cell.agreement) / len(cell.agreement) if cell.agreement else None
    return {
        "task": task.name,
        "student": cell.student or "",
        "method": cell.method,
        "hyperparameters": cell.hyperparameters,
        "n_seeds": str(len(cell.runs)),
        "metric": task.metric,
        "mean": number(cell.mean, missing=word),
        "std": number(cell.std, missing=word),
        "ci_low": number(low, missing=word),
        "ci_high": number(high, missing=word),
        "seed_ci_low": number(seed_low, missing=word),
        "seed_ci_high": number(seed_high, missing=word),
        "secondary_metric": task.secondary,
        "secondary_mean": number(cell.secondary_mean, missing=word),
        "delta_vs_B0": number(_delta(task, cell), missing=word),
        "teacher_agreement": number(agreement, missing=word),
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
    """Table 4.2: the grid of logit distillation (alone or combined) on the dev split."""
    rows = [
        _ablation_row(task, cell, candidate)
        for task in analysis.tasks
        for cell in task.cells
        if "temperature" in dict(cell.identity.point)
        for candidate in cell.selection.candidates
    ]
    return Table("table_4_2_kd1_ablation", tuple(ABLATION_COLUMNS), tuple(rows))


def _ablation_row(task: TaskAnalysis, cell: Cell, candidate: Candidate) -> Row:
    states = {run.status for run in candidate.runs}
    status = COMPLETED if candidate.complete else INCOMPLETE if candidate.completed else min(states)
    point = dict(candidate.configuration.point)
    word = status if not candidate.completed else "n/a"
    return {
        "task": task.name,
        "student": cell.student or "",
        "method": cell.method,
        "temperature": f"{point['temperature']:g}",
        "alpha": f"{point['alpha']:g}",
        "feature_weight": f"{point['feature_weight']:g}" if "feature_weight" in point else "",
        "n_seeds": str(len(candidate.completed)),
        "metric": task.metric,
        "dev_mean": number(candidate.dev_mean, missing=word),
        "dev_std": number(candidate.dev_std, missing=word),
        "selected": "yes" if candidate is cell.chosen else "no",
        "status": status,
    }


def significance(analysis: Analysis) -> Table:
    """Table 4.3: every comparison of the family with both classical tests, the one over both, and the
    verdict.
    """
    rows = tuple(_significance_row(c) for task in analysis.tasks for c in task.comparisons)
    return Table("table_4_3_significance", tuple(SIGNIFICANCE_COLUMNS), rows)


def _significance_row(c: Comparison) -> Row:
    word = c.verdict if c.estimate is None else NOT_TESTABLE
    test = c.seed_test
    return _difference(c, word) | {
        "t_statistic": number(test.t if test else None, missing=word),
        "p_t_test": p_value(test.p if test else None, word),
        "cohens_d": number(test.d_z if test else None, missing=word),
        "p_paired": p_value(c.p_paired, word),
        "p_seeds_and_examples": p_value(c.p_both, word),
        "p_holm": p_value(c.p_holm, word),
        "minimum_detectable": number(c.detectable, missing=word),
        "verdict": c.verdict,
    }


def _difference(c: Comparison, word: str) -> Row:
    low, high = c.interval or (None, None)
    return {
        "task": c.task,
        "student": c.student or "",
        "comparison": c.name,
        "metric": c.metric,
        "n_seeds": str(c.seeds),
        "n_examples": str(c.examples),
        "difference": number(c.difference, missing=word),
        "ci_low": number(low, missing=word),
        "ci_high": number(high, missing=word),
    }


def against_teacher(analysis: Analysis) -> Table:
    """Every trained method against the teacher: non-inferiority, and the share of the gap that is closed."""
    rows = tuple(_teacher_row(gap, analysis.settings.margin) for task in analysis.tasks for gap in task.gaps)
    return Table("against_teacher", tuple(TEACHER_COLUMNS), rows)


def _teacher_row(gap: Gap, margin: float) -> Row:
    word = gap.comparison.verdict if gap.comparison.estimate is None else NOT_TESTABLE
    low, high = gap.share_interval or (None, None)
    return _difference(gap.comparison, word) | {
        "margin": number(margin, 2),
        "p_not_inferior": p_value(gap.p_not_inferior, word),
        "p_holm": p_value(gap.p_holm, word),
        "verdict": gap.verdict,
        "gap_closed": number(gap.share),
        "gap_ci_low": number(low),
        "gap_ci_high": number(high),
    }


def benchmarks(analysis: Analysis) -> Table:
    """What was measured of each model variant; further columns that a benchmark recorded come last."""
    known = set(BENCHMARK_COLUMNS)
    more = sorted({name for row in analysis.results.benchmarks for name in row} - known)
    columns = (*BENCHMARK_COLUMNS, *more)
    rows = tuple(dict(_benchmark_cells(row, columns)) for row in analysis.results.benchmarks)
    return Table("benchmarks", columns, rows)


def _benchmark_cells(row: Record, columns: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name in columns:
        value = row.get(name)
        yield name, number(value) if isinstance(value, float) else "" if value is None else str(value)


def training_costs(analysis: Analysis) -> Table:
    """Per task, student and method the mean cost of a run; the teacher's fine-tuning and outputs apart."""
    rate = analysis.settings.cost_per_hour
    groups = [group for task in analysis.tasks for group in costs.by_method(costs.costs_of(analysis, task))]
    return Table("training_costs", tuple(COST_COLUMNS), tuple(_cost_row(group, rate) for group in groups))


def _cost_row(group: list[costs.Cost], rate: float | None) -> Row:
    first, per_run = group[0], costs.mean(group, lambda cost: cost.seconds)
    total = sum(cost.own_seconds for cost in group)
    return {
        "task": first.task,
        "student": first.student,
        "method": first.method,
        "runs": str(len(group)),
        "train_seconds": number(costs.mean(group, lambda cost: cost.train_seconds)),
        "evaluate_seconds": number(costs.mean(group, lambda cost: cost.evaluate_seconds)),
        "teacher_seconds": number(costs.mean(group, lambda cost: cost.teacher_seconds)),
        "seconds_per_run": number(per_run),
        "total_seconds": number(total),
        "cost_per_run": number(costs.money(per_run, rate), missing=""),
        "total_cost": number(costs.money(total, rate), missing=""),
        **{name: number(costs.mean(group, lambda cost, name=name: cost.timing(name))) for name in TIMINGS},
    }


def training_costs_of_runs(analysis: Analysis) -> Table:
    """The same for every single run, with its share of the teacher."""
    rate = analysis.settings.cost_per_hour
    rows = [_run_cost_row(cost, rate) for task in analysis.tasks for cost in costs.costs_of(analysis, task)]
    return Table("training_costs_runs", tuple(RUN_COST_COLUMNS), tuple(rows))


def _run_cost_row(cost: costs.Cost, rate: float | None) -> Row:
    run = cost.run
    return {
        "task": cost.task,
        "student": cost.student,
        "method": cost.method,
        "hyperparameters": run.configuration.hyperparameters if run else "",
        "seed": "" if run is None or run.seed is None else str(run.seed),
        "run_id": run.run_id if run else "",
        "train_seconds": number(cost.train_seconds),
        "evaluate_seconds": number(cost.evaluate_seconds),
        "teacher_seconds": number(cost.teacher_seconds),
        "seconds": number(cost.seconds),
        "cost": number(costs.money(cost.seconds, rate), missing=""),
        **{name: number(cost.timing(name)) for name in TIMINGS},
    }

"""How numbers and names are written, and the findings in sentences: a headline per task, the plain reading of each
test, a paragraph for a thesis.

A gain is claimed only where the Holm-corrected test supports it; where it does not, the sentence says what
size of difference could have been seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import yaml

from kdsuite.config import TEACHER, ZERO_SHOT
from kdsuite.evaluate.selection import COMPLETED, FAILED
from kdsuite.report.analysis import Analysis, TaskAnalysis
from kdsuite.report.cells import Cell, losses
from kdsuite.report.comparisons import (
    BETTER,
    NO_EVIDENCE,
    NOT_INFERIOR,
    TOO_FEW_EXAMPLES,
    TOO_FEW_SEEDS,
    WORSE,
    Comparison,
    Gap,
)
from kdsuite.report.load import BASELINE
from kdsuite.report.statistics import Interval

NOT_APPLICABLE, NOT_TESTABLE = "n/a", "not testable"
TEMPLATES = Path(__file__).parent / "templates"
CONTENTS = yaml.safe_load((TEMPLATES / "contents.yaml").read_text(encoding="utf-8"))  # tables and figures


def metric_name(metric: str) -> str:
    return {"f1": "F1"}.get(metric, metric.replace("_", " "))


def number(value: float | None, digits: int = 4, missing: str = NOT_APPLICABLE) -> str:
    """`value` with fixed digits; `missing` for None and everything that is not finite."""
    if value is None or not math.isfinite(value):
        return missing
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def p_text(value: float) -> str:
    """A p-value as it stands in a sentence: "p = 0.013", "p < 0.001"."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def minus(text: str) -> str:
    """A number with a true minus, for reading."""
    return text.replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign: +1.2, −0.3 (a true minus), 0.0."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else minus(text)


def span(interval: Interval | None, digits: int = 1) -> str:
    """An interval for reading, e.g. "80.1 to 84.3"; empty if there is none."""
    return " to ".join(minus(number(bound, digits)) for bound in interval or ())


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def caption(analysis: Analysis, kind: str, name: str) -> str:
    """What stands below a table or figure (`kind`: tables, figures)."""
    settings = analysis.settings
    return CONTENTS[kind][name]["caption"].format(
        level=f"{100 * settings.confidence:g}",
        power=f"{100 * settings.power:g}",
        margin=f"{settings.margin:g}",
        cost="" if settings.cost_per_hour is None else f" Cost at {settings.cost_per_hour:g} per hour.",
        answered=answered(analysis),
    )


def answered(analysis: Analysis) -> str:
    """How the examples of each task are answered, as a clause."""
    clauses = []
    for task in analysis.tasks:
        labels = task.about.get("labels") or ()
        way = f"scoring {'both' if len(labels) == 2 else 'all'} labels"
        clauses.append(f"{task.title} by {way if labels else 'generation until the answer ends'}")
    return ", ".join(clauses)


# ----------------------------------------------------------------------------------------- a task's headline


def headline(task: TaskAnalysis) -> str:
    """One honest sentence on the task (a clause per student where there are several)."""
    return f"{task.title}: {finding(task)}"


def finding(task: TaskAnalysis) -> str:
    """The headline without the task's name."""
    parts = {student: _student_headline(task, student) for student in task.students}
    if not parts:
        return "no student was planned."
    if len(parts) == 1:
        return f"{parts.popitem()[1]}."
    return "; ".join(f"{student}: {part}" for student, part in parts.items()) + "."


def _student_headline(task: TaskAnalysis, student: str) -> str:
    baseline = task.cell(BASELINE, student)
    comparisons = [c for c in task.comparisons if c.student == student and c.b == BASELINE]
    tested = [c for c in comparisons if c.estimate is not None]
    if baseline is None or not baseline.runs:
        return f"nothing can be said, for the fine-tuned baseline B0 {_absence(baseline)}"
    score = _score(task, baseline)
    if any(c.verdict == TOO_FEW_EXAMPLES for c in comparisons):
        count, which = len(task.ids), "for the reported split is a single example"
        if count > 1:
            which = f"for all {count} examples of the reported split belong together (one passage, one group)"
        return f"B0 reaches {score}; whether distillation helps cannot be tested, {which}"
    if not tested:
        return f"B0 reaches {score}; there is no completed distillation run to compare it with"
    best = next((cell for cell in task.best if cell.student == student), None)
    shown = task.comparison(student, best.method) if best else None
    if best and shown:
        assert shown.p_holm is not None
        point = f" ({best.hyperparameters})" if best.hyperparameters else ""
        text = (
            f"{best.method}{point} beats plain fine-tuning (B0), with {_score(task, best)} against "
            f"{number(baseline.mean, 1)} %: {signed(shown.difference)} points ({span(shown.interval)}), "
            f"{_size(shown)}, corrected {p_text(shown.p_holm)}"
        )
    else:
        shown = max([c for c in tested if c.verdict != TOO_FEW_SEEDS] or tested, key=lambda c: c.difference)
        if shown.verdict == TOO_FEW_SEEDS:
            return (
                f"{counted(shown.seeds, 'seed')} cannot show whether distillation helps; {shown.a} is "
                f"{signed(shown.difference)} points from B0 there ({score}, {counted(shown.examples, 'example')})"
            )
        text = _no_gain(score, shown)
    also = [c.a for c in comparisons if c is not shown and c.verdict == BETTER]  # nothing is hidden
    worse = [c.a for c in comparisons if c.verdict == WORSE]
    text += f"; also better than B0: {', '.join(also)}" if also else ""
    return text + (f"; worse than B0: {', '.join(worse)}" if worse else "")


def _no_gain(score: str, top: Comparison) -> str:
    text = (
        f"no distillation method is shown to beat plain fine-tuning (B0, {score}); the best of them, {top.a}, "
        f"differs by {signed(top.difference)} points ({span(top.interval)}), {_size(top)}"
    )
    if top.detectable is not None and top.p_holm is not None:
        text += f", corrected {p_text(top.p_holm)}"
        text += f"; only gains of {number(top.detectable, 1)} points and more would have been seen reliably"
    return text


def _size(c: Comparison) -> str:
    return f"{counted(c.seeds, 'seed')} × {counted(c.examples, 'example')}"


def _score(task: TaskAnalysis, cell: Cell) -> str:
    return f"{number(cell.mean, 1)} % {metric_name(task.metric)}"


def _absence(cell: Cell | None) -> str:
    return "was not planned" if cell is None else "failed" if cell.status == FAILED else "was not run"


# ------------------------------------------------------------------------------------------------ readings


def reading(c: Comparison) -> str:
    """What one row of the significance table means, in plain words."""
    if c.estimate is None:
        return f"{c.a} against {c.b}: no comparison ({c.verdict})."
    size = f"{signed(c.difference)} points ({span(c.interval)})"
    if c.verdict == TOO_FEW_SEEDS:
        return f"{c.a} against {c.b}: {size} over {counted(c.seeds, 'seed')}, too few to judge."
    assert c.p_holm is not None
    p = p_text(c.p_holm)
    if c.verdict != NO_EVIDENCE:
        return f"{c.a} is {c.verdict} than {c.b}: {size}, beyond these seeds and examples ({p})."
    if c.detectable is not None:
        p += f", {number(c.detectable, 1)} points would have been seen"
    if c.interval and not c.interval[0] <= 0 <= c.interval[1]:
        p += "; the interval is not corrected for the number of comparisons, p is"
    return f"{c.a} against {c.b}: {size}; no evidence of a difference ({p})."


def readings(task: TaskAnalysis, comparisons: Iterable[Comparison]) -> list[str]:
    """Of each of a task's comparisons, with the student where there are several."""
    return [_of(task, c.student, reading(c)) for c in comparisons]


def _of(task: TaskAnalysis, student: str | None, text: str) -> str:
    return f"{student}: {text}" if student and len(task.students) > 1 else text


def teacher_remark(task: TaskAnalysis) -> str:
    """Whether there was anything to learn: the teacher against every student's B0."""
    teacher = task.cell(TEACHER)
    if teacher is None or not teacher.runs:
        return f"The teacher's own score is missing: it {_absence(teacher)}."
    remarks = [_teacher_against(task, gap.comparison) for gap in task.gaps if gap.comparison.a == BASELINE]
    return " ".join(filter(None, remarks))


def _teacher_against(task: TaskAnalysis, c: Comparison) -> str:
    if c.estimate is None or c.interval is None:
        return ""
    who = f"B0 of {c.student}" if len(task.students) > 1 else "B0"
    points, interval = signed(-c.difference), span((-c.interval[1], -c.interval[0]))
    if c.difference >= 0:
        return f"The teacher is no better than {who} ({points} points)."
    if c.interval[1] >= 0 or c.verdict == TOO_FEW_SEEDS:
        size = f"{points} points, {interval}, {counted(c.seeds, 'seed')}"
        return f"That the teacher is better than {who} is not shown ({size})."
    return f"The teacher is {number(-c.difference, 1)} points above {who} ({interval})."


def gap_reading(gap: Gap, margin: float) -> str:
    """A method against the teacher in plain words."""
    c = gap.comparison
    if c.estimate is None:
        return f"{c.a}: no comparison with the teacher ({c.verdict})."
    below = c.interval is not None and c.interval[1] < -margin
    words = {
        NOT_INFERIOR: f"at most {margin:g} points worse than the teacher",
        TOO_FEW_SEEDS: "too few seeds to judge",
    }
    other = f"{'' if below else 'perhaps '}more than {margin:g} points worse than the teacher"
    share = ""
    if gap.share is not None and gap.share_interval is not None:
        low, high = (100 * bound for bound in gap.share_interval)
        closed = minus(number(100 * gap.share, 0))
        share = f"; closes {closed} % of the gap between B0 and the teacher ({span((low, high), 0)})"
    points = f"{signed(c.difference)} points from the teacher ({span(c.interval)})"
    return f"{c.a}: {points}, {words.get(gap.verdict, other)}{share}."


def gap_readings(task: TaskAnalysis, margin: float) -> list[str]:
    """Of every method but B0."""
    said = [(gap.comparison.student, gap_reading(gap, margin)) for gap in task.gaps if gap.comparison.a != BASELINE]
    return [_of(task, student, text) for student, text in said]


# ----------------------------------------------------------------------------------------------- paragraph


def paragraph(analysis: Analysis) -> str:
    """summary/narrative.md: results and their limits, ready for a thesis."""
    design = (
        "Every method trains the same student on the same examples in the same order and differs only in "
        "target and loss. Hyper-parameters and epochs were chosen on the dev split (mean over seeds); the "
        f"reported split was not used for any choice. Intervals are {analysis.level}. Differences to B0 are "
        "paired by seed and example; their intervals and p-values treat seeds and examples as random (Cochran "
        "and Cox's weighted t), and p-values are Holm-corrected over all comparisons of a task (intervals are "
        "not). Intervals of single scores are hierarchical bootstraps over seeds and examples, or over "
        f"examples alone where there is a single run ({analysis.settings.bootstrap_samples} resamples)."
    )
    tasks = [f"## {task.title}\n\n{_task_paragraph(analysis, task)}" for task in analysis.tasks]
    return "\n\n".join(["# Results", design, *tasks, f"## Limits\n\n{_limits(analysis)}"]) + "\n"


def _task_paragraph(analysis: Analysis, task: TaskAnalysis) -> str:
    text, best = finding(task), {(cell.student, cell.method) for cell in task.best}
    sentences = [text[0].upper() + text[1:], teacher_remark(task)]
    for cell in task.cells:
        if cell.method == ZERO_SHOT and cell.runs:
            sentences.append(f"Without training, {cell.student} reaches {_score(task, cell)}.")
    sentences += readings(task, [c for c in task.comparisons if (c.student, c.a) not in best or c.b != BASELINE])
    return " ".join(filter(None, [*sentences, *gap_readings(task, analysis.settings.margin)]))


def _limits(analysis: Analysis) -> str:
    sentences = []
    for task in analysis.tasks:
        seeds = "/".join(map(str, sorted({len(cell.runs) for cell in task.cells if cell.trained})))
        sentences.append(f"{task.title}: {seeds} seeds, {counted(len(task.ids), 'example')}.")
    sentences.append(
        "The t-test over seeds and the paired test over examples in table 4.3 each hold the other source "
        "fixed; no claim rests on one of them alone. Cohen's d over a handful of seeds is mostly noise."
    )
    lost = sum(run.status != COMPLETED for run in analysis.runs)
    if lost:
        what = "; ".join(losses(analysis.runs))
        sentences.append(f"{lost} of {counted(len(analysis.runs), 'planned run')} have no result: {what}.")
    return " ".join(sentences)

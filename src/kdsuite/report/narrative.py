"""The findings in sentences: a headline per task, the plain reading of each test, a paragraph for a thesis.

A gain is claimed only where the Holm-corrected test supports it; where it does not, the sentence says what
size of difference could have been seen.
"""

from __future__ import annotations

from kdsuite.evaluate.selection import COMPLETED
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
from kdsuite.report.load import BASELINE, TEACHER, ZERO_SHOT
from kdsuite.report.tables import best_cells
from kdsuite.report.wording import (
    cell_name,
    counted,
    metric_name,
    minus,
    number,
    p_text,
    seeds_and_examples,
    signed,
    span,
    task_name,
)


def headline(task: TaskAnalysis) -> str:
    """One honest sentence on the task (a clause per student where there are several)."""
    return f"{task_name(task.name)}: {finding(task)}"


def finding(task: TaskAnalysis) -> str:
    """The headline without the task's name."""
    parts = [_student_headline(task, student) for student in task.students]
    if not parts:
        return "no student was planned."
    if len(parts) == 1:
        return f"{parts[0]}."
    return "; ".join(f"{student}: {part}" for student, part in zip(task.students, parts, strict=True)) + "."


def _student_headline(task: TaskAnalysis, student: str) -> str:
    baseline = task.cell(BASELINE, student)
    comparisons = [c for c in task.comparisons if c.student == student and c.b == BASELINE]
    tested = [c for c in comparisons if c.estimate is not None]
    if baseline is None or not baseline.runs:
        return "nothing can be said, for the fine-tuned baseline B0 " + _absence(baseline)
    if any(c.verdict == TOO_FEW_EXAMPLES for c in comparisons):
        return f"B0 reaches {_score(task, baseline)}; whether distillation helps cannot be tested, {_one_group(task)}"
    if not tested:
        return (
            f"B0 reaches {_score(task, baseline)}; there is no completed distillation run to compare it with"
        )
    best = next((cell for cell in best_cells(task) if cell.student == student), None)
    if best is not None:
        comparison = task.comparison(student, best.method)
        assert comparison is not None
        return f"{_gain(task, best, baseline, comparison)}{_others(comparisons, comparison)}"
    testable = [c for c in tested if c.verdict != TOO_FEW_SEEDS]
    top = max(testable or tested, key=lambda c: c.difference)
    return _no_gain(task, baseline, top, comparisons)


def _one_group(task: TaskAnalysis) -> str:
    if len(task.ids) == 1:
        return "for the reported split is a single example"
    return f"for all {len(task.ids)} examples of the reported split belong together (one passage, one group)"


def _gain(task: TaskAnalysis, best: Cell, baseline: Cell, c: Comparison) -> str:
    assert c.p_holm is not None
    return (
        f"{cell_name(best, 1)} beats plain fine-tuning (B0), with {_score(task, best)} against "
        f"{number(baseline.mean, 1)} %: {signed(c.difference)} points ({span(c.interval)}), "
        f"{seeds_and_examples(c)}, corrected {p_text(c.p_holm)}"
    )


def _others(comparisons: list[Comparison], shown: Comparison) -> str:
    """What the sentence must not hide about the other methods."""
    also = [c.a for c in comparisons if c is not shown and c.verdict == BETTER]
    worse = [c.a for c in comparisons if c.verdict == WORSE]
    parts = [f"; also better than B0: {', '.join(also)}"] if also else []
    parts += [f"; worse than B0: {', '.join(worse)}"] if worse else []
    return "".join(parts)


def _no_gain(task: TaskAnalysis, baseline: Cell, top: Comparison, comparisons: list[Comparison]) -> str:
    if top.verdict == TOO_FEW_SEEDS:
        return (
            f"{counted(top.seeds, 'seed')} cannot show whether distillation helps; {top.a} is "
            f"{signed(top.difference)} points from B0 there ({_score(task, baseline)}, "
            f"{counted(top.examples, 'example')})"
        )
    text = (
        f"no distillation method is shown to beat plain fine-tuning (B0, {_score(task, baseline)}); the "
        f"best of them, {top.a}, differs by {signed(top.difference)} points ({span(top.interval)}), "
        f"{seeds_and_examples(top)}"
    )
    if top.detectable is not None and top.p_holm is not None:
        text += f", corrected {p_text(top.p_holm)}"
        text += f"; only gains of {number(top.detectable, 1)} points and more would have been seen reliably"
    return text + _others(comparisons, top)


def _score(task: TaskAnalysis, cell: Cell) -> str:
    return f"{number(cell.mean, 1)} % {metric_name(task.metric)}"


def _absence(cell: Cell | None) -> str:
    return "was not planned" if cell is None else {"failed": "failed"}.get(cell.status, "was not run")


def reading(c: Comparison) -> str:
    """What one row of the significance table means, in plain words."""
    if c.estimate is None:
        return f"{c.a} against {c.b}: no comparison ({c.verdict})."
    size = f"{signed(c.difference)} points ({span(c.interval)})"
    if c.verdict == TOO_FEW_SEEDS:
        return f"{c.a} against {c.b}: {size} over {counted(c.seeds, 'seed')}, too few to judge."
    assert c.p_holm is not None
    if c.verdict == NO_EVIDENCE:
        return f"{c.a} against {c.b}: {size}; no evidence of a difference ({p_text(c.p_holm)}{_detail(c)})."
    return f"{c.a} is {c.verdict} than {c.b}: {size}, beyond these seeds and examples ({p_text(c.p_holm)})."


def _detail(c: Comparison) -> str:
    """Why an interval without 0 may still be no evidence, and what could have been seen."""
    parts = [f", {number(c.detectable, 1)} points would have been seen"] if c.detectable is not None else []
    if c.interval and not c.interval[0] <= 0 <= c.interval[1]:
        parts.append("; the interval is not corrected for the number of comparisons, p is")
    return "".join(parts)


def teacher_remark(task: TaskAnalysis) -> str:
    """Whether there was anything to learn: the teacher against every student's B0."""
    teacher = task.cell(TEACHER)
    if teacher is None or not teacher.runs:
        return f"The teacher's own score is missing: it {_absence(teacher)}."
    remarks = [_teacher_against(task, gap) for gap in task.gaps if gap.comparison.a == BASELINE]
    return " ".join(remark for remark in remarks if remark)


def _teacher_against(task: TaskAnalysis, gap: Gap) -> str:
    c = gap.comparison
    if c.estimate is None or c.interval is None:
        return ""
    who = f"B0 of {c.student}" if len(task.students) > 1 else "B0"
    if c.difference >= 0:
        return f"The teacher is no better than {who} ({signed(-c.difference)} points)."
    if c.interval[1] >= 0 or c.verdict == TOO_FEW_SEEDS:
        size = f"{signed(-c.difference)} points, {_flipped(c)}, {counted(c.seeds, 'seed')}"
        return f"That the teacher is better than {who} is not shown ({size})."
    return f"The teacher is {number(-c.difference, 1)} points above {who} ({_flipped(c)})."


def _flipped(c: Comparison) -> str:
    assert c.interval is not None
    return span((-c.interval[1], -c.interval[0]))


def gap_reading(gap: Gap, margin: float) -> str:
    """A method against the teacher in plain words; empty without a comparison."""
    c = gap.comparison
    if c.estimate is None:
        return f"{c.a}: no comparison with the teacher ({c.verdict})."
    below = c.interval is not None and c.interval[1] < -margin
    words = {
        NOT_INFERIOR: f"at most {margin:g} points worse than the teacher",
        TOO_FEW_SEEDS: "too few seeds to judge",
    }
    other = f"{'' if below else 'perhaps '}more than {margin:g} points worse than the teacher"
    verdict = words.get(gap.verdict, other)
    share = ""
    if gap.share is not None and gap.share_interval is not None:
        low, high = (100 * bound for bound in gap.share_interval)
        closed = minus(number(100 * gap.share, 0))
        share = f"; closes {closed} % of the gap between B0 and the teacher ({span((low, high), 0)})"
    return f"{c.a}: {signed(c.difference)} points from the teacher ({span(c.interval)}), {verdict}{share}."


def paragraph(analysis: Analysis) -> str:
    """summary/narrative.md: results and their limits, ready for a thesis."""
    blocks = ["# Results", _design(analysis)]
    for task in analysis.tasks:
        blocks.append(f"## {task_name(task.name)}\n\n{_task_paragraph(analysis, task)}")
    blocks.append(f"## Limits\n\n{_limits(analysis)}")
    return "\n\n".join(blocks) + "\n"


def _design(analysis: Analysis) -> str:
    settings = analysis.settings
    level = f"{100 * settings.confidence:g} %"
    return (
        "Every method trains the same student on the same examples in the same order and differs only in "
        "target and loss. Hyper-parameters and epochs were chosen on the dev split (mean over seeds); the "
        f"reported split was not used for any choice. Intervals are {level}. Differences to B0 are paired "
        "by seed and example; their intervals and p-values treat seeds and examples as random (Cochran and "
        "Cox's weighted t), and p-values are Holm-corrected over all comparisons of a task (intervals are "
        "not). Intervals of single scores are hierarchical bootstraps over seeds and examples, or over "
        f"examples alone where there is a single run ({settings.bootstrap_samples} resamples)."
    )


def _task_paragraph(analysis: Analysis, task: TaskAnalysis) -> str:
    text, best = finding(task), {(cell.student, cell.method) for cell in best_cells(task)}
    sentences = [text[0].upper() + text[1:], teacher_remark(task), *_zero_shot(task)]
    sentences += [reading(c) for c in task.comparisons if (c.student, c.a) not in best or c.b != BASELINE]
    sentences += [
        gap_reading(gap, analysis.settings.margin) for gap in task.gaps if gap.comparison.a != BASELINE
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _zero_shot(task: TaskAnalysis) -> list[str]:
    cells = [cell for cell in task.cells if cell.method == ZERO_SHOT and cell.runs]
    return [f"Without training, {cell.student} reaches {_score(task, cell)}." for cell in cells]


def _limits(analysis: Analysis) -> str:
    sentences = []
    for task in analysis.tasks:
        seeds = sorted({len(cell.runs) for cell in task.cells if cell.method not in (TEACHER, ZERO_SHOT)})
        sentences.append(
            f"{task_name(task.name)}: {'/'.join(map(str, seeds))} seeds, {counted(len(task.ids), 'example')}."
        )
    sentences.append(
        "The t-test over seeds and the paired test over examples in table 4.3 each hold the other source "
        "fixed; no claim rests on one of them alone. Cohen's d over a handful of seeds is mostly noise."
    )
    lost = sum(run.status != COMPLETED for run in analysis.runs)
    if lost:
        what = "; ".join(losses(analysis.runs))
        sentences.append(f"{lost} of {counted(len(analysis.runs), 'planned run')} have no result: {what}.")
    return " ".join(sentences)

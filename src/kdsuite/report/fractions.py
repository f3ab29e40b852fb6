"""How much data: methods at fractions of the training examples, and from where on they no longer pay.

At each fraction a method is compared with B0 on the same examples, its hyper-parameters chosen there by the one rule
(`evaluate.selection`). All of a task's comparisons are one family of Holm's, apart from the headline's: fractions ×
methods, and for each method whether it gains less with all examples than with the fewest. Without that last one,
`shown` here and `not shown` there would be read as a difference, which it is not (Gelman & Stern 2006, The American
Statistician 60).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kdsuite.evaluate.crossed import FEWEST_SEEDS, Interval
from kdsuite.evaluate.selection import NOT_RUN
from kdsuite.report.comparisons import BETTER, WORSE, Comparison, compared, corrected, tested
from kdsuite.report.load import BASELINE

if TYPE_CHECKING:
    from kdsuite.report.analysis import Cell, TaskAnalysis

UNTESTED, NOWHERE, EVERYWHERE, UNSTEADY = "untested", "nowhere", "everywhere", "unsteady"
AS_LARGE, NOT_LESS, ENDS = "as large", "not less", "ends"


@dataclass(frozen=True, eq=False)
class Part:
    """A task at a fraction of its training examples: the cells of `task`, and how they compare with B0, are of that."""

    fraction: float
    examples: int
    task: TaskAnalysis

    @property
    def name(self) -> str:
        """For reading: "5 % (20 examples)"."""
        share = f"{100 * self.fraction:g} %" if self.fraction < 1 else "all"
        return f"{share} ({self.examples:,} example{'' if self.examples == 1 else 's'})"


@dataclass(frozen=True, eq=False)
class Curve:
    """A method's gains over B0, one per part; `less`: by how much it gains less on all examples than on the fewest."""

    student: str
    method: str
    gains: tuple[tuple[Part, Comparison], ...]
    less: Comparison

    @property
    def picture(self) -> str:
        """What may be said. That a gain ends (ENDS) takes one that is shown up to a fraction and on none behind it,
        where one as large is ruled out, and that is shown to be less on all examples than on the fewest."""
        count = len(self.better)
        if self.untested:
            return UNTESTED
        if not count or not self.others:
            return EVERYWHERE if count else NOWHERE
        if self.better != list(self.gains[:count]):
            return UNSTEADY
        if not self.ruled_out:
            return AS_LARGE
        return ENDS if self.less.verdict == BETTER else NOT_LESS

    @property
    def ruled_out(self) -> bool:
        """Whether, where no gain is shown, none can be as large as the smallest that is."""
        smallest = min(gain.difference for _, gain in self.better)
        return all(gain.interval is not None and gain.interval[1] < smallest for _, gain in self.others)

    @property
    def better(self) -> list[tuple[Part, Comparison]]:
        """Where a gain is shown; `others`, where none is, and among these `worse` and `untested`."""
        return [pair for pair in self.gains if pair[1].verdict == BETTER]

    @property
    def others(self) -> list[tuple[Part, Comparison]]:
        return [pair for pair in self.gains if pair[1].verdict != BETTER]

    @property
    def worse(self) -> list[tuple[Part, Comparison]]:
        return [pair for pair in self.gains if pair[1].verdict == WORSE]

    @property
    def untested(self) -> list[tuple[Part, Comparison]]:
        return [pair for pair in self.gains if pair[1].p_holm is None]


def band(cell: Cell) -> Interval | None:
    """The interval of a score over seeds and examples; None with fewer than three seeds."""
    return cell.interval if len(cell.runs) >= FEWEST_SEEDS else None


def compare_parts(parts: Sequence[Part]) -> tuple[tuple[Part, ...], tuple[Curve, ...]]:
    """The parts of a task, ascending, with their comparisons, and its curves."""
    if not parts:
        return (), ()
    whole = parts[-1].task
    methods = [(c.student, c.method) for c in whole.cells if c.student and c.trained and c.method != BASELINE]
    gains = [compared(part.task, student, method, BASELINE) for part in parts for student, method in methods]
    family = corrected([*gains, *(_less(parts, *one) for one in methods)], whole.settings)
    judged = tuple(
        replace(part, task=replace(part.task, comparisons=tuple(family[at * len(methods) :][: len(methods)])))
        for at, part in enumerate(parts)
    )
    curves = []
    for at, (student, method) in enumerate(methods):
        *mine, less = family[at :: len(methods)]
        curves.append(Curve(student, method, tuple(zip(judged, mine, strict=True)), less))
    return judged, tuple(curves)


def _less(parts: Sequence[Part], student: str, method: str) -> Comparison:
    """The gain with the fewest examples minus that with all, paired by seed and example."""
    few, whole = parts[0].task, parts[-1].task
    comparison = Comparison(whole.name, student, method, BASELINE, whole.metric, NOT_RUN)
    cells = [task.cell(name, student) for task in (few, whole) for name in (method, BASELINE)]
    found = [cell for cell in cells if cell and cell.scores is not None]
    if len(found) < len(cells):
        return comparison
    seeds = [seed for seed in found[0].seeds if all(seed in cell.seeds for cell in found)]
    a, b, c, d = (cell.scores[[cell.seeds.index(seed) for seed in seeds]] for cell in found if cell.scores is not None)
    return tested(comparison, (a - b) - (c - d), whole)

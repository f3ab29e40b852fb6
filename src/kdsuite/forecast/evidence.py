"""What the planned comparisons can show, and what a given gain would take: seeds or examples, and time."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kdsuite.config.report import BASELINE, ReportSettings, pairs_of
from kdsuite.evaluate.crossed import ASSUMED, FEWEST_SEEDS, MOST_SEEDS, Variances
from kdsuite.forecast.rows import Forecast, span

MOST_EXAMPLES = 100_000  # beyond it no number of examples is named


@dataclass(frozen=True)
class EvidenceRow:
    """Gains over another method, in points, that the comparisons of a task find with a `power`, at Holm's first step.

    `detectable` by the planned seeds and examples, None with fewer than three seeds: `with_three` is what those would
    find. A `gain` takes so many seeds with the planned examples, or examples with the planned seeds: None where even
    the most find no less than `with_most_seeds` or `with_most_examples`.
    """

    task: str
    seeds: int
    examples: int
    comparisons: int
    power: float
    basis: str
    detectable: float | None
    with_three: float | None
    seconds_per_seed: float | None
    gain: float | None = None
    seeds_needed: int | None = None
    examples_needed: int | None = None
    with_most_seeds: float | None = None
    with_most_examples: float | None = None

    @property
    def lines(self) -> list[str]:
        """For the terminal."""
        study = f"{self.seeds} seeds × {self.examples:,} examples can"
        if self.with_three is not None:
            few = f"{self.seeds} {'seed' if self.seeds == 1 else 'seeds'} cannot show anything, fewer than"
            study = f"{few} {FEWEST_SEEDS} never can; {FEWEST_SEEDS} seeds × {self.examples:,} examples could"
        seen = f"see gains of {self.with_three if self.detectable is None else self.detectable:.1f} points and more"
        count = f"{self.comparisons} comparison{'' if self.comparisons == 1 else 's'}"
        lines = [f"{self.task}: {study} {seen} in {count} ({self.basis})"]
        if self.gain is None:
            return lines
        ways = [f"{self.seeds_needed} seeds × {self.examples:,} examples"]
        if self.seeds_needed is None:
            limit = f"no number of seeds up to {MOST_SEEDS} is enough ({self.with_most_seeds:.1f} at best)"
            ways = [f"with {self.examples:,} examples {limit}"]
        if self.examples_needed is not None:
            ways.append(f"{self.seeds} seeds × {self.examples_needed:,} examples")
        elif self.with_most_examples is not None:
            limit = f"no number of examples is enough ({self.with_most_examples:.1f} at best)"
            ways.append(f"with {self.seeds} seeds {limit}")
        return [
            *lines,
            f"  to see {self.gain:g} points: {'; or '.join(ways)}",
            f"  a further seed of all methods takes {span(self.seconds_per_seed)}; the teacher's outputs are made once "
            "and serve all seeds",
        ]


def evidence(
    expected: Forecast, settings: ReportSettings, pilots: Mapping[str, Variances], gain: float | None = None
) -> list[EvidenceRow]:
    """A row per task in which methods are compared. Variances are those of its pilot runs, else assumed."""
    rows = []
    for task, examples in expected.reported.items():
        runs = [row for row in expected.runs if row.task == task]
        trained, comparisons = [row for row in runs if row.seeds], 0
        for student in dict.fromkeys(row.student for row in trained):
            there = {BASELINE} | {row.method for row in runs if row.student == student}
            methods = [row.method for row in trained if row.student == student]
            comparisons += sum({a, b} <= there for a, b in pairs_of(methods, settings.comparisons))
        if not comparisons:
            continue
        each = [row.seconds_each and row.seconds_each * row.per_seed for row in trained]
        variances, level = pilots.get(task, ASSUMED), (1 - settings.confidence) / comparisons
        seeds, power = len(trained[0].seeds), settings.power
        study, enough = variances.study(max(seeds, FEWEST_SEEDS), examples), seeds >= FEWEST_SEEDS
        found = study.detectable(level, power, known=True)
        row = EvidenceRow(
            task=task,
            seeds=seeds,
            examples=examples,
            comparisons=comparisons,
            power=power,
            basis=variances.basis,
            detectable=found if enough else None,
            with_three=None if enough else found,
            seconds_per_seed=None if None in each else sum(filter(None, each)),
        )
        if gain is not None:
            most = variances.study(seeds, MOST_EXAMPLES) if enough else None
            row = replace(
                row,
                gain=gain,
                seeds_needed=study.seeds_for(gain, level, power, known=True),
                examples_needed=examples_for(variances, seeds, gain, level, power) if most else None,
                with_most_seeds=study.detectable(level, power, MOST_SEEDS, known=True),
                with_most_examples=most.detectable(level, power, known=True) if most else None,
            )
        rows.append(row)
    return rows


def examples_for(variances: Variances, seeds: int, gain: float, level: float, power: float) -> int | None:
    """The fewest examples, to 1 %, with which so many seeds find a true `gain`; None if the most are too few."""
    low, high = 1, MOST_EXAMPLES

    def enough(examples: int) -> bool:
        return variances.study(seeds, examples).power(level, known=True)(gain) >= power

    if not enough(high):
        return None
    while high - low > max(1, low // 100):
        middle = max(low + 1, round((low * high) ** 0.5))
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high

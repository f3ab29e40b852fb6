"""Do the report's verdicts, intervals and promises hold where the truth is known?

Studies are simulated: probit items (an answer is right if a latent sum is positive) with a difficulty per example, an
effect of method × example, an effect of every run (its seed) and the noise of every single answer; B0 and a method give
the same answer to 9 examples in 10, and 85 % of them are right. One method has a grid of points; its dev scores share
the luck of its runs. What is measured is what the product does: `evaluate.selection.select`, `evaluate.crossed` and
Holm's correction, at α = 5 %. The tables are those of docs/statistics.md.

    python benchmarks/evidence.py [--studies 4000] [--only level power looks selection scenarios]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from measure import table
from numpy.random import Generator
from scipy.optimize import root_scalar
from scipy.special import ndtr, ndtri
from scipy.stats import chi2, multivariate_normal

from kdsuite.evaluate.crossed import Crossed, crossed
from kdsuite.evaluate.selection import COMPLETED, Configuration, Run, select
from kdsuite.report.comparisons import holm

ALPHA, RIGHT, SAME, DEV = 0.05, 0.85, 0.90, 300


@dataclass(frozen=True)
class Scenario:
    """`spread` is the standard deviation over seeds in points; `methods` are compared with B0, the first has `grid`
    points, whose effects on examples are common or, if `independent`, their own; `unsteady` multiplies B0's spread.
    """

    seeds: int = 3
    examples: int = 872
    spread: float = 1.0
    grid: int = 1
    independent: bool = True
    methods: int = 3
    partial: bool = False  # F1-like scores: some answers are partly right
    per_group: int = 1  # examples that share their effects
    unsteady: float = 1.0
    falls: float = (
        0.0  # share of B0's runs that lose some 20 points; the others are better, so that the mean is the same
    )


def _item_share() -> float:
    """The variance of examples' difficulties that makes SAME of two methods' answers equal."""
    level = float(ndtri(RIGHT))

    def excess(share: float) -> float:
        covariance: Any = [[1, share], [share, 1]]
        both = multivariate_normal([0, 0], covariance).cdf([level, level])
        return 2 * both + 1 - 2 * RIGHT - SAME

    return float(root_scalar(excess, bracket=(0.01, 0.999)).root)


ITEM = _item_share()
OWN = NOISE = math.sqrt((1 - ITEM) / 2)  # of method × example, and of single answers
LEVEL = float(ndtri(RIGHT))
POINT = 1 / (100 * math.exp(-(LEVEL**2) / 2) / math.sqrt(2 * math.pi))  # latent units per point

FALL = 15 * POINT


def _lift(falls: float) -> float:
    """By how much all runs are better where a share of them falls, with the same mean."""

    def excess(lift: float) -> float:
        return float((1 - falls) * ndtr(LEVEL + lift) + falls * ndtr(LEVEL + lift - FALL) - ndtr(LEVEL))

    return float(root_scalar(excess, bracket=(-1e-9, FALL)).root)


class Study:
    """The scores of one simulated study: dev scores of a grid, and answers to the reported examples."""

    def __init__(self, random: Generator, scenario: Scenario) -> None:
        self.random, self.s = random, scenario
        self.groups = np.repeat(np.arange(scenario.examples // scenario.per_group), scenario.per_group)
        self.difficulty = math.sqrt(ITEM) * self._effects()

    def _effects(self) -> np.ndarray:
        return self.random.normal(size=self.groups.max() + 1)[self.groups]

    def luck(self, *shape: int, spread: float = 1.0) -> np.ndarray:
        """Latent, of runs; what spreads more is lifted, so that it is as often right on average (the null)."""
        own, common = POINT * self.s.spread * spread, POINT * self.s.spread
        lifted = LEVEL * (math.sqrt((1 + own**2) / (1 + common**2)) - 1)
        return own * self.random.normal(size=shape) + lifted

    def scores(self, luck: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
        """In points [S, n], for the luck [S] of a method's runs and its own effects on examples."""
        own = OWN * self._effects() if own is None else own
        noise = NOISE * self.random.normal(size=(luck.size, self.groups.size))
        return self._graded(LEVEL + luck[:, None] + self.difficulty + own + noise)

    def _graded(self, latent: np.ndarray) -> np.ndarray:
        right = 100.0 * (latent > 0)
        return np.where(right > 0, right, 100 * ndtr(latent) * (latent > -0.8)) if self.s.partial else right

    def chosen(self, luck: np.ndarray, choose: Callable[[Sequence[Run]], Sequence[Run]]) -> list[int]:
        """The points [S] that dev scores of runs with this luck [grid, S] choose."""
        points, seeds = luck.shape
        difficulty = math.sqrt(ITEM) * self.random.normal(size=DEV)
        own = OWN * self.random.normal(size=(points if self.s.independent else 1, 1, DEV))
        noise = NOISE * self.random.normal(size=(points, seeds, DEV))
        dev = self._graded(LEVEL + luck[..., None] + difficulty + own + noise).mean(axis=-1)
        runs = [
            Run("", Configuration("KD1", "t", "S1", (("point", p),)), s, COMPLETED, None, record=_record(dev[p, s]))
            for p in range(points)
            for s in range(seeds)
        ]
        return [int(run.configuration.point[0][1]) for run in choose(runs)]

    def differences(self, choose: Callable[[Sequence[Run]], Sequence[Run]]) -> Iterator[np.ndarray]:
        """Of every method and B0, in points [S, n]."""
        s = self.s
        fallen = FALL * (self.random.random(s.seeds) < s.falls) - _lift(s.falls)
        baseline = self.scores(self.luck(s.seeds, spread=s.unsteady) - fallen)
        luck = self.luck(s.grid, s.seeds)
        points = self.chosen(luck, choose) if s.grid > 1 else [0] * s.seeds
        common = {point: OWN * self._effects() for point in ({0} if not s.independent else set(points))}
        own = np.stack([common[point if s.independent else 0] for point in points])
        yield self.scores(luck[points, range(s.seeds)], own) - baseline
        for _ in range(s.methods - 1):
            yield self.scores(self.luck(s.seeds)) - baseline


def _record(dev: float) -> dict[str, dict[str, dict[str, float]]]:
    return {"metrics": {"dev": {"m": dev}}}


def by_others(runs: Sequence[Run]) -> Sequence[Run]:
    """As the product chooses."""
    return select(runs, "m").runs


def by_all_others(runs: Sequence[Run]) -> Sequence[Run]:
    """Leave-one-out: every seed by all the others."""
    return [_best(runs, seed, lambda other, seed=seed: other != seed) for seed in sorted({r.seed or 0 for r in runs})]


def by_the_best_mean(runs: Sequence[Run]) -> Sequence[Run]:
    """As was done: one point for all seeds, by all of them."""
    return [_best(runs, seed, lambda _: True) for seed in sorted({r.seed or 0 for r in runs})]


def _best(runs: Sequence[Run], seed: int, voter: Callable[[int], bool]) -> Run:
    def mean(run: Run) -> float:
        same = [r for r in runs if r.configuration == run.configuration and voter(r.seed or 0)]
        return float(np.mean([r.metric("dev", "m") for r in same]))

    return max((run for run in runs if run.seed == seed), key=mean)


@dataclass(frozen=True)
class Outcome:
    """Of many studies: shares with a false claim and with one on the first method, mean difference of the first method
    and how often its plain interval and all corrected intervals together cover the truth.
    """

    family: float
    first: float
    bias: float
    coverage: float
    together: float


def judge(scenario: Scenario, studies: int, seed: int = 0, choose: Callable = by_others) -> Outcome:
    random, rows = np.random.default_rng(seed), []
    for _ in range(studies):
        study = Study(random, scenario)
        groups = study.groups if scenario.per_group > 1 else None
        estimates = [crossed(d, groups) for d in study.differences(choose)]
        steps = holm([estimate.p_value() for estimate in estimates], ALPHA)
        claims = [step is not None and step.p < ALPHA for step in steps]
        corrected = [e.interval(step.level) if step else None for e, step in zip(estimates, steps, strict=True)]
        rows.append((
            any(claims),
            claims[0],
            estimates[0].mean,
            _covers_zero(estimates[0].interval(ALPHA)),
            all(map(_covers_zero, corrected)),
        ))  # fmt: skip
    return Outcome(*np.mean(np.array(rows, float), axis=0).tolist())


def _covers_zero(interval: tuple[float, float] | None) -> bool:
    return interval is not None and interval[0] <= 0 <= interval[1]


# ------------------------------------------------------------------------------------------------------- tables


def scenarios(studies: int) -> None:
    """Errors, bias and coverage under the null."""
    core = [
        Scenario(seeds, examples, spread, grid=16)
        for seeds in (3, 5, 10)
        for examples in (300, 872, 10_570)
        for spread in (0.5, 1.0, 2.0)
    ]
    base = Scenario(spread=2.0)
    others = [
        base,
        replace(base, grid=4), replace(base, grid=4, independent=False),
        replace(base, grid=16, independent=False),
        replace(base, seeds=5), replace(base, seeds=5, grid=16, independent=False), replace(base, methods=1),
        replace(base, methods=8), replace(base, partial=True, grid=16),
        replace(base, seeds=5, partial=True, spread=1.0),
        replace(base, per_group=4, grid=16), replace(base, per_group=4, spread=0.5), replace(base, unsteady=3.0),
        replace(base, unsteady=0.0, grid=16), replace(base, examples=40), replace(base, spread=0.0),
        replace(base, spread=1.0, falls=0.15), replace(base, seeds=5, spread=1.0, falls=0.15),
    ]  # fmt: skip
    rows = []
    for scenario in [*core, *others]:
        start = time.perf_counter()
        found = judge(scenario, studies)
        rows.append([*_about(scenario), *_percent(found)])
        print(f"  {scenario} {found} {time.perf_counter() - start:.0f} s", flush=True)
    head = ["seeds", "examples", "seed sd", "grid", "methods", "else", "family", "first", "bias", "covers", "all cover"]
    print(table(head, rows))
    everything = np.array([[float(v) for v in row[6:]] for row in rows])
    print("mean", everything.mean(axis=0).round(2), "worst family", everything[:, 0].max(), flush=True)


def _about(s: Scenario) -> list[str]:
    words = {
        "cells alike": s.grid > 1 and not s.independent,
        "partial scores": s.partial,
        f"{s.per_group} per group": s.per_group > 1,
        f"B0's sd × {s.unsteady:g}": s.unsteady != 1,
        f"{s.falls:.0%} of B0 fall": s.falls > 0,
    }
    extra = ", ".join(word for word, applies in words.items() if applies)
    return [str(s.seeds), f"{s.examples:,}", f"{s.spread:g}", str(s.grid), str(s.methods), extra or "-"]


def _percent(found: Outcome) -> list[str]:
    return [
        f"{100 * found.family:.1f}",
        f"{found.first * 100:.1f}",
        f"{found.bias:+.2f}",
        f"{100 * found.coverage:.1f}",
        f"{100 * found.together:.1f}",
    ]


def selection(studies: int) -> None:
    """Three ways of choosing from a grid of 16 equally good points."""
    rows = []
    for seeds in (3, 5):
        for spread in (1.0, 2.0):
            for name, choose in (
                ("other seeds, half of them", by_others),
                ("all other seeds", by_all_others),
                ("best mean", by_the_best_mean),
            ):
                scenario = Scenario(seeds, 872, spread, grid=16)
                rows.append([str(seeds), f"{spread:g}", name, *_percent(judge(scenario, studies, choose=choose))])
                print(" ", rows[-1], flush=True)
    print(table(["seeds", "seed sd", "chosen by", "family", "first", "bias", "covers", "all cover"], rows))


def power(studies: int) -> None:
    """A study promises a gain; how often does another one, in which that gain is true, find it?

    Beside: what would be promised by who knows the variances (their means over all studies).
    """
    rows = []
    for seeds, examples, spread in product((3, 5, 10), (300, 872), (0.5, 1.0, 2.0)):
        scenario, random = Scenario(seeds, examples, spread), np.random.default_rng(1)
        found, studied, promises = [], [], []
        for _ in range(studies // 10):
            one, other = (next(Study(random, scenario).differences(by_others)) for _ in range(2))
            studied.append(crossed(one))
            promises.append(studied[-1].detectable(ALPHA / 3, 0.8) or 0.0)
            p = crossed(other + promises[-1]).p_value()
            found.append(p is not None and p < ALPHA / 3)
        of_seeds, of_examples = np.mean([(e.of_seeds, e.of_examples) for e in studied], axis=0).tolist()
        known = Crossed(0.0, of_seeds, of_examples, seeds, examples).detectable(ALPHA / 3, 0.8, known=True) or 0.0
        gains = [f"{np.median(promises):.1f}", f"{known:.1f}", f"{100 * np.mean(found):.0f}"]
        rows.append([str(seeds), str(examples), f"{spread:g}", *gains])
        print(" ", rows[-1], flush=True)
    print(table(["seeds", "examples", "seed sd", "promised (median)", "if the variances were known", "found, %"], rows))


def level(_: int) -> None:
    """The exact size of a single test, as a share of its level, over the ratio of both variances."""
    ratios, rows = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0), []
    shares = (np.arange(4000) + 0.5) / 4000
    for seeds in (3, 5, 10):
        for m in (1, 3, 8, 16):
            sizes = []
            for ratio in ratios:
                observed = ratio * chi2.ppf(shares, seeds - 1) / (seeds - 1)
                grid = np.geomspace(max(observed.min(), 1e-9), max(observed.max(), 1e-8), 80)
                critical = Crossed(0.0, 1.0, 1.0, seeds, 10**6)._critical(grid, ALPHA / m)
                tails = 2 * ndtr(-np.interp(observed, grid, critical) / math.sqrt(1 + ratio))
                sizes.append(f"{tails.mean() * m / ALPHA:.2f}")
            rows.append([str(seeds), f".05/{m}", *sizes])
    print(table(["seeds", "level", *(f"{ratio:g}" for ratio in ratios)], rows))


def looks(studies: int) -> None:
    """Errors of who adds seeds until something is found: the family of three, looked at with more and more seeds."""
    rows = []
    for sizes in ((3,), (3, 5), (3, 4, 5), (3, 5, 10), (3, 4, 5, 6, 7, 8, 9, 10)):
        random, false = np.random.default_rng(2), 0
        for _ in range(studies):
            whole = list(Study(random, Scenario(sizes[-1], 872, 1.0)).differences(by_others))
            false += any(
                min(step.p for step in holm([crossed(d[:seeds]).p_value() for d in whole], ALPHA) if step) < ALPHA
                for seeds in sizes
            )
        rows.append([", ".join(map(str, sizes)), f"{100 * false / studies:.1f}"])
        print(" ", rows[-1], flush=True)
    print(table(["looked at with so many seeds", "false claims, %"], rows))


PARTS = {"level": level, "selection": selection, "scenarios": scenarios, "power": power, "looks": looks}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    asked = parser.parse_args()
    for part in asked.only:
        print(f"\n{part}: {PARTS[part].__doc__}", flush=True)
        PARTS[part](asked.studies)

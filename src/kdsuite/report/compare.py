"""Two results folders side by side: the same cells, their difference, and which settings differ.

Runs of one folder are not paired with the other's by anything but the examples, so that the difference takes
each folder's seeds as independent samples; it needs the same examples on both sides.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from kdsuite.config.report import ReportSettings
from kdsuite.evaluate.crossed import FEWEST_SEEDS, Interval, possible, unpaired
from kdsuite.report.analysis import Cell, TaskAnalysis, analyse
from kdsuite.report.comparisons import TOO_FEW_EXAMPLES, TOO_FEW_SEEDS
from kdsuite.report.load import flatten, load
from kdsuite.report.words import metric_name, number, signed, span


@dataclass(frozen=True)
class Pair:
    """One cell in both folders; None where a folder has not planned it."""

    task: str
    title: str  # of the task
    label: str
    a: Cell | None
    b: Cell | None
    difference: float | None = None  # B − A in points
    interval: Interval | None = None
    remark: str = ""


@dataclass(frozen=True)
class FolderComparison:
    """What `compare` found; `settings` are (key, value in A, value in B) where they differ."""

    a: Path
    b: Path
    pairs: tuple[Pair, ...]
    settings: tuple[tuple[str, str, str], ...]

    @property
    def lines(self) -> list[str]:
        """For the terminal."""
        rows = [("task", "method", "A", "B", "B − A", "interval", "")]
        for pair in self.pairs:
            difference = "" if pair.difference is None else signed(pair.difference)
            scores = _score(pair.a), _score(pair.b), difference, span(pair.interval)
            rows.append((pair.title, pair.label, *scores, pair.remark))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        if any(pair.remark == TOO_FEW_SEEDS for pair in self.pairs):
            table += [
                "",
                f"no interval below {FEWEST_SEEDS} runs on each side: how far others would lie off is not known",
            ]
        settings = [f"  {key}: {a} | {b}" for key, a, b in self.settings]
        title = "settings that differ:" if settings else "the settings are the same"
        return [f"A: {self.a}", f"B: {self.b}", "", *table, "", title, *settings]


def compare(a: Path, b: Path, settings: ReportSettings) -> FolderComparison:
    """Set the results in `a` and `b` side by side; DataError if one of them holds none."""
    one, two = (analyse(load(Path(path)), settings) for path in (a, b))
    pairs = []
    for name in dict.fromkeys(task.name for task in (*one.tasks, *two.tasks)):
        tasks = one.task(name), two.task(name)
        keys = dict.fromkeys((cell.method, cell.student) for task in tasks if task for cell in task.cells)
        pairs += [_pair(*tasks, method, student, settings.confidence) for method, student in keys]
    ours, theirs = (dict(flatten(x.results.plan.get("settings") or {})) for x in (one, two))
    keys = (key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key))
    differences = tuple((key, ours.get(key, "—"), theirs.get(key, "—")) for key in keys)
    return FolderComparison(Path(a), Path(b), tuple(pairs), differences)


def _pair(
    one: TaskAnalysis | None, two: TaskAnalysis | None, method: str, student: str | None, confidence: float
) -> Pair:
    a, b = (task.cell(method, student) if task else None for task in (one, two))
    task = one or two
    assert task is not None
    pair = Pair(task.name, task.title, " ".join(filter(None, (student, method))), a, b)
    if not (one and two and a and b) or a.scores is None or b.scores is None:
        return pair
    if one.metric != two.metric:
        return replace(pair, remark=f"{metric_name(one.metric)} and {metric_name(two.metric)}")
    pair = replace(pair, difference=b.mean - a.mean)
    if not _same_examples(one, two):
        return replace(pair, remark="other examples")
    if one.groups.max() == 0:
        return replace(pair, remark=TOO_FEW_EXAMPLES)
    place = {name: index for index, name in enumerate(two.ids)}
    scores = b.scores[:, [place[name] for name in one.ids]]
    interval = possible(unpaired(scores, a.scores, one.groups).interval(1 - confidence))
    return replace(pair, interval=interval, remark="" if interval else TOO_FEW_SEEDS)


def _same_examples(one: TaskAnalysis, two: TaskAnalysis) -> bool:
    """Whether the ids are the same and, as one may be but a place in a file, what stands there, where it is known."""
    if set(one.ids) != set(two.ids):
        return False
    pairs = ((one.examples.get(name, {}), two.examples.get(name, {})) for name in one.ids)
    return all(a[key] == b[key] for a, b in pairs for key in ("inputs", "references") if key in a and key in b)


def _score(cell: Cell | None) -> str:
    if cell is None:
        return "not planned"
    point = f" ({cell.hyperparameters})" if cell.hyperparameters else ""
    return number(cell.mean, 1, missing=cell.status) + point

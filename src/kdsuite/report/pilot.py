"""What methods differed by in the runs of a results folder, for those who plan a study like it."""

from pathlib import Path

from kdsuite.config import Settings
from kdsuite.config.report import pairs_of
from kdsuite.evaluate.crossed import Variances, pooled
from kdsuite.report.analysis import scored
from kdsuite.report.comparisons import paired_differences
from kdsuite.report.load import flatten, load

FEWEST_GROUPS = 50  # of examples: fewer may well agree by chance


def pilots(root: Path, settings: Settings) -> dict[str, Variances]:
    """Per task, from its comparisons of two seeds and more; runs of other data, other students or a handful of examples
    say nothing.

    DataError if what is there cannot be read.
    """
    if not (Path(root) / "raw_runs" / "plan.json").exists():
        return {}
    results, found = load(root), {}
    then = dict(flatten(results.plan.get("settings") or {}))
    students = settings.models.students
    same = [s for s in settings.students if then.get(f"models.students.{s}.name") == students[s].name]
    for name in results.tasks:
        if name not in settings.tasks or then.get(f"tasks.{name}.source") != settings.tasks[name].source:
            continue
        task, differences, runs = scored(results, settings.report, name), [], set()
        for student in same:
            cells = {c.method: c for c in task.cells if c.student == student and c.trained and c.runs}
            for one, other in pairs_of(list(cells), settings.report.comparisons):
                if one not in cells or other not in cells:
                    continue
                difference = paired_differences(cells[one], cells[other])
                if len(difference) > 1 and task.groups.max() + 1 >= FEWEST_GROUPS:
                    differences.append(difference)
                    runs.update(run.run_id for method in (one, other) for run in cells[method].runs)
        if differences:
            found[name] = pooled(differences, task.groups, f"from {len(runs)} pilot runs in {root}")
    return found

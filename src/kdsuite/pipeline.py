"""The stages, in order: prepare, cache, train, benchmark, report. Each skips what is done and trusted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdsuite.config import Settings
from kdsuite.errors import KdsuiteError, OutOfMemory, RunError
from kdsuite.plan import TEACHER, RunSpec, expand, run_fingerprint
from kdsuite.registry import Registry, now
from kdsuite.runtime import device, hub
from kdsuite.runtime.environment import capture, code_version
from kdsuite.runtime.files import atomic_write_json, fingerprint, read_json, sha256_file
from kdsuite.runtime.progress import Progress
from kdsuite.stages.benchmarking import benchmark_models, benchmark_task
from kdsuite.stages.caching import build_teacher_outputs
from kdsuite.stages.training import execute, is_done
from kdsuite.stages.workshop import Workshop

STAGES = ("prepare", "cache", "train", "benchmark", "report")


@dataclass
class Outcome:
    """What an invocation did: counts of runs, failures with their reasons, closing lines."""

    completed: int = 0
    skipped: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    summary_lines: list[str] = field(default_factory=list)


def run(
    settings: Settings,
    results: Path,
    stages: Sequence[str] = STAGES,
    tasks: Iterable[str] | None = None,
    methods: Iterable[str] | None = None,
    models: Sequence[str] = (),
    progress: Progress | None = None,
) -> Outcome:
    """Do the given stages of everything the settings ask for, going on with what is there.

    With `models` (folders, hub ids) the benchmark measures these instead of the plan's; ModelError if one cannot
    be had.
    A failed run is recorded and named in the outcome; the others go on. SettingsError and DataError for input
    that nothing can be done with.
    """
    specs = expand(settings, tasks, methods)
    progress = progress or Progress()
    with progress:
        choice = device.choose(settings.device, settings.dtype, settings.threads)
        progress.say(str(choice))
        if (hub.hub_models(settings) or hub.hub_data(settings)) and not hub.reachable():
            hub.go_offline()
            progress.say("the hub is not reached: only what its cache holds can be used")
        shop = Workshop(settings, results, choice, Registry(results, progress.say), progress)
        outcome = Outcome()
        names = list(dict.fromkeys(spec.task for spec in specs))
        for task in names:
            shop.splits(task)
        if set(stages) & {"cache", "train", "benchmark", "report"}:
            _write_plan(shop)
        if set(stages) & {"cache", "train"} and any(spec.recipe and spec.recipe.features for spec in specs):
            for student in settings.trained_students:
                shop.layer_pairs(student)  # pairs that are not there are told before anything is trained
        if "cache" in stages:
            _cache(shop, names, outcome)
            shop.let_go_of_models()
        if "train" in stages:
            _train(shop, [spec for spec in specs if spec.method != TEACHER or "cache" not in stages], outcome)
            shop.let_go_of_models()
        if "benchmark" in stages and models:
            for task in names:
                benchmark_models(shop, task, models)
        elif "benchmark" in stages:
            _benchmark(shop, names, outcome)
        if "report" in stages:
            _report(shop, outcome, anew=tuple(stages) == ("report",))
    return outcome


def _write_plan(shop: Workshop) -> None:
    """What the whole configuration asks for: the report's list of cells, also of those never run."""
    specs = expand(shop.settings)
    runs = [
        {
            "run_id": spec.run_id,
            "fingerprint": run_fingerprint(shop.settings, spec, shop.fingerprints(spec.task)),
            "spec": spec.as_dict(),
        }
        for spec in specs
    ]
    plan = {
        "settings": shop.settings.model_dump(mode="json"),
        "created": now(),
        "code_version": code_version(),
        "environment": capture(shop.choice),
        "runs": runs,
    }
    atomic_write_json(shop.results / "raw_runs" / "plan.json", plan)


def _cache(shop: Workshop, tasks: Sequence[str], outcome: Outcome) -> None:
    """What the teacher says on all tasks; of its fallback, from the first task on, if memory runs out."""
    shop.progress.expect(len(tasks))
    try:
        for task in tasks:
            _cache_task(shop, task, outcome)
        return
    except OutOfMemory as error:
        reason = str(error)
    shop.fall_back(reason)
    _write_plan(shop)
    _cache(shop, tasks, outcome)


def _cache_task(shop: Workshop, task: str, outcome: Outcome) -> None:
    """The teacher's own run first (its fine-tuning, its score), then its outputs."""
    if not _one(shop, RunSpec(TEACHER, task), outcome):
        return
    try:
        build_teacher_outputs(shop, task)
    except RunError as error:
        if isinstance(error, OutOfMemory) and shop.can_fall_back():
            raise
        outcome.failed.append((f"teacher outputs of {task}", str(error)))
        shop.progress.say(f"teacher outputs of {task} failed: {error}")


def _train(shop: Workshop, specs: Sequence[RunSpec], outcome: Outcome) -> None:
    shop.progress.expect(len(specs))
    for spec in specs:
        _one(shop, spec, outcome)


def _one(shop: Workshop, spec: RunSpec, outcome: Outcome) -> bool:
    """Do a run unless it is done; whether it is done now."""
    if is_done(shop, spec):
        outcome.skipped += 1
        shop.progress.finish(f"{spec.run_id}: already there", skipped=True)
        return True
    try:
        fields = execute(shop, spec)
    except RunError as error:
        if spec.method == TEACHER and isinstance(error, OutOfMemory) and shop.can_fall_back():
            raise
        outcome.failed.append((spec.run_id, str(error)))
        shop.progress.finish(f"{spec.run_id}: failed: {error}")
        return False
    outcome.completed += 1
    metric = shop.task(spec.task).metric
    shop.progress.finish(f"{spec.run_id}: {metric} {fields['metrics']['validation'][metric]:.1f}")
    return True


def _benchmark(shop: Workshop, tasks: Sequence[str], outcome: Outcome) -> None:
    for task in tasks:
        try:
            benchmark_task(shop, task)
        except KdsuiteError as error:
            outcome.failed.append((f"benchmark of {task}", str(error)))
            shop.progress.say(f"benchmark of {task} failed: {error}")


def _report(shop: Workshop, outcome: Outcome, anew: bool) -> None:
    """Build the report, unless it was built from these very records already."""
    manifest, key = shop.results / "summary" / "manifest.json", _report_key(shop)
    made = [shop.results / "report.html", shop.results / "figures", manifest]
    if not anew and all(path.exists() for path in made) and read_json(manifest)["key"] == key:
        outcome.summary_lines += read_json(manifest)["lines"]
        return
    from kdsuite.report.build import build_report  # matplotlib and its fonts, only when something is drawn

    summary = build_report(shop.results, shop.settings.report, shop.progress.say)
    atomic_write_json(manifest, {"key": key, "lines": list(summary.lines)})
    outcome.summary_lines += summary.lines


def _report_key(shop: Workshop) -> str:
    """Identifies what a report is made of: its settings, the planned runs, all records and measurements."""
    raw = shop.results / "raw_runs"
    planned = [run["fingerprint"] for run in read_json(raw / "plan.json")["runs"]]
    records = sorted(
        [*raw.glob("*/run.json"), *raw.glob("*/predictions.jsonl"), *raw.glob("benchmarks/*.json")]
    )
    contents = [[path.relative_to(raw).as_posix(), sha256_file(path)] for path in records]
    return fingerprint([code_version(), shop.settings.report.model_dump(), planned, contents])

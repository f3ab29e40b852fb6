"""The stages, in order: prepare, cache, train, benchmark, report. Each skips what is done and trusted."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from kdsuite.config import TEACHER, Settings
from kdsuite.config.benchmark import BenchmarkSettings
from kdsuite.errors import KdsuiteError, OutOfMemory, RunError, SettingsError
from kdsuite.executors.hand import outcome as told
from kdsuite.executors.processes import count, processes
from kdsuite.executors.serial import Place, serial
from kdsuite.forecast.build import this_machine
from kdsuite.forecast.footprint import memory_rows
from kdsuite.forecast.proportion import proportionate
from kdsuite.forecast.scene import Scene
from kdsuite.jobs.asking import parts_of
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.benchmarking import benchmark_models, benchmark_task
from kdsuite.jobs.data import refuse_unreadable, splits
from kdsuite.jobs.importing import import_file
from kdsuite.jobs.job import Done, Job
from kdsuite.jobs.models import can_fall_back, fall_back, find_server, let_go_of_models, server_found
from kdsuite.jobs.teaching import identity, layer_pairs
from kdsuite.jobs.trials import try_models
from kdsuite.methods.base import method
from kdsuite.models.source import hub_models
from kdsuite.plan import RunSpec, expand, refuse_gaps, refuse_unspreadable
from kdsuite.runtime import device, hub
from kdsuite.runtime.environment import capture, code_version
from kdsuite.runtime.process import freeze_imports, garbage_kept
from kdsuite.runtime.progress import Progress
from kdsuite.runtime.tracking import refuse_missing
from kdsuite.store.artefact import Artefact
from kdsuite.store.files import (
    atomic_write_record,
    content_fingerprint,
    fingerprint,
    listed,
    read_json,
    remove_temporaries,
)
from kdsuite.store.layout import MANIFEST, PREDICTIONS, RECORD
from kdsuite.store.records import now
from kdsuite.tasks.example import UNLABELED, Task, task_of
from kdsuite.tasks.sizes import hub_data
from kdsuite.tasks.splits import fraction_sizes
from kdsuite.teacher.base import at_most

STAGES = ("prepare", "cache", "train", "benchmark", "report")
Executor = Callable[[Bench], AbstractContextManager[Place]]


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
    executor: Executor = serial,
) -> Outcome:
    """Do the given stages of everything the settings ask for, going on with what is there.

    With `models` (folders, hub ids) the benchmark measures these instead of the plan's; ModelError if one cannot
    be had.
    A failed run is recorded and named in the outcome; the others go on. SettingsError and DataError for input
    that nothing can be done with.
    """
    freeze_imports()
    specs = expand(settings, tasks, methods)
    refuse_gaps(settings, specs, at_most(settings.models.teacher))
    refuse_unspreadable(settings, specs)
    refuse_missing(settings.tracking)
    progress = progress or Progress()
    with progress:
        choice = device.choose(settings.device, settings.dtype, settings.threads)
        device.refuse_fewer(choice.device, settings.devices_per_job)
        progress.say(str(choice))
        if (hub_models(settings) or hub_data(settings)) and not hub.reachable():
            hub.go_offline()
            progress.say("the hub is not reached: only what its cache holds can be used")
        bench, outcome = Bench(settings, results, choice, progress), Outcome()
        if settings.devices_per_job > 1 and executor is serial:  # which can lose one of them, and go on
            executor = partial(processes, workers=1)
        with executor(bench) as place:  # first: what it lacks is told before any work
            names = list(dict.fromkeys(spec.task for spec in specs))
            _make_ready(bench, specs, names, stages)
            if settings.devices_per_job > 1 and set(stages) & {"cache", "train"}:
                place([Job(settings, results, RunSpec(TEACHER, names[0]), "try")], _raise_if_failed)
                bench.forget()  # it may have fallen back on another teacher
            if "cache" in stages:
                _by_some_teacher(bench, outcome, len(names), partial(_cache, bench, names, outcome, place))
                let_go_of_models(bench)
            if "train" in stages:
                runs = [spec for spec in specs if spec.method != TEACHER or "cache" not in stages]
                jobs = [Job(settings, results, spec) for spec in runs]
                _by_some_teacher(bench, outcome, len(jobs), partial(place, jobs, partial(_settle, bench, outcome)))
                let_go_of_models(bench)
        if "benchmark" in stages:
            _benchmark(bench, names, models, outcome)
        if "report" in stages:
            with bench.locks.hold("report"):
                _report(bench, outcome, anew=tuple(stages) == ("report",))
    return outcome


def _make_ready(bench: Bench, specs: Sequence[RunSpec], names: Sequence[str], stages: Sequence[str]) -> None:
    """Data, plan, and what must be known of teacher and students before anything is asked or trained."""
    settings = bench.settings
    if settings.models.served and set(stages) & {"cache", "train"}:
        found = find_server(bench) if "cache" in stages else server_found(bench)
        refuse_gaps(settings, specs, found.offers)
    for name in names:
        splits(bench, name)
    if set(stages) & {"cache", "train", "benchmark", "report"}:
        write_plan(bench)
    if set(stages) & {"cache", "train"}:
        for name in names:
            refuse_unreadable(bench, name, [*settings.students, *([TEACHER] if "cache" in stages else [])])
        for one in dict.fromkeys(spec.recipe for spec in specs if spec.recipe and spec.recipe.needs):
            for student in settings.students:
                layer_pairs(bench, one, student)  # layers that are not there are told before anything is trained
        if settings.devices_per_job == 1:
            try_models(bench)


def executor_of(name: str) -> Executor:
    """What the command line calls so, by default as many jobs at once as there is room for. SettingsError."""
    kind, _, rest = name.partition(":")
    number = rest.isdecimal() and int(rest)
    fits = {"serial": not rest, "ray": not rest or re.fullmatch(r"[^/\s]+:\d+", rest)}
    if not fits.get(kind, kind in ("processes", "slurm") and (not rest or number)):
        raise SettingsError(
            f"--executor {name}: serial, processes[:N], ray[:HOST:PORT] and slurm[:N], with N from 1, are the choices"
        )
    if kind == "serial":
        return serial
    if kind == "ray":
        ray = _extra("ray", "ray")
        return lambda bench: ray.on_ray(_of_one_device(bench, name), rest, ray.needs(bench, _peak(bench)))
    if kind == "slurm":
        on_slurm = _extra("slurm", "submitit").on_slurm
        return lambda bench: on_slurm(_of_one_device(bench, name), int(number))

    def side_by_side(bench: Bench) -> AbstractContextManager[Place]:
        peak = _peak(bench)
        workers = number or count(bench, peak)
        bench.progress.say(f"{workers} jobs at once, each of up to {peak / 1e9:.1f} GB by the plan")
        return processes(bench, workers)

    return side_by_side


def _of_one_device(bench: Bench, name: str) -> Bench:
    if bench.settings.devices_per_job > 1:
        raise SettingsError(
            f"--executor {name} gives each job one device; with devices_per_job take serial or processes"
        )
    return bench


def _extra(name: str, library: str) -> ModuleType:
    """The executor that needs a library which not everybody installs."""
    try:
        return import_module(f"kdsuite.executors.{name}")
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise SettingsError(f"--executor {name} needs {library}: pip install 'kdsuite[{name}]'") from error


def _peak(bench: Bench) -> int:
    """Bytes of the device's memory that the hungriest job takes, by the plan."""
    rows = memory_rows(Scene.of(bench.settings, expand(bench.settings), this_machine(bench.choice)))
    return max(row.bytes or 0 for row in rows if row.stage != "benchmark")


def import_cache(settings: Settings, results: Path, task: str, path: Path, progress: Progress) -> str:
    """Take a file of what the teacher of a task said elsewhere into the cache; returns what was taken."""
    with progress:
        choice = device.choose(settings.device, settings.dtype, settings.threads)
        bench = Bench(settings, results, choice, progress)
        with ExitStack() as held:  # nobody asks for any of it meanwhile
            for part in (None, *range(parts_of(bench, task))):
                one = Job(settings, results, RunSpec(TEACHER, task), "teach", part)
                held.enter_context(bench.locks.hold(one.name))
            return import_file(bench, task, path)


def write_plan(bench: Bench) -> None:
    """What the whole configuration asks for: the report's list of cells, also of those never run, and their words."""
    settings = bench.settings
    runs = [
        {"run_id": spec.run_id, "fingerprint": identity(bench, spec), "spec": spec.as_dict()}
        for spec in expand(settings)
    ]
    kinds = {name: task_of(name, section) for name, section in settings.tasks.items()}
    titles = titled(kinds)
    plan = {
        "settings": settings.model_dump(mode="json"),
        "created": now(),
        "code_version": code_version(),
        "environment": capture(bench.choice),
        "runs": runs,
        "tasks": {
            name: {
                "title": titles[name],
                "metric": kind.metric,
                "secondary_metric": kind.secondary_metric,
                "labels": list(kind.labels) if kind.labels else None,
                "licence": kind.settings.licence,
                "hub_id": kind.settings.hub_id,
                "citation": kind.settings.citation,
                "unlabeled": _unlabeled(bench, name),
                "prompt": kind.pattern(dict.fromkeys(f for e in splits(bench, name)["validation"] for f in e.inputs)),
                **_fractions(bench, kind),
            }
            for name, kind in kinds.items()
        },
        "methods": {
            name: {"title": one.title, "symbols": dict(one.symbols)}
            for name, one in ((name, method(name)) for name in settings.methods)
        },
    }
    path = bench.layout.plan
    with bench.locks.hold("plan"):
        remove_temporaries(path.parent, path.name)
        atomic_write_record(path, plan)


def _unlabeled(bench: Bench, name: str) -> dict[str, Any] | None:
    """How many inputs without targets a task has, and which methods learn on them."""
    count = len(splits(bench, name).get(UNLABELED, ()))
    return {"inputs": count, "methods": [one for one in bench.settings.methods if method(one).needs]} if count else None


def _fractions(bench: Bench, kind: Task) -> dict[str, Any]:
    """The fractions of a task's training examples that are trained on, with their sizes, where there are several."""
    sizes = fraction_sizes(kind, splits(bench, kind.name)["train"])
    found = [{"fraction": fraction, "examples": examples} for fraction, examples in sizes.items()]
    return {"fractions": found} if len(found) > 1 else {}


def titled(kinds: Mapping[str, Task]) -> dict[str, str]:
    """What tables and figures call each task: as its kind is called, with its own name where several are of a kind."""
    titles = {name: kind.settings.title or name for name, kind in kinds.items()}
    times = Counter(titles.values())
    return {name: title if times[title] == 1 else f"{title} ({name})" for name, title in titles.items()}


def _by_some_teacher(bench: Bench, outcome: Outcome, count: int, work: Callable[[], None]) -> None:
    """So many jobs; all of them again, with the fallback, where a teacher among them is too large."""
    bench.progress.expect(count)
    try:
        work()
    except OutOfMemory as error:
        fall_back(bench, str(error))
        write_plan(bench)
        bench.progress.expect(outcome.completed + outcome.skipped + len(outcome.failed))
        outcome.completed, outcome.skipped, outcome.failed = 0, 0, []
        work()


def _cache(bench: Bench, names: Sequence[str], outcome: Outcome, place: Place) -> None:
    """What the teacher says on all tasks. OutOfMemory where it can fall back.

    Of long tasks in parts first, which several processes can ask for, and which each task's own job puts together.
    """
    failed: dict[str, RunError] = {}

    def job(name: str, kind: Literal["run", "teach"] = "teach", part: int | None = None) -> Job:
        return Job(bench.settings, bench.results, RunSpec(TEACHER, name), kind, part)

    def note(one: Job, result: Callable[[], Done]) -> None:
        try:
            result()
        except RunError as error:
            if isinstance(error, OutOfMemory) and can_fall_back(bench):
                raise
            failed.setdefault(one.spec.task, error)

    parts = {name: parts_of(bench, name) for name in names}
    if tuned := [name for name in names if parts[name] and bench.settings.tasks[name].teacher_training.enabled]:
        place([job(name, "run") for name in tuned], note)
    if asking := [job(name, part=n) for name in names if name not in failed for n in range(parts[name])]:
        place(asking, note)
    for name, error in failed.items():
        _settle(bench, outcome, job(name), told(error))
    if whole := [job(name) for name in names if name not in failed]:
        place(whole, partial(_settle, bench, outcome))


def _settle(bench: Bench, outcome: Outcome, job: Job, result: Callable[[], Done]) -> None:
    """Count what came of a job; what failed is told, and others go on. OutOfMemory where the teacher can fall back."""
    try:
        done = result()
    except RunError as error:
        if job.spec.method == TEACHER and isinstance(error, OutOfMemory) and can_fall_back(bench):
            raise
        outcome.failed.append((job.title, str(error)))
        bench.progress.finish(f"{job.title}: failed: {error}")
        return
    outcome.completed += not done.skipped
    outcome.skipped += done.skipped
    bench.progress.finish(done.line, skipped=done.skipped)


def _raise_if_failed(job: Job, result: Callable[[], Done]) -> None:
    result()


def _benchmark(bench: Bench, names: Sequence[str], models: Sequence[str], outcome: Outcome) -> None:
    """The models of a plan on each task, or these models; one process at a time: they would disturb each other."""

    @cache
    def size() -> BenchmarkSettings:
        return proportionate(Scene.of(bench.settings, expand(bench.settings), this_machine(bench.choice)))

    with bench.locks.hold("benchmark"):
        for name in names:
            if models:
                benchmark_models(bench, name, models, size)
                continue
            try:
                benchmark_task(bench, name, size)
            except KdsuiteError as error:
                outcome.failed.append((f"benchmark of {name}", str(error)))
                bench.progress.say(f"benchmark of {name} failed: {error}")


def _report(bench: Bench, outcome: Outcome, anew: bool) -> None:
    """Build the report, unless it was built from these very settings, plans, records and measurements already."""
    at, runs, say = bench.layout, bench.layout.runs, bench.progress.say
    plan = read_json(bench.layout.plan)
    asked = {key: value for key, value in plan.items() if key not in ("created", "environment")}
    records = [*runs.glob(f"*/{RECORD}"), *runs.glob(f"*/{PREDICTIONS}"), *listed(bench.layout.benchmarks, "*.json")]
    contents = [[path.relative_to(runs).as_posix(), content_fingerprint(path)] for path in sorted(records)]
    key = fingerprint([bench.settings.report.model_dump(), asked, contents])
    made = Artefact(at.manifest, key, say, "the report is built anew", at.results)
    there = made.read()
    if there is None or anew:
        remove_temporaries(at.results, at.page.name)
        for folder in (at.figures, at.summary, at.latex):
            remove_temporaries(folder)
        from kdsuite.report.build import build_report  # matplotlib and its fonts, only when something is drawn

        with garbage_kept():
            lines = build_report(at.results, bench.settings.report, say)
        files = [f for folder in (at.summary, at.figures) for f in folder.rglob("*") if f.is_file()]
        names = {f.relative_to(at.results).as_posix() for f in [*files, at.page] if f.name != MANIFEST}
        there = made.write(sorted(names), lines=lines)
    outcome.summary_lines += there["lines"]

"""Who is benchmarked: the teacher, the best run of every method, the best of these in fewer bits, and others.

What is best is what stands in the tables (`evaluate.selection`); of these runs the first is taken.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdsuite.benchmark.variants import Variant
from kdsuite.config import TEACHER, ZERO_SHOT, ModelSettings
from kdsuite.errors import RunError, SettingsError
from kdsuite.evaluate.selection import Run, Selection, planned_run, select
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.data import task as task_named
from kdsuite.jobs.models import chat, offline_models, source
from kdsuite.jobs.teaching import identity
from kdsuite.models.check import refuse_unless_fits
from kdsuite.models.loading import load_chat, load_config, source_of
from kdsuite.models.source import ModelSource, is_adapter
from kdsuite.plan import expand
from kdsuite.store.layout import file_name
from kdsuite.tasks.encoding import ChatTokenizer

OTHER = "other"  # method and student of models that are no part of the plan


@dataclass(frozen=True)
class Contestant:
    """A variant with its tokenizer. `quality` and `dev` are percent: on the reported split where a run has
    recorded it (None: still to be evaluated), and on the dev split, mean over seeds."""

    variant: Variant
    chat: ChatTokenizer
    run: Run | None = None  # whose model it is; None for what is no part of the plan
    quality: float | None = None
    dev: float = math.nan


def planned(bench: Bench, task: str) -> list[Contestant]:
    """The contestants of a task's plan. RunError if no run is completed."""
    found = []
    for selection in best_runs(bench, task):
        run, method = selection.runs[0], selection.runs[0].configuration.method
        role = run.configuration.student or TEACHER
        if role == TEACHER and bench.settings.models.served:
            continue  # what it costs is its server's matter
        model, folder = source(bench, role), bench.layout.model(run.run_id)
        if folder.is_dir():
            model = ModelSource(model.name, str(folder), base=model if is_adapter(folder) else None)
        variant = Variant(TEACHER if role == TEACHER else f"{role} {method}", model, task, role, method)
        quality = run.metric("validation", task_named(bench, task).metric)
        found.append(Contestant(variant, chat(bench, role), run, quality, selection.dev_mean))
    if not found:
        raise RunError("no completed run to measure; run `kdsuite train` first")
    return [*found, *_quantized(bench, found)]


def untrained(bench: Bench, task: str) -> Contestant:
    """The first student as it came."""
    student = bench.settings.students[0]
    variant = Variant(f"{student} {ZERO_SHOT}", source(bench, student), task, student, ZERO_SHOT)
    return Contestant(variant, chat(bench, student))


def others(bench: Bench, task: str, names: Sequence[str]) -> list[Contestant]:
    """Models by folder (also of an adapter) or hub id. ModelError if one cannot be had, with its tokenizer, or has too
    few positions for the task."""
    sources = [source_of(ModelSettings(name=name), offline_models(bench)) for name in names]
    called = [file_name(source.name) for source in sources]  # where its figures lie
    if len(set(called)) < len(called):
        raise SettingsError(f"--models: two models are called alike ({', '.join(called)}); rename a folder")
    found, length = [], {f"tasks.{task}.max_length": bench.settings.tasks[task].max_length}
    for model in sources:
        config, tokens = load_config(model), load_chat(model)
        refuse_unless_fits(config, tokens, model.name, length)
        named = replace(model, name=model.whole.name)
        found.append(Contestant(Variant(model.name, named, task, OTHER, OTHER), tokens))
    return found


def best_runs(bench: Bench, task: str) -> list[Selection]:
    """What stands for each method and student in the tables, by method: the plan's runs alone are chosen from."""
    cells: dict[tuple[str, str | None], list[Run]] = defaultdict(list)
    for spec in (spec for spec in expand(bench.settings, [task]) if spec.fraction == 1):
        entry = {"run_id": spec.run_id, "fingerprint": identity(bench, spec), "spec": spec.as_dict()}
        cells[spec.method, spec.student].append(planned_run(entry, bench.registry.read(spec.run_id)))
    chosen = [select(runs, task_named(bench, task).metric) for runs in cells.values()]
    order = [TEACHER, ZERO_SHOT, *bench.settings.methods]
    return sorted((s for s in chosen if s.runs), key=lambda s: order.index(s.runs[0].configuration.method))


def _quantized(bench: Bench, contestants: Sequence[Contestant]) -> list[Contestant]:
    """The best trained configurations of each student in fewer bits; the first student in 4 bits is the proxy, if there
    is one."""
    settings, students, found = bench.settings.benchmark, bench.settings.students, []
    for student in students:
        names = {"int4": bench.settings.proxy} if bench.settings.proxy and student == students[0] else {}
        trained = [c for c in contestants if c.variant.student == student and c.variant.method != ZERO_SHOT]
        for rank, best in enumerate(sorted(trained, key=lambda c: -c.dev)):
            for scheme in settings.schemes(rank, proxy=bool(names)):
                called = names.get(scheme, student)
                name = f"{called} {best.variant.method} {scheme}"
                variant = replace(best.variant, name=name, student=called, quantization=scheme)
                found.append(Contestant(variant, best.chat, best.run))
    return found

"""Who is benchmarked: the teacher, the best run of every method, the best of these in fewer bits, and others.

What is best is what stands in the tables (`evaluate.selection`); of its seeds the first one's model is taken.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdsuite.benchmark.variants import Variant
from kdsuite.config import QUANTIZED_PROXY, ModelSettings
from kdsuite.errors import RunError, SettingsError
from kdsuite.evaluate.selection import Candidate, Run, planned_run, select
from kdsuite.jobs.workshop import Workshop
from kdsuite.models.loading import load_chat, load_config, source_of
from kdsuite.models.source import ModelSource, is_adapter
from kdsuite.plan import TEACHER, ZERO_SHOT, expand, run_fingerprint
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


def planned(shop: Workshop, task: str) -> list[Contestant]:
    """The contestants of a task's plan. RunError if no run is completed."""
    found = []
    for candidate in best_runs(shop, task):
        run, method = candidate.completed[0], candidate.configuration.method
        role = candidate.configuration.student or TEACHER
        source, folder = shop.source(role), shop.model_folder(run.run_id)
        if folder.is_dir():
            source = ModelSource(source.name, str(folder), base=source if is_adapter(folder) else None)
        variant = Variant(TEACHER if role == TEACHER else f"{role} {method}", source, task, role, method)
        quality = run.metric("validation", candidate.metric)
        found.append(Contestant(variant, shop.chat(role), run, quality, candidate.dev_mean))
    if not found:
        raise RunError("no completed run to measure; run `kdsuite train` first")
    return [*found, *_quantized(shop, found)]


def untrained(shop: Workshop, task: str) -> Contestant:
    """The first student as it came."""
    student = shop.settings.trained_students[0]
    variant = Variant(f"{student} {ZERO_SHOT}", shop.source(student), task, student, ZERO_SHOT)
    return Contestant(variant, shop.chat(student))


def others(shop: Workshop, task: str, names: Sequence[str]) -> list[Contestant]:
    """Models by folder (also of an adapter) or hub id. ModelError if one cannot be had, with its tokenizer."""
    sources = [source_of(ModelSettings(name=name), shop.offline_models()) for name in names]
    called = [source.name for source in sources]
    if len(set(called)) < len(called):
        raise SettingsError(f"--models: two models are called alike ({', '.join(called)}); rename a folder")
    found = []
    for source in sources:
        load_config(source)
        named = replace(source, name=source.whole.name)
        found.append(Contestant(Variant(source.name, named, task, OTHER, OTHER), load_chat(source)))
    return found


def plan_of(shop: Workshop, task: str) -> list[dict[str, Any]]:
    """A task's planned runs, as `plan.json` lists them: `run_id`, `fingerprint`, `spec`."""
    settings, sources = shop.settings, shop.fingerprints(task)
    return [
        {"run_id": s.run_id, "fingerprint": run_fingerprint(settings, s, sources), "spec": s.as_dict()}
        for s in expand(settings, [task])
    ]


def best_runs(shop: Workshop, task: str) -> list[Candidate]:
    """What stands for each method and student in the tables, by method: the plan's runs alone are chosen from."""
    cells: dict[tuple[str, str | None], list[Run]] = defaultdict(list)
    for planned in plan_of(shop, task):
        run = planned_run(planned, shop.registry.read(planned["run_id"]))
        cells[run.configuration.method, run.configuration.student].append(run)
    chosen = [select(runs, shop.task(task).metric).chosen for runs in cells.values()]
    order = [TEACHER, ZERO_SHOT, *shop.settings.methods]
    return sorted(filter(None, chosen), key=lambda c: order.index(c.configuration.method))


def _quantized(shop: Workshop, contestants: Sequence[Contestant]) -> list[Contestant]:
    """The best trained configurations of each student in fewer bits.

    Where a student is the proxy, the first student's 4-bit form bears its name, and is there for the best
    configuration in any case.
    """
    settings, found = shop.settings.benchmark, []
    students = dict(shop.settings.models.students)
    named = [name for name, model in students.items() if model and model.name == QUANTIZED_PROXY]
    for student in shop.settings.trained_students:
        trained = [c for c in contestants if c.variant.student == student and c.variant.method != ZERO_SHOT]
        for rank, contestant in enumerate(sorted(trained, key=lambda c: -c.dev)):
            schemes = [
                *(settings.quantize if rank < settings.quantize_top_k else ()),
                *(named if rank == 0 else ()),
            ]
            for scheme in dict.fromkeys(schemes):
                variant, called = contestant.variant, named.get(scheme, student)
                name = f"{called} {variant.method} {scheme}"
                variant = replace(variant, name=name, student=called, quantization=scheme)
                found.append(Contestant(variant, contestant.chat, contestant.run))
        named = {}
    return found

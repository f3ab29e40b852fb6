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
    quality: float | None = None
    dev: float = math.nan
    run_id: str | None = None  # of the run whose model it is; None for what is no part of the plan


def planned(shop: Workshop, task: str) -> list[Contestant]:
    """The contestants of a task's plan. RunError if no run is completed."""
    metric = shop.task(task).metric
    found = []
    for candidate in best_runs(shop, task):
        run = candidate.completed[0]
        role = run.configuration.student or TEACHER
        variant = _variant(shop, task, role, run.configuration.method, run.run_id)
        quality = run.metric("validation", metric)
        found.append(Contestant(variant, shop.chat(role), quality, candidate.dev_mean, run.run_id))
    if not found:
        raise RunError("no completed run to measure; run `kdsuite train` first")
    return [*found, *_quantized(shop, found)]


def untrained(shop: Workshop, task: str) -> Contestant:
    """The first student as it came."""
    student = shop.settings.trained_students[0]
    return Contestant(_variant(shop, task, student, ZERO_SHOT), shop.chat(student))


def others(shop: Workshop, task: str, names: Sequence[str]) -> list[Contestant]:
    """Models by folder (also of an adapter) or hub id. ModelError if one cannot be had, with its tokenizer."""
    sources = [source_of(ModelSettings(name=name), shop.offline_models()) for name in names]
    called = [source.name for source in sources]
    if len(set(called)) < len(called):
        raise SettingsError(f"--models: two models are called alike ({', '.join(called)}); rename a folder")
    return [_other(source, task) for source in sources]


def _other(source: ModelSource, task: str) -> Contestant:
    load_config(source)
    variant = Variant(
        name=source.name,
        model=source.whole.name,
        task=task,
        student=OTHER,
        method=OTHER,
        path=source.where,
        base=source.base,
        revision=source.revision,
    )
    return Contestant(variant, load_chat(source))


def plan_of(shop: Workshop, task: str) -> list[dict[str, Any]]:
    """A task's planned runs, as `plan.json` lists them: `run_id`, `fingerprint`, `spec`."""
    about = shop.settings, shop.fingerprints(task)
    return [
        {"run_id": s.run_id, "fingerprint": run_fingerprint(about[0], s, about[1]), "spec": s.as_dict()}
        for s in expand(shop.settings, [task])
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


def _variant(shop: Workshop, task: str, role: str, method: str, run_id: str | None = None) -> Variant:
    """A role's model as it came or, if that run has trained it, as the run left it."""
    source = shop.source(role)
    if run_id and (folder := shop.model_folder(run_id)).is_dir():
        source = ModelSource(source.name, str(folder), base=source if is_adapter(folder) else None)
    return Variant(
        name=TEACHER if role == TEACHER else f"{role} {method}",
        model=source.name,
        task=task,
        student=role,
        method=method,
        path=source.where,
        base=source.base,
        revision=source.revision,
    )


def _quantized(shop: Workshop, contestants: Sequence[Contestant]) -> list[Contestant]:
    """The best trained configurations of each student in fewer bits; S1's 4-bit form is S2, if that is the
    proxy, and then there for the best configuration in any case."""
    settings = shop.settings.benchmark
    s2 = shop.settings.models.students.S2
    proxy = s2 is not None and s2.name == QUANTIZED_PROXY
    found = []
    for student in shop.settings.trained_students:
        trained = [c for c in contestants if c.variant.student == student and c.variant.method != ZERO_SHOT]
        for rank, contestant in enumerate(sorted(trained, key=lambda c: -c.dev)):
            schemes: dict[str, None] = dict.fromkeys(
                settings.quantize if rank < settings.quantize_top_k else ()
            )
            if proxy and student == "S1" and rank == 0:
                schemes["int4"] = None
            found += [_in_bits(contestant, scheme, proxy) for scheme in schemes]
    return found


def _in_bits(contestant: Contestant, scheme: str, proxy: bool) -> Contestant:
    variant = contestant.variant
    student = "S2" if proxy and scheme == "int4" else variant.student
    name = f"{student} {variant.method} {scheme}"
    in_bits = replace(variant, name=name, student=student, quantization=scheme)
    return Contestant(in_bits, contestant.chat, run_id=contestant.run_id)

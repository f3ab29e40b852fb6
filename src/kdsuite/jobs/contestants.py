"""Who is benchmarked: the teacher, the best run of every method, the best of these in fewer bits, and others.

"Best" is the mean over seeds on the dev split; of the best hyper-parameters the first seed's model is taken.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdsuite.benchmark.variants import Variant
from kdsuite.config import TEACHER, ZERO_SHOT, ModelSettings
from kdsuite.errors import RunError, SettingsError
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.data import identity
from kdsuite.jobs.data import task as task_named
from kdsuite.jobs.models import chat, model_folder, offline_models, source
from kdsuite.models.loading import load_chat, load_config, source_of
from kdsuite.models.source import ModelSource, is_adapter
from kdsuite.plan import RunSpec, expand
from kdsuite.tasks.encoding import ChatTokenizer

OTHER = "other"  # method and student of models that are no part of the plan

Record = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """A variant with its tokenizer. `quality` and `dev` are percent: on the reported split where a run has
    recorded it (None: still to be evaluated), and on the dev split, mean over seeds."""

    variant: Variant
    chat: ChatTokenizer
    quality: float | None = None
    dev: float = math.nan
    run_id: str | None = None  # of the run whose model it is; None for what is no part of the plan


def planned(bench: Bench, task: str) -> list[Contestant]:
    """The contestants of a task's plan. RunError if no run is completed."""
    cells = _best_runs(bench, task)
    if not cells:
        raise RunError("no completed run to measure; run `kdsuite train` first")
    metric = task_named(bench, task).metric
    trained_or_not = [
        Contestant(
            _variant(bench, RunSpec(**record["spec"])),
            chat(bench, record["spec"]["student"] or TEACHER),
            record["metrics"]["validation"][metric],
            dev,
            record["run_id"],
        )
        for record, dev in cells
    ]
    return [*trained_or_not, *_quantized(bench, trained_or_not)]


def untrained(bench: Bench, task: str) -> Contestant:
    """The first student as it came."""
    student = bench.settings.students[0]
    return Contestant(_variant(bench, RunSpec(ZERO_SHOT, task, student)), chat(bench, student))


def others(bench: Bench, task: str, names: Sequence[str]) -> list[Contestant]:
    """Models by folder (also of an adapter) or hub id. ModelError if one cannot be had, with its tokenizer."""
    sources = [source_of(ModelSettings(name=name), offline_models(bench)) for name in names]
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


def _best_runs(bench: Bench, task: str) -> list[tuple[Record, float]]:
    """Per method and student, in the plan's order: a completed run and the dev mean of its configuration.

    Of the plan's own runs: others on disk may be of a former student of that name.
    """
    planned = runs_of_plan(bench, task)
    records = [
        r
        for r in bench.registry.records()
        if r["status"] == "completed" and planned.get(r["run_id"]) == r["fingerprint"]
    ]
    metric = task_named(bench, task).metric
    cells: dict[tuple[str, str], dict[tuple[Any, ...], list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        spec = record["spec"]
        point = tuple(spec["point"].items())
        cells[spec["student"] or TEACHER, spec["method"]][point].append(record)
    order = [TEACHER, ZERO_SHOT, *bench.settings.methods]
    best = []
    for _, points in sorted((key, points) for key, points in cells.items() if key[1] in order):
        dev, same = max(((_mean_dev(rs, metric), rs) for rs in points.values()), key=lambda pair: pair[0])
        best.append((min(same, key=lambda r: r["spec"]["seed"] or 0), dev))
    return sorted(best, key=lambda pair: order.index(pair[0]["spec"]["method"]))


def runs_of_plan(bench: Bench, task: str) -> dict[str, str]:
    """The fingerprints of a task's planned runs by their id."""
    specs = expand(bench.settings, [task])
    return {spec.run_id: identity(bench, spec) for spec in specs}


def _mean_dev(records: list[Record], metric: str) -> float:
    return statistics.fmean(r["metrics"]["dev"].get(metric, math.nan) for r in records)


def _variant(bench: Bench, spec: RunSpec) -> Variant:
    role = spec.student or TEACHER
    came, folder = source(bench, role), model_folder(bench, spec.run_id)
    if folder.is_dir():
        came = ModelSource(came.name, str(folder), base=came if is_adapter(folder) else None)
    return Variant(
        name=TEACHER if role == TEACHER else f"{role} {spec.method}",
        model=came.name,
        task=spec.task,
        student=role,
        method=spec.method,
        path=came.where,
        base=came.base,
        revision=came.revision,
    )


def _quantized(bench: Bench, contestants: Sequence[Contestant]) -> list[Contestant]:
    """The best trained configurations of each student in fewer bits; S1's 4-bit form is S2, if that is the
    proxy, and then there for the best configuration in any case."""
    settings = bench.settings.benchmark
    proxy, first = bench.settings.proxy, bench.settings.students[0]
    found = []
    for student in bench.settings.students:
        trained = [c for c in contestants if c.variant.student == student and c.variant.method != ZERO_SHOT]
        for rank, contestant in enumerate(sorted(trained, key=lambda c: -c.dev)):
            schemes: dict[str, None] = dict.fromkeys(
                settings.quantize if rank < settings.quantize_top_k else ()
            )
            if proxy and student == first and rank == 0:
                schemes["int4"] = None
            found += [_in_bits(contestant, scheme, proxy) for scheme in schemes]
    return found


def _in_bits(contestant: Contestant, scheme: str, proxy: str | None) -> Contestant:
    variant = contestant.variant
    student = proxy if proxy and scheme == "int4" else variant.student
    name = f"{student} {variant.method} {scheme}"
    in_bits = replace(variant, name=name, student=student, quantization=scheme)
    return Contestant(in_bits, contestant.chat, run_id=contestant.run_id)

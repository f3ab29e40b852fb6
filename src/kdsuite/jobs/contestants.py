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
from kdsuite.config import QUANTIZED_PROXY, ModelSettings
from kdsuite.errors import RunError, SettingsError
from kdsuite.jobs.workshop import Workshop
from kdsuite.models.loading import load_chat, load_config, source_of
from kdsuite.models.source import ModelSource, is_adapter
from kdsuite.plan import TEACHER, ZERO_SHOT, RunSpec, expand, run_fingerprint
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


def planned(shop: Workshop, task: str) -> list[Contestant]:
    """The contestants of a task's plan. RunError if no run is completed."""
    cells = _best_runs(shop, task)
    if not cells:
        raise RunError("no completed run to measure; run `kdsuite train` first")
    metric = shop.task(task).metric
    trained_or_not = [
        Contestant(
            _variant(shop, RunSpec(**record["spec"])),
            shop.chat(record["spec"]["student"] or TEACHER),
            record["metrics"]["validation"][metric],
            dev,
            record["run_id"],
        )
        for record, dev in cells
    ]
    return [*trained_or_not, *_quantized(shop, trained_or_not)]


def untrained(shop: Workshop, task: str) -> Contestant:
    """The first student as it came."""
    student = shop.settings.trained_students[0]
    return Contestant(_variant(shop, RunSpec(ZERO_SHOT, task, student)), shop.chat(student))


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


def _best_runs(shop: Workshop, task: str) -> list[tuple[Record, float]]:
    """Per method and student, in the plan's order: a completed run and the dev mean of its configuration.

    Of the plan's own runs: others on disk may be of a former student of that name.
    """
    planned = runs_of_plan(shop, task)
    records = [
        r
        for r in shop.registry.records()
        if r["status"] == "completed" and planned.get(r["run_id"]) == r["fingerprint"]
    ]
    metric = shop.task(task).metric
    cells: dict[tuple[str, str], dict[tuple[Any, ...], list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        spec = record["spec"]
        point = spec["temperature"], spec["alpha"], spec["feature_weight"]
        cells[spec["student"] or TEACHER, spec["method"]][point].append(record)
    order = [TEACHER, ZERO_SHOT, *shop.settings.methods]
    best = []
    for _, points in sorted((key, points) for key, points in cells.items() if key[1] in order):
        dev, same = max(((_mean_dev(rs, metric), rs) for rs in points.values()), key=lambda pair: pair[0])
        best.append((min(same, key=lambda r: r["spec"]["seed"] or 0), dev))
    return sorted(best, key=lambda pair: order.index(pair[0]["spec"]["method"]))


def runs_of_plan(shop: Workshop, task: str) -> dict[str, str]:
    """The fingerprints of a task's planned runs by their id."""
    specs = expand(shop.settings, [task])
    return {spec.run_id: run_fingerprint(shop.settings, spec, shop.fingerprints(task)) for spec in specs}


def _mean_dev(records: list[Record], metric: str) -> float:
    return statistics.fmean(r["metrics"]["dev"].get(metric, math.nan) for r in records)


def _variant(shop: Workshop, spec: RunSpec) -> Variant:
    role = spec.student or TEACHER
    source, folder = shop.source(role), shop.model_folder(spec.run_id)
    if folder.is_dir():
        source = ModelSource(source.name, str(folder), base=source if is_adapter(folder) else None)
    return Variant(
        name=TEACHER if role == TEACHER else f"{role} {spec.method}",
        model=source.name,
        task=spec.task,
        student=role,
        method=spec.method,
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

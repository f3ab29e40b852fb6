"""The benchmark stage of one task: latency, memory and size of the teacher and of the best students."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from kdsuite.config import QUANTIZED_PROXY
from kdsuite.errors import RunError
from kdsuite.evaluation.benchmark import measure_variants
from kdsuite.evaluation.variants import Variant
from kdsuite.models.loading import ADAPTER_CONFIG, ModelSource
from kdsuite.plan import TEACHER, ZERO_SHOT
from kdsuite.runtime.files import atomic_write_record, fingerprint, read_json, remove_temporaries
from kdsuite.stages.workshop import Workshop

Record = dict[str, Any]


def benchmark_task(shop: Workshop, task: str) -> None:
    """Measure the variants of a task and write raw_runs/benchmarks/<task>.json, unless it is there already."""
    chosen = _best_runs(shop, task)
    if not chosen:
        raise RunError("no completed run to measure; run `kdsuite train` first")
    variants = [_variant(shop, record) for record in chosen]
    variants += _quantized(shop, task, chosen, variants)
    lengths = _prompt_lengths(shop, task)
    settings = shop.settings.benchmark
    key = fingerprint(
        [
            [vars(v) for v in variants],
            [ModelSource("", v.path).fingerprint for v in variants],
            lengths,
            settings.model_dump(),
            str(shop.choice),
        ]
    )
    path = shop.results / "raw_runs" / "benchmarks" / f"{task}.json"
    if _is_of(path, key):
        shop.progress.say(f"benchmark of {task}: already there")
        return
    workdir = shop.results / "models" / "quantized"
    remove_temporaries(workdir)
    rows = measure_variants(variants, lengths, settings, shop.choice, workdir, shop.progress)
    quality = {v.name: record for v, record in zip(variants, chosen, strict=False)}
    metric = shop.task(task).metric
    for row in rows:
        record = quality.get(row["variant"])
        row["metric"] = metric
        row["metric_value"] = record["metrics"]["validation"][metric] if record else None
    atomic_write_record(path, {"fingerprint": key, "task": task, "rows": rows})


def _is_of(path: Path, key: str) -> bool:
    """Whether these very measurements are on disk, unaltered."""
    try:
        return read_json(path)["fingerprint"] == key
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _best_runs(shop: Workshop, task: str) -> list[Record]:
    """Per method and student the completed run of the first seed, at the hyper-parameters that did best on dev."""
    records = [r for r in shop.registry.records() if r["status"] == "completed" and r["spec"]["task"] == task]
    metric = shop.task(task).metric
    cells: dict[tuple[str, str], dict[tuple[Any, ...], list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        spec = record["spec"]
        point = spec["temperature"], spec["alpha"], spec["feature_weight"]
        cells[spec["student"] or TEACHER, spec["method"]][point].append(record)
    order = [TEACHER, ZERO_SHOT, *shop.settings.methods]
    best = [
        min(max(points.values(), key=lambda rs: _mean_dev(rs, metric)), key=lambda r: r["spec"]["seed"] or 0)
        for (_, method), points in sorted(cells.items())
        if method in order
    ]
    return sorted(best, key=lambda r: order.index(r["spec"]["method"]))


def _mean_dev(records: list[Record], metric: str) -> float:
    return statistics.fmean(r["metrics"]["dev"].get(metric, math.nan) for r in records)


def _variant(shop: Workshop, record: Record) -> Variant:
    spec = record["spec"]
    role = spec["student"] or TEACHER
    source, folder = shop.source(role), shop.model_folder(record["run_id"])
    trained = folder.is_dir()
    adapter = (folder / ADAPTER_CONFIG).exists()
    name = TEACHER if role == TEACHER else f"{role} {spec['method']}"
    return Variant(
        name=name,
        model=source.name,
        task=spec["task"],
        student=role,
        method=spec["method"],
        path=str(folder) if trained else source.where,
        base=source.where if adapter else None,
        revision=source.revision,
    )


def _quantized(shop: Workshop, task: str, records: list[Record], variants: list[Variant]) -> list[Variant]:
    """The best trained configurations again, in fewer bits; S1's 4-bit form is S2 where that is the proxy."""
    metric = shop.task(task).metric
    s2 = shop.settings.models.students.S2
    proxy = s2 is not None and s2.name == QUANTIZED_PROXY
    trained = [
        (record["metrics"]["dev"][metric], variant)
        for record, variant in zip(records, variants, strict=True)
        if record["spec"]["seed"] is not None
    ]
    trained.sort(key=lambda pair: -pair[0])
    schemes: list[str] = [*shop.settings.benchmark.quantize]
    if proxy and "int4" not in schemes:
        schemes.append("int4")
    chosen = [variant for _, variant in trained[: max(shop.settings.benchmark.quantize_top_k, int(proxy))]]
    return [
        _in_bits(variant, scheme, proxy and scheme == "int4" and variant.student == "S1")
        for variant in chosen
        for scheme in schemes
    ]


def _in_bits(variant: Variant, scheme: str, is_proxy: bool) -> Variant:
    student = "S2" if is_proxy else variant.student
    fields = vars(variant) | {"name": f"{student} {variant.method} {scheme}", "student": student}
    return Variant(**(fields | {"quantization": scheme}))


def _prompt_lengths(shop: Workshop, task: str) -> dict[str, int]:
    """Median and 95th percentile of the task's own prompts, in the first student's tokens."""
    data = shop.evaluation_set(task, shop.settings.trained_students[0], "dev")
    lengths = sorted(
        [e.segments.count(0) for e in data.encoded]
        or [len(window) for windows in data.prompts for window in windows]
    )
    return {
        "median": lengths[len(lengths) // 2],
        "p95": lengths[min(len(lengths) - 1, int(len(lengths) * 0.95))],
    }

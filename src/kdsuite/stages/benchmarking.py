"""The benchmark stage of one task: what the models cost, and how good they are where no run has said so.

What the plan asks for is measured together and lies in `benchmarks/<task>.json`. Every other model that a
user names has a file of its own, `<task>--<name>.json`, which stays until the file is deleted or a model of
that name is measured again. It was measured at another time, so the untrained student is measured along with
it: by how much that differs from its figures in `<task>.json` is part of the noise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdsuite.errors import RunError
from kdsuite.evaluation.answering import answer_seconds, spread_out
from kdsuite.evaluation.benchmark import measure_variants
from kdsuite.evaluation.predict import EvaluationSet, metrics, predict, write_predictions
from kdsuite.evaluation.samples import spread_percent
from kdsuite.evaluation.variants import Variant, load, standalone
from kdsuite.models.loading import ModelSource
from kdsuite.runtime.files import atomic_write_json, fingerprint, read_json
from kdsuite.stages.contestants import Contestant, others, planned, untrained
from kdsuite.stages.workshop import Workshop

SAME = ("device", "dtype", "threads", "batch_size", "prompt_tokens", "new_tokens")  # conditions of a row

Row = dict[str, Any]


def benchmark_task(shop: Workshop, task: str) -> None:
    """Measure the models of a task's plan, unless that is done. RunError if there are none."""
    contestants = planned(shop, task)
    path, key = _folder(shop) / f"{task}.json", _key(shop, task, contestants)
    if _is_there(shop, path, key):
        return
    rows = _measure(shop, task, contestants)
    _add_quality(shop, task, contestants, rows)
    _write(shop, task, path, key, rows)
    for problem in _problems(rows):
        shop.progress.say(problem)
    shop.progress.say(_trust(task, rows))


def benchmark_models(shop: Workshop, task: str, names: Sequence[str]) -> None:
    """Measure other models, by folder or hub id, on a task, those that are not there already.

    ModelError if one of them cannot be had, RunError if one cannot be measured; the others are kept.
    """
    places = {
        contestant: (
            _folder(shop) / f"{task}--{_slug(contestant.variant)}.json",
            _key(shop, task, [contestant]),
        )
        for contestant in others(shop, task, names)
    }
    missing = [contestant for contestant, (path, key) in places.items() if not _is_there(shop, path, key)]
    if not missing:
        return
    anchor = untrained(shop, task)
    rows = _measure(shop, task, [anchor, *missing])
    _add_noise_since(_folder(shop) / f"{task}.json", anchor.variant, rows)
    _add_quality(shop, task, missing, rows)
    for contestant in missing:
        mine = [row for row in rows if row["variant"] == contestant.variant.name]
        if not any(row["reason"] for row in mine):
            _write(shop, task, *places[contestant], mine)
    if problems := _problems(rows):
        raise RunError("; ".join(problems))


def _measure(shop: Workshop, task: str, contestants: Sequence[Contestant]) -> list[Row]:
    """Rows without their quality."""
    settings, kind = shop.settings.tasks[task], shop.task(task)
    examples = spread_out(shop.splits(task)["validation"], shop.settings.benchmark.answers)
    chats = {contestant.variant: contestant.chat for contestant in contestants}

    def answer(variant: Variant, model: Any) -> list[float]:
        return answer_seconds(model, chats[variant], kind, examples, settings)

    return measure_variants(
        [contestant.variant for contestant in contestants],
        _prompt_lengths(shop, task),
        shop.settings.benchmark,
        shop.choice,
        _workdir(shop),
        shop.progress,
        answer if examples else None,
    )


def _add_quality(shop: Workshop, task: str, contestants: Sequence[Contestant], rows: list[Row]) -> None:
    """Put the metric on the reported split into the rows: from the run, or from an evaluation now."""
    for contestant in contestants:
        mine = [row for row in rows if row["variant"] == contestant.variant.name]
        about: Row = {"metric": shop.task(task).metric, "metric_value": contestant.quality}
        measured = any(row["decode_ms_per_token"] for row in mine)
        if contestant.quality is None and measured:
            try:
                about["metric_value"] = _evaluate(shop, task, contestant)
            except RunError as error:
                about["reason"] = str(error)
        for row in mine:
            row |= about


def _evaluate(shop: Workshop, task: str, contestant: Contestant) -> float:
    """Percent on the reported split; the predictions are kept beside the measurements."""
    kind, variant = shop.task(task), contestant.variant
    model = load(standalone(variant, shop.choice, _workdir(shop)), shop.choice).model
    data = EvaluationSet.of(kind, contestant.chat, shop.splits(task)["validation"], shop.settings.tasks[task])
    shop.progress.say(f"evaluating {variant.name} on {task}")
    with shop.precision():
        predictions = predict(model, contestant.chat, data, shop.settings.evaluation.batch_size)
    write_predictions(_folder(shop) / task / f"{_slug(variant)}.predictions.jsonl", predictions)
    return metrics(kind, predictions)[kind.metric]


def _add_noise_since(path: Path, anchor: Variant, rows: list[Row]) -> None:
    """Raise the noise to what the anchor's decoding time has changed since the plan was measured."""
    before, after = (
        {_conditions(row): row["decode_ms_per_token"] for row in where if row["variant"] == anchor.name}
        for where in (_stored(path).get("rows", []), rows)
    )
    for row in rows:
        times = [found[_conditions(row)] for found in (before, after) if found.get(_conditions(row))]
        noise = [value for value in (row["noise_percent"], spread_percent(times)) if value is not None]
        row["noise_percent"] = max(noise, default=None)


def _conditions(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in SAME)


def _problems(rows: Sequence[Row]) -> list[str]:
    """What could not be measured or evaluated, a line for each variant."""
    return list(dict.fromkeys(f"{row['variant']}: {row['reason']}" for row in rows if row["reason"]))


def _trust(task: str, rows: Sequence[Row]) -> str:
    """The line that says how far the decoding times can be trusted: the worst of all sizes."""
    spread, noise = (
        max((row[name] for row in rows if row[name] is not None), default=None)
        for name in ("spread_percent", "noise_percent")
    )
    parts = [f"models of one architecture differ by up to {spread:.1f} % in decoding time"] if spread else []
    parts += [f"one model measured twice by up to {noise:.1f} %"] if noise is not None else []
    return f"benchmark of {task}: {', '.join(parts) or 'nothing could be measured'}"


def _key(shop: Workshop, task: str, contestants: Sequence[Contestant]) -> str:
    """Identifies a measurement: models (by content, not by place), data, sizes, settings, machine."""
    return fingerprint(
        [
            [_identity(contestant.variant) for contestant in contestants],
            _prompt_lengths(shop, task),
            _data(shop, task),
            shop.settings.benchmark.model_dump(),
            str(shop.choice),
        ]
    )


def _identity(variant: Variant) -> list[Any]:
    named = [value for name, value in vars(variant).items() if name not in ("path", "base")]
    return [named, variant.source.fingerprint, ModelSource("", variant.path).fingerprint]


def _is_there(shop: Workshop, path: Path, key: str) -> bool:
    there = _stored(path).get("fingerprint") == key
    if there:
        shop.progress.say(f"benchmark {path.stem}: already there")
    return there


def _stored(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _write(shop: Workshop, task: str, path: Path, key: str, rows: list[Row]) -> None:
    about = {"fingerprint": key, "task": task, "data": _data(shop, task)}
    atomic_write_json(path, about | {"rows": rows})


def _data(shop: Workshop, task: str) -> str:
    """The fingerprint of the prepared examples, which the quality is measured on."""
    shop.splits(task)
    return read_json(shop.results / "processed_data" / task / "manifest.json")["fingerprint"]


def _folder(shop: Workshop) -> Path:
    return shop.results / "raw_runs" / "benchmarks"


def _workdir(shop: Workshop) -> Path:
    return shop.results / "models" / "quantized"


def _slug(variant: Variant) -> str:
    """The variant's name as a file name: "Qwen/Qwen2.5-0.5B" → "Qwen-Qwen2.5-0.5B"."""
    return re.sub(r"[^\w.+]+", "-", variant.name)


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

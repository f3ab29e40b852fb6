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

from kdsuite.benchmark.answering import answer_seconds, spread_out
from kdsuite.benchmark.measure import measure_variants
from kdsuite.benchmark.samples import spread_percent
from kdsuite.benchmark.variants import Variant, load, standalone
from kdsuite.errors import ModelError, RunError
from kdsuite.evaluate.predict import EvaluationSet, metrics, write_predictions
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.contestants import Contestant, others, planned, runs_of_plan, untrained
from kdsuite.jobs.data import evaluation_set, splits
from kdsuite.jobs.data import task as task_named
from kdsuite.jobs.evaluating import evaluated
from kdsuite.models.quantization import QuantizationUnavailable
from kdsuite.store.files import atomic_write_record, fingerprint, read_json, remove_temporaries, sha256_file
from kdsuite.store.parts import Parts

SAME = ("device", "dtype", "threads", "batch_size", "prompt_tokens", "new_tokens")  # conditions of a row

Row = dict[str, Any]


def benchmark_task(bench: Bench, task: str) -> None:
    """Measure the models of a task's plan, unless that is done. RunError if there are none."""
    contestants = planned(bench, task)
    planned_runs = runs_of_plan(bench, task)
    runs = {c.run_id: planned_runs[c.run_id] for c in contestants if c.run_id is not None}
    path, key = _folder(bench) / f"{task}.json", fingerprint([_key(bench, task, contestants), runs])
    if _is_there(bench, path, key):
        return
    quality = _qualities(bench, task, contestants)
    rows = _measure(bench, task, contestants)
    _add_quality(quality, rows)
    _write(bench, task, path, key, rows, runs)
    for problem in _problems(rows):
        bench.progress.say(problem)
    bench.progress.say(_trust(task, rows))


def benchmark_models(bench: Bench, task: str, names: Sequence[str]) -> None:
    """Measure other models, by folder or hub id, on a task, those that are not there already.

    ModelError if one of them cannot be had, RunError if one cannot be measured; the others are kept.
    """
    places = {
        contestant: (
            _folder(bench) / f"{task}--{_slug(contestant.variant)}.json",
            _key(bench, task, [contestant]),
        )
        for contestant in others(bench, task, names)
    }
    missing = [contestant for contestant, (path, key) in places.items() if not _is_there(bench, path, key)]
    if not missing:
        return
    anchor = untrained(bench, task)
    quality = _qualities(bench, task, missing)
    rows = _measure(bench, task, [anchor, *missing])
    _add_noise_since(_stored(bench, _folder(bench) / f"{task}.json"), anchor.variant, rows)
    _add_quality(quality, rows)
    for contestant in missing:
        mine = [row for row in rows if row["variant"] == contestant.variant.name]
        if not any(row["reason"] for row in mine):
            _write(bench, task, *places[contestant], mine)
    if problems := _problems(rows):
        raise RunError("; ".join(problems))


def _measure(bench: Bench, task: str, contestants: Sequence[Contestant]) -> list[Row]:
    """Rows without their quality."""
    remove_temporaries(_workdir(bench))
    settings, kind = bench.settings.tasks[task], task_named(bench, task)
    examples = spread_out(splits(bench, task)["validation"], bench.settings.benchmark.answers)
    chats = {contestant.variant: contestant.chat for contestant in contestants}

    def answer(variant: Variant, model: Any) -> list[float]:
        return answer_seconds(model, chats[variant], kind, examples, settings)

    return measure_variants(
        [contestant.variant for contestant in contestants],
        _prompt_lengths(bench, task),
        bench.settings.benchmark,
        bench.choice,
        _workdir(bench),
        bench.progress,
        answer if examples else None,
    )


def _qualities(bench: Bench, task: str, contestants: Sequence[Contestant]) -> dict[str, Row]:
    """By variant, the columns that tell its metric on the reported split: from the run, or evaluated now.

    Each evaluation is kept by itself, before anything is timed: a benchmark that is killed loses one of them.
    """
    found: dict[str, Row] = {}
    for contestant in contestants:
        about: Row = {"metric": task_named(bench, task).metric, "metric_value": contestant.quality}
        if contestant.quality is None:
            try:
                about["metric_value"] = _evaluated(bench, task, contestant)
            except RunError as error:
                about["reason"] = str(error)
            except (QuantizationUnavailable, ModelError):
                pass  # the rows of what cannot be loaded say so themselves
        found[contestant.variant.name] = about
    return found


def _add_quality(quality: dict[str, Row], rows: list[Row]) -> None:
    for row in rows:
        row |= quality.get(row["variant"], {})


def _evaluated(bench: Bench, task: str, contestant: Contestant) -> float:
    """`_evaluate`, unless it was done before and its predictions are on disk, unaltered."""
    folder, slug = _folder(bench) / task, _slug(contestant.variant)
    path, predictions = folder / f"{slug}.json", folder / f"{slug}.predictions.jsonl"
    key = fingerprint([_identity(contestant.variant), _data(bench, task), _conditions_here(bench)])
    kept = _stored(bench, path)
    if kept.get("key") == key and predictions.exists() and sha256_file(predictions) == kept["predictions"]:
        return kept["value"]
    parts = Parts(folder, f"{slug}.evaluated", key)
    value = _evaluate(bench, task, contestant, predictions, parts)
    atomic_write_record(path, {"key": key, "value": value, "predictions": sha256_file(predictions)})
    parts.clear()
    return value


def _evaluate(bench: Bench, task: str, contestant: Contestant, path: Path, parts: Parts) -> float:
    """Percent on the reported split; the predictions are written to `path`."""
    kind, variant = task_named(bench, task), contestant.variant
    bench.progress.say(f"loading {variant.name}")
    model = load(standalone(variant, bench.choice, _workdir(bench)), bench.choice).model
    data = EvaluationSet.of(
        kind, contestant.chat, splits(bench, task)["validation"], bench.settings.tasks[task]
    )
    label = f"{variant.name}, {task}, validation"
    predictions = evaluated(
        bench, label, model, contestant.chat, data, bench.settings.evaluation.batch_size, parts
    )
    write_predictions(path, predictions)
    return metrics(kind, predictions)[kind.metric]


def _add_noise_since(planned: dict[str, Any], anchor: Variant, rows: list[Row]) -> None:
    """Raise the noise to what the anchor's decoding time has changed since the plan was measured."""
    before, after = (
        {_conditions(row): row["decode_ms_per_token"] for row in where if row["variant"] == anchor.name}
        for where in (planned.get("rows", []), rows)
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


def _key(bench: Bench, task: str, contestants: Sequence[Contestant]) -> str:
    """Identifies a measurement: models (by content, not by place), data, sizes, settings, machine."""
    return fingerprint(
        [
            [_identity(contestant.variant) for contestant in contestants],
            _prompt_lengths(bench, task),
            _data(bench, task),
            bench.settings.benchmark.model_dump(),
            _conditions_here(bench),
        ]
    )


def _conditions_here(bench: Bench) -> list[Any]:
    return [*bench.choice.numerics, bench.choice.threads]


def _identity(variant: Variant) -> list[Any]:
    named = [value for name, value in vars(variant).items() if name not in ("path", "base")]
    return [named, variant.source.fingerprint]


def _is_there(bench: Bench, path: Path, key: str) -> bool:
    there = _stored(bench, path).get("fingerprint") == key
    if there:
        bench.progress.say(f"benchmark {path.stem}: already there")
    return there


def _stored(bench: Bench, path: Path) -> dict[str, Any]:
    """What was measured earlier; nothing if there is nothing, or it is damaged (which is told)."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        bench.progress.say(f"{error}; it is measured again")
        return {}


def _write(
    bench: Bench, task: str, path: Path, key: str, rows: list[Row], runs: dict[str, str] | None = None
) -> None:
    """`runs`: the fingerprints of the planned runs whose models these are."""
    about = {"fingerprint": key, "task": task, "data": _data(bench, task), "runs": runs or {}}
    atomic_write_record(path, about | {"rows": rows})


def _data(bench: Bench, task: str) -> str:
    """The fingerprint of the prepared examples, which the quality is measured on."""
    splits(bench, task)
    return read_json(bench.results / "processed_data" / task / "manifest.json")["key"]


def _folder(bench: Bench) -> Path:
    return bench.results / "raw_runs" / "benchmarks"


def _workdir(bench: Bench) -> Path:
    return bench.results / "models" / "quantized"


def _slug(variant: Variant) -> str:
    """The variant's name as a file name: "Qwen/Qwen2.5-0.5B" → "Qwen-Qwen2.5-0.5B"."""
    return re.sub(r"[^\w.+]+", "-", variant.name)


def _prompt_lengths(bench: Bench, task: str) -> dict[str, int]:
    """Median and 95th percentile of the task's own prompts, in the first student's tokens."""
    data = evaluation_set(bench, task, bench.settings.students[0], "dev")
    lengths = sorted(
        [e.segments.count(0) for e in data.encoded]
        or [len(window) for windows in data.prompts for window in windows]
    )
    return {
        "median": lengths[len(lengths) // 2],
        "p95": lengths[min(len(lengths) - 1, int(len(lengths) * 0.95))],
    }

"""The benchmark stage of one task: what the models cost, and how good they are where no run has said so.

What the plan asks for is measured together and lies in `benchmarks/<task>.json`. Every other model that a
user names has a file of its own, `<task>--<name>.json`, which stays until the file is deleted or a model of
that name is measured again. It was measured at another time, so the untrained student is measured along with
it: by how much that differs from its figures in `<task>.json` is part of the noise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdsuite.benchmark.latency import answer_seconds, spread_percent
from kdsuite.benchmark.measure import measure_variants
from kdsuite.benchmark.variants import Variant, load, standalone
from kdsuite.config import TaskSettings
from kdsuite.config.benchmark import BenchmarkSettings
from kdsuite.errors import ModelError, RunError
from kdsuite.evaluate.predict import EvaluationSet, Prediction, metrics, write_predictions
from kdsuite.jobs.contestants import Contestant, others, planned, untrained
from kdsuite.jobs.evaluating import evaluated, numerics
from kdsuite.jobs.workshop import Workshop
from kdsuite.models.quantization import QuantizationUnavailable
from kdsuite.runtime.device import DeviceChoice
from kdsuite.runtime.progress import Progress
from kdsuite.store.artefact import Artefact
from kdsuite.store.files import fingerprint, read_json, remove_temporaries
from kdsuite.store.parts import Parts
from kdsuite.tasks.example import Example, Task

SAME = ("device", "dtype", "threads", "batch_size", "prompt_tokens", "new_tokens")  # conditions of a row

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """All that the measurements of a task are made of, but for the models."""

    task: Task
    examples: Sequence[Example]  # of the reported split
    data: str  # the fingerprint of the prepared examples
    lengths: dict[str, int]  # tokens of the task's own prompts: median, p95
    settings: TaskSettings
    benchmark: BenchmarkSettings
    choice: DeviceChoice
    conditions: list[Any]  # of this machine, that figures and answers depend on
    folder: Path
    quantized: Path
    progress: Progress
    evaluate: Callable[..., list[Prediction]]

    @classmethod
    def of(cls, shop: Workshop, task: str) -> Bench:
        dev = shop.evaluation_set(task, shop.settings.trained_students[0], "dev")
        lengths = sorted(e.segments.count(0) for e in dev.encoded) or sorted(
            len(window) for windows in dev.prompts for window in windows
        )
        return cls(
            shop.task(task),
            shop.splits(task)["validation"],
            read_json(shop.results / "processed_data" / task / "manifest.json")["fingerprint"],
            {"median": lengths[len(lengths) // 2], "p95": lengths[int(len(lengths) * 0.95)]},
            shop.settings.tasks[task],
            shop.settings.benchmark,
            shop.choice,
            [*numerics(shop), shop.choice.threads],
            shop.results / "raw_runs" / "benchmarks",
            shop.results / "models" / "quantized",
            shop.progress,
            partial(evaluated, shop, batch_size=shop.settings.evaluation.batch_size),
        )

    def measurement(self, name: str, contestants: Sequence[Contestant]) -> Artefact:
        """The figures of these models in a file of that name, whose key is models (by content, not by place), data,
        sizes, settings and machine."""
        models = [[*_identity(c.variant), c.run and c.run.record["fingerprint"]] for c in contestants]
        key = [models, self.lengths, self.data, self.benchmark.model_dump(mode="json"), self.conditions]
        return Artefact(self.folder / f"{name}.json", key, self.progress.say, "it is measured again")

    def is_there(self, measurement: Artefact) -> bool:
        there = measurement.read() is not None
        if there:
            self.progress.say(f"benchmark {measurement.path.stem}: already there")
        return there

    def write(self, measurement: Artefact, rows: list[Row], contestants: Sequence[Contestant] = ()) -> None:
        """`contestants`: those whose models are the plan's."""
        runs = {c.run.run_id: c.run.record["fingerprint"] for c in contestants if c.run}
        measurement.write(task=self.task.name, data=self.data, runs=runs, rows=rows)


def benchmark_task(shop: Workshop, task: str) -> None:
    """Measure the models of a task's plan, unless that is done. RunError if there are none."""
    contestants, bench = planned(shop, task), Bench.of(shop, task)
    measurement = bench.measurement(task, contestants)
    if bench.is_there(measurement):
        return
    rows = _measure(bench, contestants)
    bench.write(measurement, rows, contestants)
    for problem in _problems(rows):
        bench.progress.say(problem)
    bench.progress.say(_trust(task, rows))


def benchmark_models(shop: Workshop, task: str, names: Sequence[str]) -> None:
    """Measure other models, by folder or hub id, on a task, those that are not there already.

    ModelError if one of them cannot be had, RunError if one cannot be measured; the others are kept.
    """
    contestants, bench = others(shop, task, names), Bench.of(shop, task)
    places = [(bench.measurement(f"{task}--{_slug(c.variant)}", [c]), c) for c in contestants]
    missing = [(measurement, c) for measurement, c in places if not bench.is_there(measurement)]
    if not missing:
        return
    anchor = untrained(shop, task)
    rows = _measure(bench, [c for _, c in missing], anchor)
    _add_noise_since(bench.folder / f"{task}.json", anchor.variant, rows)
    for measurement, contestant in missing:
        mine = [row for row in rows if row["variant"] == contestant.variant.name]
        if not any(row["reason"] for row in mine):
            bench.write(measurement, mine)
    if problems := _problems(rows):
        raise RunError("; ".join(problems))


def _measure(bench: Bench, contestants: Sequence[Contestant], *anchor: Contestant) -> list[Row]:
    """Rows with their quality; those of the anchor come first and have none.

    Qualities come first, each kept by itself: a benchmark that is killed loses one of them.
    """
    remove_temporaries(bench.quantized)
    quality: dict[str, Row] = {c.variant.name: _quality(bench, c) for c in contestants}
    chats = {c.variant: c.chat for c in [*anchor, *contestants]}
    count = min(
        bench.benchmark.answers, len(bench.examples)
    )  # at equal distances: neighbours are often alike
    examples = [bench.examples[i * len(bench.examples) // count] for i in range(count)]

    def answer(variant: Variant, model: Any) -> list[float]:
        return answer_seconds(model, chats[variant], bench.task, examples, bench.settings)

    rows = measure_variants(
        list(chats),
        bench.lengths,
        bench.benchmark,
        bench.choice,
        bench.quantized,
        bench.progress,
        answer if examples else None,
    )
    return [row | quality.get(row["variant"], {}) for row in rows]


def _quality(bench: Bench, contestant: Contestant) -> Row:
    """The columns that tell the metric on the reported split: from the run, or evaluated now."""
    about: Row = {"metric": bench.task.metric, "metric_value": contestant.quality}
    if contestant.quality is None:
        try:
            about["metric_value"] = _evaluated(bench, contestant)
        except RunError as error:
            about["reason"] = str(error)
        except (QuantizationUnavailable, ModelError):
            pass  # the rows of what cannot be loaded say so themselves
    return about


def _evaluated(bench: Bench, contestant: Contestant) -> float:
    """Percent on the reported split, with the predictions on disk, unless that is there already."""
    variant, folder = contestant.variant, bench.folder / bench.task.name
    slug, say = _slug(variant), bench.progress.say
    key = fingerprint([_identity(variant), bench.data, bench.conditions])
    kept = Artefact(folder / f"{slug}.json", key, say, "it is evaluated again")
    if record := kept.read():
        return record["value"]
    say(f"loading {variant.name}")
    model = load(standalone(variant, bench.choice, bench.quantized, say), bench.choice).model
    data = EvaluationSet.of(bench.task, contestant.chat, bench.examples, bench.settings)
    parts = Parts(folder, f"{slug}.evaluated", key)
    label = f"{variant.name}, {bench.task.name}, validation"
    predictions = bench.evaluate(label, model, contestant.chat, data, parts=parts)
    write_predictions(folder / f"{slug}.predictions.jsonl", predictions)
    value = metrics(bench.task, predictions)[bench.task.metric]
    kept.write([f"{slug}.predictions.jsonl"], value=value)
    parts.clear()
    return value


def _add_noise_since(planned: Path, anchor: Variant, rows: list[Row]) -> None:
    """Raise the noise to what the anchor's decoding time has changed since the plan was measured."""
    earlier = []
    with suppress(FileNotFoundError, ValueError):
        earlier = read_json(planned)["rows"]
    before, after = (
        {_conditions(row): row["decode_ms_per_token"] for row in where if row["variant"] == anchor.name}
        for where in (earlier, rows)
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


def _identity(variant: Variant) -> list[Any]:
    named = [value for name, value in vars(variant).items() if name != "source"]
    return [named, variant.source.name, variant.source.fingerprint]


def _slug(variant: Variant) -> str:
    """The variant's name as a file name: "Qwen/Qwen2.5-0.5B" → "Qwen-Qwen2.5-0.5B"."""
    return re.sub(r"[^\w.+]+", "-", variant.name)

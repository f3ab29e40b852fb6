"""The benchmark stage of one task: what the models cost, and how good they are where no run has said so.

What the plan asks for is measured together and lies in `benchmarks/<task>.json`. Every other model that a
user names has a file of its own, `<task>--<name>.json`, which stays until the file is deleted or a model of
that name is measured again. It was measured at another time, so the untrained student is measured along with
it: by how much that differs from its figures in `<task>.json` is part of the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from kdsuite.benchmark.latency import answer_seconds, spread_out, spread_percent
from kdsuite.benchmark.measure import Conditions, measure_variants
from kdsuite.benchmark.variants import Variant, load, standalone
from kdsuite.errors import ModelError, RunError
from kdsuite.evaluate.predict import EvaluationSet, Prediction, metrics, write_predictions
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.contestants import Contestant, others, planned, untrained
from kdsuite.jobs.data import evaluation_set, splits
from kdsuite.jobs.data import task as task_named
from kdsuite.jobs.evaluating import evaluated
from kdsuite.models.quantization import QuantizationUnavailable
from kdsuite.plan import RECORD_FORMAT
from kdsuite.store.artefact import Artefact
from kdsuite.store.files import fingerprint, read_json, remove_temporaries
from kdsuite.store.layout import MANIFEST, Layout
from kdsuite.store.parts import Parts
from kdsuite.tasks.example import Example, Task

Row = dict[str, Any]


@dataclass(frozen=True)
class Inputs(Conditions):
    """All that the measurements of a task are made of, but for the models."""

    task: Task
    examples: Sequence[Example]  # of the reported split
    data: str  # the key of the prepared examples
    layout: Layout
    evaluate: Callable[..., list[Prediction]]

    def artefact(self, path: Path, about: Any, remedy: str) -> Artefact:
        """What was measured of models (identified by content, not by place), on these data and this machine."""
        here = [*self.choice.numerics, self.choice.threads]
        return Artefact(path, fingerprint([RECORD_FORMAT, about, self.data, here]), self.progress.say, remedy)

    def missing(self, contestants: Sequence[Contestant], model: str | None = None) -> Artefact | None:
        """Where the figures of these models will be; None, which is told, if they are there."""
        models = [[_identity(c.variant), c.run and c.run.record["fingerprint"]] for c in contestants]
        about = [models, dict(self.lengths), self.benchmark.model_dump()]
        path = self.layout.benchmark(self.task.name, model)
        measurement = self.artefact(path, about, "it is measured again")
        if measurement.read() is None:
            return measurement
        self.progress.say(f"benchmark {path.stem}: already there")


def benchmark_task(bench: Bench, task: str) -> None:
    """Measure the models of a task's plan, unless that is done. RunError if there are none."""
    contestants, inputs = planned(bench, task), _gather(bench, task)
    measurement = inputs.missing(contestants)
    if measurement is None:
        return
    rows = _measure(inputs, contestants)
    runs = {c.run.run_id: c.run.record["fingerprint"] for c in contestants if c.run}
    measurement.write(task=task, data=inputs.data, runs=runs, rows=rows)
    for line in [*_problems(rows), _trust(task, rows)]:
        bench.progress.say(line)


def benchmark_models(bench: Bench, task: str, names: Sequence[str]) -> None:
    """Measure other models, by folder or hub id, on a task, those that are not there already.

    ModelError if one of them cannot be had, RunError if one cannot be measured; the others are kept.
    """
    contestants, inputs = others(bench, task, names), _gather(bench, task)
    places = [(inputs.missing([c], c.variant.name), c) for c in contestants]
    missing = [(measurement, c) for measurement, c in places if measurement]
    if not missing:
        return
    anchor = untrained(bench, task)
    rows = _measure(inputs, [c for _, c in missing], anchor)
    _add_noise_since(inputs.layout.benchmark(task), anchor.variant, rows)
    for measurement, contestant in missing:
        mine = [row for row in rows if row["variant"] == contestant.variant.name]
        if not any(row["reason"] for row in mine):
            measurement.write(task=task, data=inputs.data, runs={}, rows=mine)
    if problems := _problems(rows):
        raise RunError("; ".join(problems))


def _gather(bench: Bench, task: str) -> Inputs:
    """Prompts are as long as the task's own, in the first student's tokens."""
    layout, dev = Layout(bench.results), evaluation_set(bench, task, bench.settings.students[0], "dev")
    windows = [window for windows in dev.prompts for window in windows]
    lengths = sorted([e.segments.count(0) for e in dev.encoded] or map(len, windows))
    return Inputs(
        lengths={"median": lengths[len(lengths) // 2], "p95": lengths[int(len(lengths) * 0.95)]},
        benchmark=bench.settings.benchmark,
        choice=bench.choice,
        workdir=layout.quantized,
        progress=bench.progress,
        task=task_named(bench, task),
        examples=splits(bench, task)["validation"],
        data=read_json(layout.processed(task) / MANIFEST)["key"],
        layout=layout,
        evaluate=partial(evaluated, bench, batch_size=bench.settings.evaluation.batch_size),
    )


def _measure(inputs: Inputs, contestants: Sequence[Contestant], *anchor: Contestant) -> list[Row]:
    """Rows with their quality; those of the anchor, which come first, without.

    The qualities are measured first, each kept by itself: a benchmark that is killed loses one of them.
    """
    remove_temporaries(inputs.workdir)
    qualities = {c.variant.name: _quality(inputs, c) for c in contestants}
    chats = {c.variant: c.chat for c in [*anchor, *contestants]}
    examples = spread_out(inputs.examples, inputs.benchmark.answers)

    def answer(variant: Variant, model: Any) -> list[float]:
        return answer_seconds(model, chats[variant], inputs.task, examples)

    rows = measure_variants(inputs, list(chats), answer if examples else None)
    return [row | qualities.get(row["variant"], {}) for row in rows]


def _quality(inputs: Inputs, contestant: Contestant) -> Row:
    """The columns that tell the metric on the reported split: from the run, or evaluated now."""
    about: Row = {"metric": inputs.task.metric, "metric_value": contestant.quality}
    if contestant.quality is None:
        try:
            about["metric_value"] = _evaluated(inputs, contestant)
        except RunError as error:
            about["reason"] = str(error)
        except (QuantizationUnavailable, ModelError):
            pass  # the rows of what cannot be loaded say so themselves
    return about


def _evaluated(inputs: Inputs, contestant: Contestant) -> float:
    """Percent on the reported split, unless that is there, with its predictions; both are kept."""
    variant, task, say = contestant.variant, inputs.task, inputs.progress.say
    path = inputs.layout.benchmark_evaluation(task.name, variant.name)
    written = path.with_suffix(".predictions.jsonl")
    kept = inputs.artefact(path, _identity(variant), "it is evaluated again")
    if record := kept.read():
        return record["value"]
    say(f"loading {variant.name}")
    model, _ = load(standalone(variant, inputs.choice, inputs.workdir, say), inputs.choice)
    data = EvaluationSet.of(task, contestant.chat, inputs.examples)
    parts = Parts(path.parent, f"{path.stem}.evaluated", kept.key)
    label = f"{variant.name}, {task.name}, validation"
    predictions = inputs.evaluate(label, model, contestant.chat, data, parts=parts)
    write_predictions(written, predictions)
    value = metrics(task, predictions)[task.metric]
    kept.write([written.name], value=value)
    parts.clear()
    return value


def _add_noise_since(planned: Path, anchor: Variant, rows: list[Row]) -> None:
    """Raise the noise to what the anchor's decoding time has changed since the plan was measured."""
    earlier = []
    with suppress(FileNotFoundError, ValueError):
        earlier = read_json(planned)["rows"]
    same = itemgetter("device", "dtype", "threads", "batch_size", "prompt_tokens", "new_tokens")
    before, after = (
        {same(row): row["decode_ms_per_token"] for row in where if row["variant"] == anchor.name}
        for where in (earlier, rows)
    )
    for row in rows:
        times = [found[same(row)] for found in (before, after) if found.get(same(row))]
        noise = [value for value in (row["noise_percent"], spread_percent(times)) if value is not None]
        row["noise_percent"] = max(noise, default=None)


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

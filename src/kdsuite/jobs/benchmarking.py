"""The benchmark stage of one task: what the models cost, and how good they are where no run has said so.

What the plan asks for is measured together and lies in `benchmarks/<task>.json`. Every other model that a
user names has a file of its own, `<task>--<name>.json`, which stays until the file is deleted or a model of
that name is measured again. It was measured at another time, so the untrained student is measured along with
it: by how much that differs from its figures in `<task>.json` is part of the noise.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

from kdsuite.benchmark.latency import answer_seconds, spread_out, spread_percent
from kdsuite.benchmark.measure import Conditions, measure_variants
from kdsuite.benchmark.variants import Variant, load, standalone
from kdsuite.config.benchmark import BenchmarkSettings
from kdsuite.errors import ModelError, RunError
from kdsuite.evaluate.predict import EvaluationSet, metrics, scored, write_predictions
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.contestants import Contestant, others, planned, untrained
from kdsuite.jobs.data import evaluation_set, splits
from kdsuite.jobs.data import task as task_named
from kdsuite.jobs.models import asked
from kdsuite.models.quantization import QuantizationUnavailable
from kdsuite.plan import RECORD_FORMAT
from kdsuite.store.artefact import Artefact
from kdsuite.store.files import read_json, remove_temporaries
from kdsuite.store.layout import MANIFEST
from kdsuite.store.parts import Parts

Row = dict[str, Any]


def benchmark_task(bench: Bench, task: str, size: Callable[[], BenchmarkSettings]) -> None:
    """Measure the models of a task's plan, unless that is done; `size` says how much, where the settings leave it open.

    RunError if there are none.
    """
    contestants = planned(bench, task)
    measurement = _missing(bench, task, contestants)
    if measurement is None:
        return
    rows = _measure(bench, task, size(), contestants)
    runs = {c.run.run_id: c.run.record["fingerprint"] for c in contestants if c.run}
    measurement.write(task=task, data=_data_key(bench, task), runs=runs, rows=rows)
    for line in [*_problems(rows), _trust(task, rows)]:
        bench.progress.say(line)


def benchmark_models(bench: Bench, task: str, names: Sequence[str], size: Callable[[], BenchmarkSettings]) -> None:
    """Measure other models, by folder or hub id, on a task, those that are not there already.

    ModelError if one of them cannot be had, RunError if one cannot be measured; the others are kept.
    """
    places = [(_missing(bench, task, [c], c.variant.name), c) for c in others(bench, task, names)]
    missing = [(measurement, c) for measurement, c in places if measurement]
    if not missing:
        return
    anchor = untrained(bench, task)
    rows = _measure(bench, task, size(), [c for _, c in missing], anchor)
    _add_noise_since(bench.layout.benchmark(task), anchor.variant, rows)
    for measurement, contestant in missing:
        mine = [row for row in rows if row["variant"] == contestant.variant.name]
        if not any(row["reason"] for row in mine):
            measurement.write(task=task, data=_data_key(bench, task), runs={}, rows=mine)
    if problems := _problems(rows):
        raise RunError("; ".join(problems))


def _missing(bench: Bench, task: str, contestants: Sequence[Contestant], model: str | None = None) -> Artefact | None:
    """Where the figures of these models will be; None, which is told, if they are there."""
    models = [[_identity(c.variant), c.run and c.run.record["fingerprint"]] for c in contestants]
    about = [models, _lengths(bench, task), bench.settings.benchmark.model_dump()]
    path = bench.layout.benchmark(task, model)
    measurement = _artefact(bench, task, path, about, "it is measured again")
    if measurement.read() is None:
        return measurement
    bench.progress.say(f"benchmark {path.stem}: already there")


def _artefact(bench: Bench, task: str, path: Path, about: Any, remedy: str) -> Artefact:
    """What was measured of models (identified by content, not by place), on these data and this machine."""
    here = [*bench.choice.numerics, bench.choice.threads]
    return bench.artefact(path, [RECORD_FORMAT, about, _data_key(bench, task), here], remedy)


def _data_key(bench: Bench, task: str) -> str:
    return read_json(bench.layout.processed(task) / MANIFEST)["key"]


def _lengths(bench: Bench, task: str) -> dict[str, int]:
    """Prompts are as long as the task's own, in the first student's tokens."""
    dev = evaluation_set(bench, task, bench.settings.students[0], "dev")
    windows = [window for windows in dev.prompts for window in windows]
    lengths = sorted([e.segments.count(0) for e in dev.encoded] or map(len, windows))
    return {"median": lengths[len(lengths) // 2], "p95": lengths[int(len(lengths) * 0.95)]}


def _measure(
    bench: Bench, task: str, size: BenchmarkSettings, contestants: Sequence[Contestant], *anchor: Contestant
) -> list[Row]:
    """Rows with their quality; those of the anchor, which come first, without.

    The qualities are measured first, each kept by itself: a benchmark that is killed loses one of them.
    """
    quantized = bench.layout.quantized
    remove_temporaries(quantized)
    qualities = {c.variant.name: _quality(bench, task, c) for c in contestants}
    chats = {c.variant: c.chat for c in [*anchor, *contestants]}
    examples = spread_out(splits(bench, task)["validation"], size.answers or 0)

    def answer(variant: Variant, model: Any) -> list[float]:
        return answer_seconds(model, chats[variant], task_named(bench, task), examples)

    conditions = Conditions(_lengths(bench, task), size, bench.choice, quantized, bench.progress)
    rows = measure_variants(conditions, list(chats), answer if examples else None)
    return [row | qualities.get(row["variant"], {}) for row in rows]


def _quality(bench: Bench, task: str, contestant: Contestant) -> Row:
    """The columns that tell the metric on the reported split, in percent: from the run; else evaluated, unless that is
    done, and kept with the predictions."""
    kind, variant, say = task_named(bench, task), contestant.variant, bench.progress.say
    about: Row = {"metric": kind.metric, "metric_value": contestant.quality}
    if contestant.quality is not None:
        return about
    path = bench.layout.evaluation(task, variant.name)
    written = path.with_suffix(".predictions.jsonl")
    kept = _artefact(bench, task, path, _identity(variant), "it is evaluated again")
    if record := kept.read():
        return about | {"metric_value": record["value"]}
    say(f"loading {variant.name}")
    parts = Parts(path.parent, f"{path.stem}.evaluated", kept.key)
    label, batch_size = f"{variant.name}, {task}, validation", bench.settings.evaluation.batch_size
    examples, chat = splits(bench, task)["validation"], contestant.chat
    try:
        model, _ = load(standalone(variant, bench.choice, bench.layout.quantized, say), bench.choice)
        data = EvaluationSet.of(kind, chat, examples)
        predictions = scored(data, asked(bench, label, model, chat, data, batch_size, parts))
    except RunError as error:
        return about | {"reason": str(error)}
    except (QuantizationUnavailable, ModelError):
        return about  # the rows of what cannot be loaded say so themselves
    write_predictions(written, predictions)
    value = metrics(kind, predictions)[kind.metric]
    kept.write([written.name], value=value)
    parts.clear()
    return about | {"metric_value": value}


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

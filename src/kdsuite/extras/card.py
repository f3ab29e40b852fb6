"""The model card of a run: what the hub reads, and for people data, method, teacher, results, costs and licences.

Scores of the method over all its seeds, intervals and verdicts are those of the report, computed anew by it. The run's
own score goes into `.eval_results/` too, the hub's form for results of a data set.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from kdsuite.config import GENERATED, TEACHER, looks_local
from kdsuite.config.report import ReportSettings
from kdsuite.errors import DataError
from kdsuite.evaluate.crossed import crossed
from kdsuite.evaluate.selection import Record
from kdsuite.extras.licences import CARD, UNKNOWN, licence_of, stated, terms_of, terms_of_service
from kdsuite.models.source import ModelSource, base_of
from kdsuite.report import words
from kdsuite.report.analysis import Analysis, Cell, TaskAnalysis, analyse
from kdsuite.report.costs import costs_of_runs
from kdsuite.report.load import load, read_manifest
from kdsuite.store.files import read_json
from kdsuite.store.layout import Layout

RESULTS = Path(".eval_results") / "kdsuite.yaml"


@dataclass(frozen=True)
class About:
    """A completed run, and the form that its model is written in: for which library, how quantized, in which GGUF."""

    layout: Layout
    record: Record
    library: str
    quantized: str | None = None
    gguf: str | None = None

    @cached_property
    def spec(self) -> Record:
        return self.record["spec"]

    @cached_property
    def plan(self) -> Record:
        return plan_of(self.layout)

    @cached_property
    def task(self) -> Record:
        """What the plan says of the run's task."""
        return self.plan.get("tasks", {}).get(self.spec["task"], {})

    @cached_property
    def data(self) -> Record:
        return read_manifest(self.layout.results, self.spec["task"])

    @cached_property
    def base(self) -> ModelSource:
        """The model that was trained, by the adapter or, of a whole one, by the plan."""
        if base := base_of(self.layout.model(self.record["run_id"])):
            return base
        model, planned = self.record["model"], _models(self.plan)
        named = planned.get("students", {}) | {None: planned.get(TEACHER)}
        where = None if model.get("stands_in") else (named.get(self.spec.get("student")) or {}).get("name")
        return ModelSource(model["name"], where or model["name"])

    @cached_property
    def analysis(self) -> Analysis | str:
        """The report's; else why there is none."""
        settings = (self.plan.get("settings") or {}).get("report", {})
        try:
            return analyse(load(self.layout.results), ReportSettings.model_validate(settings))
        except DataError as error:
            return str(error)


def plan_of(layout: Layout) -> Record:
    """The plan of a results folder; empty where there is none, DataError for one that is damaged."""
    try:
        return read_json(layout.plan) if layout.plan.exists() else {}
    except ValueError as error:
        raise DataError(f"{error}; `kdsuite report` with the configuration writes it anew") from None


def write(about: About, folder: Path) -> None:
    """Write the card, and the score where the data are the hub's and the weights are those that were scored."""
    ModelCard(f"---\n{_metadata(about).to_yaml()}\n---\n\n" + "\n\n".join(_paragraphs(about)) + "\n").save(
        folder / CARD
    )
    if _hub_data(about) and about.quantized is None:
        entries = eval_result_entries_to_yaml([_entry(about)])
        (folder / RESULTS).parent.mkdir(exist_ok=True)
        (folder / RESULTS).write_text(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _metadata(about: About) -> ModelCardData:
    base, licence = about.base, stated(about.base.where)
    relation = "quantized" if about.quantized else "adapter" if about.library == "peft" else "finetune"
    named = not base.is_folder and "/" in base.where
    return ModelCardData(
        license=licence["license"],
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
        base_model=base.where if named else None,
        base_model_relation=relation if named else None,
        datasets=[about.task["hub_id"]] if _hub_data(about) else None,
        metrics=[name for name in about.record["metrics"].get("validation", {}) if name in ("accuracy", "f1")] or None,
        library_name=about.library,
        pipeline_tag="text-generation",
        tags=["knowledge-distillation", "kdsuite", about.spec["method"]],
    )


def _hub_data(about: About) -> bool:
    return bool(about.task.get("hub_id")) and about.data.get("source") != GENERATED


def _entry(about: About) -> EvalResultEntry:
    """The run's own score in percent. The data's split may be a part of the hub's, which the notes say."""
    scores = about.record["metrics"]["validation"]
    metric = about.task.get("metric") or next(iter(scores))
    return EvalResultEntry(
        dataset_id=about.task["hub_id"],
        task_id=about.spec["task"],
        value=round(scores[metric], 4),
        dataset_revision=about.data.get("revision"),
        date=about.record.get("finished"),
        notes=f"{words.metric_name(metric)} in percent on {_examples(about)}, one run (seed {about.spec.get('seed')}) "
        f"by kdsuite {about.record['code_version']}{_own_interval(about)}",
    )


def _examples(about: About) -> str:
    count = about.record["metrics"]["validation"].get("n") or about.data.get("sizes", {}).get("validation")
    return f"{words.counted(int(count), 'example')} of validation" if count else "validation"


def _paragraphs(about: About) -> Iterator[str]:
    record, spec = about.record, about.spec
    title = about.plan.get("methods", {}).get(spec["method"], {}).get("title")
    yield f"# {record['run_id']}"
    method = f"{spec['method']} ({title})" if title else spec["method"]
    data = about.task.get("title") or spec["task"]
    yield f"{record['model']['name']}, trained on {data} by {method} with kdsuite {record['code_version']}."
    if about.quantized:
        yield f"Weight-only quantized to {about.quantized}; the results below are those before quantization."
    if about.gguf:
        yield f"As GGUF ({about.gguf}) for llama.cpp, and with the Modelfile for Ollama: `ollama create NAME`."
    yield "## Training"
    teacher = record.get("teacher") or {}
    about_teacher = {"teacher": teacher.get("name"), "revision of the teacher": teacher.get("revision")}
    about_teacher |= {"teacher served by": teacher.get("served"), "stands in": teacher.get("stands_in")}
    facts = {k: v for k, v in spec.items() if k != "point"} | spec.get("point", {})
    yield _bullets(facts | about_teacher)
    yield "## Data"
    sizes, source = about.data.get("sizes", {}), str(about.data.get("source", UNKNOWN))
    source = Path(source).name if looks_local(source) else source  # folders of this machine are nobody else's business
    yield _bullets({"source": source, "revision": about.data.get("revision"), **sizes})
    yield "## Results"
    yield from _results(about)
    yield "## Time and cost"
    yield _costs(about)
    yield "## Licences"
    yield from _licences(about)


def _results(about: About) -> Iterator[str]:
    for split, values in about.record["metrics"].items():
        yield f"This model on {split}: {_metrics(values)}{_own_interval(about) if split == 'validation' else ''}."
    found = _found(about)
    if isinstance(found, str):
        yield f"How it compares is not told: {found}."
        return
    task, cell = found
    name, analysis = task.called(cell), about.analysis
    assert isinstance(analysis, Analysis)
    if about.record["run_id"] not in {run.run_id for run in cell.runs}:
        yield f"The report does not count this run for {name}: other seeds chose another point, or it cannot be read."
    if cell.runs:
        interval = f" ({analysis.level} interval {words.span(cell.interval)})" if cell.interval else ""
        score = f"{words.number(cell.mean, 1)} % {words.metric_name(task.metric)}"
        yield f"{name} over {words.counted(len(cell.runs), 'run')} on validation: {score}{interval}."
    said = [words.said("reading", task, c) for c in task.comparisons if (c.student, c.a) == (cell.student, cell.method)]
    gaps = [gap for gap in task.gaps if (gap.student, gap.a) == (cell.student, cell.method)]
    said += [words.said("gap_reading", task, gap, analysis.settings.margin) for gap in gaps]
    said += [f"To be doubted: {doubt}" for doubt in words.doubts([task])]
    if said:
        yield "\n".join(f"- {line}" for line in said)


def _found(about: About) -> tuple[TaskAnalysis, Cell] | str:
    """The run's task, at its fraction of the examples, and its cell of the report; else why there is none."""
    analysis, spec = about.analysis, about.spec
    if isinstance(analysis, str):
        return analysis
    task = analysis.task(spec["task"])
    parts = {part.fraction: part.task for part in task.parts} if task else {}
    task = parts.get(spec.get("fraction", 1.0), task)
    cell = task and task.cell(spec["method"], spec.get("student"))
    return (task, cell) if task and cell else "the plan of these results does not have this run"


def _own_interval(about: About) -> str:
    """The interval of this run's score over examples, for reading; empty where it cannot be had."""
    found = _found(about)
    if isinstance(found, str) or found[1].scores is None:
        return ""
    task, cell = found
    mine = [row for row, run in zip(found[1].scores, cell.runs, strict=True) if run.run_id == about.record["run_id"]]
    if not mine or not task.groups.any():
        return ""
    interval = crossed(mine, task.groups).interval_at_hand(1 - task.settings.confidence, lowest=0.0)
    level = f"{100 * task.settings.confidence:g} %"
    return f" ({words.metric_name(task.metric)}: {level} interval over examples {words.span(interval)})"


def _costs(about: About) -> str:
    """What the record has of time, memory and energy, the teacher's share and, where there is a rate, a price."""
    rows = costs_of_runs(about.analysis) if isinstance(about.analysis, Analysis) else []
    row = next((row for row in rows if row.get("run_id") == about.record["run_id"]), {})
    told = dict(about.record.get("timing") or {})
    told |= {"teacher_seconds (share of this run)": row.get("teacher_seconds") or None, "cost": row.get("cost")}
    told |= {name: about.record["environment"].get(name) for name in ("device", "device_name", "dtype")}
    numbers = {name: f"{value:.4g}" for name, value in told.items() if isinstance(value, float)}
    return _bullets(told | numbers) or "Not recorded."


def _licences(about: About) -> Iterator[str]:
    """From the base model over the teacher to the data, with a warning where the teacher's forbids what was done."""
    base, licence = about.base, licence_of(about.base.where)
    yield f"- Weights: derived from {base.name}, whose licence applies: {licence}."
    if about.record.get("teacher"):
        yield from _teacher_licence(about)
    generated = about.data.get("source") == GENERATED
    data = "generated by kdsuite: MIT" if generated else about.task.get("licence") or "see its source"
    yield f"- Data: {data}."


def _teacher_licence(about: About) -> Iterator[str]:
    name = about.record["teacher"]["name"]
    planned = _models(about.plan).get(TEACHER, {})
    url = planned.get("url")
    where = planned.get("tokenizer") if url else planned.get("name") or name
    if about.record["teacher"].get("stands_in"):
        where = name
    licence = licence_of(where or name)
    terms = (terms_of_service(url) if url else None) or terms_of(licence)
    source = " by the card of its tokenizer" if url and licence != UNKNOWN else ""
    yield f"- Teacher: {name}, licence {licence}{source}; {terms.text}."
    if terms.warns:
        advice = "Read it before you share this model."
        yield f"> **Warning.** The teacher's licence may not allow what was done here: {terms.text}. {advice}"


def _models(plan: Record) -> dict[str, Any]:
    return (plan.get("settings") or {}).get("models", {})


def _bullets(facts: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value is not None)


def _metrics(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )

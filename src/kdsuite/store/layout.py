"""Where everything lies in a results folder. Nobody else spells these names.

results/
  processed_data/<task>/            the examples of a task: <split>.jsonl, manifest.json
  teacher_cache/<task>/<key>/       what the teacher says: part-*.safetensors, manifest, answers, rationales, quality,
                                    seconds
  teacher_cache/<task>/unlabeled-<key>/  what it answers to inputs without targets; beside it how long that took
  teacher_cache/server.json         of a teacher behind a URL, what its server was found to be
  teacher_cache/<task>/asked-<teacher>.jsonl  what it answered, while it is asked
  models/<run_id>/                  trained weights or adapter
  models/offline/<role>/            the offline models
  models/quantized/                 quantized ones, while they are measured
  models/trials/<role>.json         which models were tried out
  models/teacher_fallback.json      which teacher was too large here
  raw_runs/plan.json                what is asked for
  raw_runs/<run_id>/                run.json, predictions.jsonl, history.csv, log.txt, checkpoints
  raw_runs/benchmarks/              <task>.json, <task>--<model>.json, and evaluations below <task>/
  tracking/<tracker>/               what TensorBoard, Trackio, MLflow or Weights & Biases show
  summary/  figures/  report.html   the report; summary/manifest.json seals it, looks.json counts looks
  .locks/                           who works on what
  .workers/                         what a command and its workers on other machines say to each other, meanwhile
  error.log                         the traceback of what nobody expected
"""

import re
from dataclasses import dataclass
from pathlib import Path

from kdsuite.errors import SettingsError

MANIFEST = "manifest.json"  # the record of a folder
RECORD = "run.json"
PREDICTIONS = "predictions.jsonl"
HISTORY = "history.csv"
LOG = "log.txt"
CHECKPOINTS = "checkpoint*"  # what survives when a failed or interrupted run is run again …
PREDICTED = "evaluated-*"  # … and the predictions so far
CACHES = "teacher_cache"
ANSWERS = "answers.jsonl"  # the teacher's answers, raw and cleaned
RATIONALES = "rationales-*.json"  # its reasons, by what it was asked
QUALITY = "quality.json"  # how good they are, and how much of the outputs reaches each student
SECONDS = "seconds.json"  # how long the teacher was at work
NARRATIVE = "narrative.md"
SUPERSEDED = "--"  # between a run id and the fingerprint of settings of another time


class _At:
    """A path that needs nothing but the results folder."""

    def __init__(self, *parts: str) -> None:
        self.parts = parts

    def __get__(self, layout: "Layout", kind: type) -> Path:
        return layout.results.joinpath(*self.parts)


@dataclass(frozen=True)
class Layout:
    """The paths of one results folder."""

    results: Path

    # what runs read and leave
    runs = _At("raw_runs")
    plan = _At("raw_runs", "plan.json")
    benchmarks = _At("raw_runs", "benchmarks")
    server = _At(CACHES, "server.json")
    locks = _At(".locks")
    exchanges = _At(".workers")
    tracking = _At("tracking")
    error_log = _At("error.log")

    # models that are no run's, and what was found out about those that are named
    offline = _At("models", "offline")
    quantized = _At("models", "quantized")
    fallback_note = _At("models", "teacher_fallback.json")

    # what is made of it for readers
    summary = _At("summary")
    latex = _At("summary", "latex")
    manifest = _At("summary", MANIFEST)
    looks = _At("summary", "looks.json")  # which seeds' verdicts were read
    figures = _At("figures")
    page = _At("report.html")

    def processed(self, task: str) -> Path:
        return self.results / "processed_data" / task

    def cache(self, task: str, key: str) -> Path:
        """The teacher outputs of a task; `key` is the fingerprint of all that they depend on."""
        return self.results / CACHES / task / key

    def asked(self, task: str, teacher: str) -> Path:
        """What a teacher behind a URL has answered for a task so far; `teacher` is the fingerprint of what it is."""
        return self.results / CACHES / task / f"asked-{teacher}.jsonl"

    def model(self, run_id: str) -> Path:
        return self._below("models", run_id)

    def run(self, run_id: str) -> Path:
        """The folder of a run. SettingsError for an id that would lie elsewhere, also of `model`."""
        return self._below("raw_runs", run_id)

    def _below(self, folder: str, run_id: str) -> Path:
        if not run_id or run_id.startswith(".") or Path(run_id).name != run_id or "\\" in run_id:
            raise SettingsError(f"{run_id!r} is not a run id: it would lie outside of {self.results / folder}")
        return self.results / folder / run_id

    def trial(self, role: str) -> Path:
        return self.results / "models" / "trials" / f"{role}.json"

    def benchmark(self, task: str, model: str | None = None) -> Path:
        """The measurements of a task's plan, or of another model."""
        name = task if model is None else f"{task}--{file_name(model)}"
        return self.benchmarks / f"{name}.json"

    def evaluation(self, task: str, model: str) -> Path:
        """The record of a benchmarked model's quality; its predictions lie beside it."""
        return self.benchmarks / task / f"{file_name(model)}.json"


def file_name(name: str) -> str:
    """A model's name as a file name: "Qwen/Qwen2.5-0.5B" → "Qwen-Qwen2.5-0.5B"."""
    return re.sub(r"[^\w.+]+", "-", name)

"""Evaluations tell how far they are, and go on where they were stopped with the same predictions."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kdsuite import pipeline
from kdsuite.config import Settings, changed
from kdsuite.evaluate import predict
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.training import execute
from kdsuite.plan import RunSpec
from kdsuite.runtime import device
from kdsuite.runtime.progress import PLAIN_INTERVAL, Progress, Work
from kdsuite.store.records import Registry
from kdsuite.tasks.short_answer import ShortAnswer


def make(models: dict[str, Path], task: str, methods: list[str]) -> Settings:
    section = {
        "train_size": 12, "dev_size": 9, "validation_size": 12, "max_length": 400, "quality_floor": 0,
        "max_new_tokens": 4, "training": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3},
    }  # fmt: skip
    tree: dict[str, Any] = {
        "threads": 1,
        "seeds": [42],
        "tasks": {task: section},
        "methods": methods,
        "models": {
            "teacher": {"name": str(models["teacher"]), "batch_size": 4},
            "students": {"S1": {"name": str(models["student"])}},
        },
        "evaluation": {"batch_size": 4},
        "kd1": {"temperatures": [2.0], "alphas": [0.5], "top_k": 16},
        "benchmark": {"batch_sizes": [1], "new_tokens": 2, "blocks": 1, "threads": [1], "quantize": []},
        "report": {"permutations": 100},
    }
    return Settings.model_validate(tree)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sst2", "squad"])
def test_whatever_takes_long_tells_how_far_it_is(task: str, models, tmp_path) -> None:
    """A clock that goes on by more than a line's interval between any two looks at it: a line per batch."""
    ticks, stream = itertools.count(step=2 * PLAIN_INTERVAL), io.StringIO()
    progress = Progress(stream=stream, live=False, clock=lambda: next(ticks))
    methods = ["B0", "KD1"] if task == "squad" else ["B0", "KD1", "KD2"]  # an untrained teacher answers nothing
    settings = changed(make(models, task, methods), {"benchmark.memory": task == "squad"})  # in processes of its own
    outcome = pipeline.run(settings, tmp_path, progress=progress)
    assert outcome.failed == []
    lines = stream.getvalue().splitlines()
    runs = [run for run in outcome_runs(task) if run.split("_")[0] in {*methods, "teacher", "zero-shot"}]
    works = [f"{run}, {split}" for run in runs for split in ("dev", "validation")]
    works += [f"encoding {split} of {task} for S1" for split in ("train", "dev", "validation")]
    works += [f"encoding train of {task} for teacher", f"teacher outputs, {task}"]
    works += ["benchmark, getting ready", "benchmark", *(["benchmark, memory"] if task == "squad" else [])]
    for work in works:
        assert any(line.startswith(f"{work}: ") and " left" in line for line in lines), work
    dev = [line for line in lines if line.startswith(f"zero-shot_{task}_S1, dev: ")]
    assert [line.split(", ")[1] for line in dev] == [
        f"dev: {done}/9 examples"
        for done in ((3, 6, 9) if task == "squad" else (4, 8, 9))  # a passage at a time
    ]
    assert {"loading teacher", "loading student"} <= set(lines)


def outcome_runs(task: str) -> list[str]:
    return [
        f"teacher_{task}", f"zero-shot_{task}_S1", f"B0_{task}_S1_seed42", f"KD1_{task}_S1_T2_a0.5_seed42",
        f"KD2_{task}_S1_seed42",
    ]  # fmt: skip


class Stopping(Progress):
    """Ctrl-C at a piece of work, once so many of it are done."""

    def __init__(self, label: str, at: int, nth: int = 1) -> None:
        """At the `nth` work of that name."""
        super().__init__(stream=io.StringIO(), live=False)
        self.label, self.at, self.nth = label, at, nth

    def work(self, label: str, *about: Any, **more: Any) -> Any:
        self.nth -= label == self.label
        return super().work(label, *about, **more)

    def _changed(self, work: Work) -> None:
        if (work.label, self.nth) == (self.label, 0) and work.done >= self.at:
            raise KeyboardInterrupt


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts a model was given to be evaluated, by batch."""
    sizes: list[int] = []

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(model: Any, chat: Any, prompts: Any, *rest: Any) -> Any:
            sizes.append(len(prompts))
            return function(model, chat, prompts, *rest)

        return noted

    for name in ("label_scores", "generate"):
        monkeypatch.setattr(predict, name, noting(getattr(predict, name)))
    return sizes


def do(settings: Settings, results: Path, spec: RunSpec, progress: Progress | None = None) -> dict[str, bytes]:
    """What a run leaves: predictions, history but for its seconds, weights."""
    progress = progress or Progress.silent()
    choice = device.choose(settings.device, settings.dtype, settings.threads)
    shop = Bench(settings, results, choice, progress)
    execute(shop, spec)
    files = [*results.glob("raw_runs/*/predictions.jsonl"), *results.glob("models/*/*.safetensors")]
    left = {path.relative_to(results).as_posix(): path.read_bytes() for path in files}
    for path in results.glob("raw_runs/*/history.csv"):
        rows = [line.rsplit(b",", 1)[0] for line in path.read_bytes().splitlines()]
        left[path.name] = b"\n".join(rows)
    return left


RUNS = {
    "zero-shot": (RunSpec("zero-shot", "", "S1"), 9 + 12),
    "teacher": (RunSpec("teacher", ""), 9 + 12),
    "B0": (RunSpec("B0", "", "S1", 42), 2 * 9 + 9 + 12),
}


@pytest.mark.parametrize("task", ["sst2", "squad"])
@pytest.mark.parametrize(
    ("run", "split", "nth", "at"),
    [
        ("zero-shot", "dev", 1, 4),
        ("zero-shot", "validation", 1, 8),
        ("teacher", "validation", 1, 4),
        ("B0", "dev", 1, 4),  # after the first epoch
        ("B0", "dev", 2, 4),  # after the second
        ("B0", "dev", 3, 4),  # of the best weights
        ("B0", "validation", 1, 8),
    ],
)
def test_an_evaluation_goes_on_where_it_was_stopped(
    task: str, run: str, split: str, nth: int, at: int, models, tmp_path, asked
) -> None:
    spec, count = replace(RUNS[run][0], task=task), RUNS[run][1]
    settings = make(models, task, ["B0"])
    calm = do(settings, tmp_path / "calm", spec)
    assert sum(asked) == count
    asked.clear()

    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        do(settings, stopped, spec, Stopping(f"{spec.run_id}, {split}", at, nth))
    folder = stopped / "raw_runs" / spec.run_id
    assert list(folder.glob("evaluated-*.json"))
    assert (Registry(stopped).read(spec.run_id) or {})["status"] == "interrupted"
    assert do(settings, stopped, spec) == calm
    assert sum(asked) == count  # none twice
    assert not list(folder.glob("evaluated-*"))


def test_the_peak_of_a_training_is_recorded_though_its_evaluation_was_stopped(models, tmp_path, monkeypatch) -> None:
    """By the process that trained, in the checkpoint; what goes on evaluates only."""
    settings = changed(make(models, "sst2", ["B0"]), {"tasks.sst2.training.checkpoint_minutes": 1e-9})
    spec = RunSpec("B0", "sst2", "S1", 42)
    with monkeypatch.context() as training:
        training.setattr(device, "_peak_resident_bytes", lambda: 9e12)
        with pytest.raises(KeyboardInterrupt):
            do(settings, tmp_path, spec, Stopping(f"{spec.run_id}, validation", 4))
    do(settings, tmp_path, spec)
    assert (Registry(tmp_path).read(spec.run_id) or {})["timing"]["peak_memory_mb"] == 9e6


def test_predictions_of_other_settings_are_not_gone_on_with(models, tmp_path, asked) -> None:
    """Of the same run id: the interrupted run's are put aside with it."""
    settings, spec = make(models, "squad", ["B0"]), RunSpec("zero-shot", "squad", "S1")
    with pytest.raises(KeyboardInterrupt):
        do(settings, tmp_path, spec, Stopping(f"{spec.run_id}, validation", 8))
    asked.clear()
    do(changed(settings, {"tasks.squad.max_new_tokens": 3}), tmp_path, spec)
    assert sum(asked) == 9 + 12


def test_epochs_are_chosen_by_what_was_said_and_both_scores_are_recorded(models, tmp_path, monkeypatch) -> None:
    """With a cleaning that turns every answer into the gold one."""
    monkeypatch.setattr(ShortAnswer, "clean", lambda self, raw, example: example.references[0])
    spec = RunSpec("B0", "squad", "S1", 42)
    do(make(models, "squad", ["B0"]), tmp_path, spec)
    record = Registry(tmp_path).read(spec.run_id) or {}
    chosen, said = record["selection"], record["metrics"]
    assert chosen["metric"] == "f1" and chosen["dev"][chosen["epoch"] - 1] == said["dev"]["f1"]
    for split in ("dev", "validation"):
        assert said[split]["cleaned_f1"] == said[split]["cleaned_exact_match"] == 100 > said[split]["f1"]
    lines = (tmp_path / "raw_runs" / spec.run_id / "predictions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    scores = [json.loads(line)["scores"] for line in lines]
    for metric in ("f1", "exact_match", "cleaned_f1", "cleaned_exact_match"):
        assert said["validation"][metric] == pytest.approx(100 * sum(s[metric] for s in scores) / len(scores))


@pytest.mark.slow
def test_a_benchmarked_models_evaluation_goes_on_where_it_was_stopped(models, tmp_path, asked) -> None:
    settings, named = make(models, "squad", ["B0"]), [str(models["teacher"])]
    run = partial(pipeline.run, settings, tmp_path, ("benchmark",), models=named)
    with pytest.raises(KeyboardInterrupt):
        run(progress=Stopping("teacher, squad, validation", 8))
    run(progress=Progress.silent())
    single = [size for size in asked if size > 1]  # the answers that are timed come one by one
    assert sum(single) == 12
    assert not list(tmp_path.rglob("*evaluated-*"))

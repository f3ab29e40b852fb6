"""One run: from its spec to adapter, history, metrics and predictions on disk, or to a failure with its reason.

`gather` puts all that a run needs into one record of plain values; what follows works with these alone.
"""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdsuite.config import TEACHER, TrainingSettings
from kdsuite.errors import KdsuiteError, OutOfMemory, RunError, without_token
from kdsuite.evaluate.predict import Prediction, metrics, write_predictions
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.data import encoded, evaluation_set, identity, task
from kdsuite.jobs.evaluating import evaluated
from kdsuite.jobs.models import base, chat, for_training, source, weights_dtype
from kdsuite.jobs.teaching import cache_folder, learned_share, lesson_examples, pair_of, quality, targets_of
from kdsuite.methods.base import method
from kdsuite.methods.targets import TeacherTargets
from kdsuite.methods.terms import Distiller, Term
from kdsuite.models import loading
from kdsuite.models.costs import checkpoint_bytes
from kdsuite.models.sizes import count_parameters, trained_fingerprint
from kdsuite.plan import RunSpec, teacher_seed
from kdsuite.runtime.device import peak_memory_mb, reset_peak_memory
from kdsuite.runtime.environment import capture, code_version
from kdsuite.runtime.memory import is_out_of_memory
from kdsuite.runtime.process import seed_everything
from kdsuite.store.artefact import altered
from kdsuite.store.files import (
    atomic_folder,
    atomic_write_text,
    content_fingerprint,
    fingerprint,
    folder_bytes,
    free_bytes,
    remove_temporaries,
    storage_problem,
)
from kdsuite.store.layout import HISTORY, LOG, PREDICTED, PREDICTIONS
from kdsuite.store.parts import Parts
from kdsuite.store.spending import seconds_spent
from kdsuite.tasks.encoding import ChatTokenizer, Encoded
from kdsuite.train.checkpoint import Checkpoints
from kdsuite.train.loop import train

EVALUATED = ("dev", "validation")


def is_done(bench: Bench, spec: RunSpec) -> bool:
    """Whether a completed record with these very settings, its predictions and its weights are on disk, unaltered."""
    if bench.registry.state(spec.run_id, identity(bench, spec)) != "completed":
        return False
    made: dict[str, str] = (bench.registry.read(spec.run_id) or {}).get("made", {})
    bad = altered(bench.results, made)
    for name in bad:
        bench.progress.say(f"{name} is missing or altered; {spec.run_id} is done again")
    return bool(made) and not bad


def execute(bench: Bench, spec: RunSpec) -> dict[str, Any]:
    """Do a run, going on from its checkpoint if there is one, and record it; the caller holds its lock.

    A failure is recorded with its reason and raised as RunError; a disk that cannot be written to ends it all.
    """
    bench.free()  # what earlier runs left: none begins with more memory than the first
    registry, run_id = bench.registry, spec.run_id
    environment = {"environment": capture(bench.choice), "code_version": code_version()}
    folder = registry.start(run_id, identity(bench, spec), spec.as_dict(), **environment)
    remove_temporaries(bench.layout.model(run_id).parent, run_id)
    try:
        trained = spec.trained or (spec.method == TEACHER and bench.settings.tasks[spec.task].teacher_training.enabled)
        fields = (_train_and_evaluate if trained else _evaluate_only)(bench, spec)
    except KeyboardInterrupt:
        registry.interrupt(run_id)
        raise
    except Exception as error:
        reason, log = str(error), f"failed: {error}\n"
        if not isinstance(error, KdsuiteError):
            if problem := storage_problem(error):
                with suppress(OSError):
                    registry.interrupt(run_id, problem)
                raise
            what = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
            reason, log = f"{what} (traceback in {folder / 'log.txt'})", traceback.format_exc()
            if is_out_of_memory(error):
                reason = f"out of memory on {bench.choice.device}; `kdsuite plan` says what to change"
        atomic_write_text(folder / LOG, without_token(log))
        failure = (OutOfMemory if is_out_of_memory(error) else RunError)(reason)
        registry.fail(run_id, str(failure))
        raise failure from None
    registry.complete(run_id, **fields)
    for checkpoint in Checkpoints(folder, 0.0, {}).there():
        shutil.rmtree(checkpoint)
    for part in folder.glob(PREDICTED):
        part.unlink()
    return fields


@dataclass(frozen=True)
class Inputs:
    """All that a training needs beside the student itself."""

    seed: int
    settings: TrainingSettings
    examples: list[Encoded]
    order: list[Encoded]  # whose lengths decide the batches: the gold targets, for all methods
    targets: TeacherTargets | None  # what the teacher says about them, if anything is read of it
    loss: Callable[[], dict[str, Term]]  # made behind the seeding: projections begin at random
    chat: ChatTokenizer
    record: Path  # the folder of the run's record
    weights: Path  # where its best weights go


def gather(bench: Bench, spec: RunSpec) -> Inputs:
    """What a run, or the teacher's fine-tuning, learns from and with. RunError where the teacher's part is missing."""
    settings, recipe = bench.settings.tasks[spec.task], spec.recipe or method("B0")
    reads = recipe.reads(bench.settings, spec.point)
    if spec.method == TEACHER:
        order = examples = encoded(bench, spec.task, TEACHER, "teacher_train")
        training = settings.teacher_training
    else:
        examples = lesson_examples(bench, spec.task, spec.role, spec.method)
        order, training = encoded(bench, spec.task, spec.role, "train"), settings.training
    pair = pair_of(bench, recipe, spec.role, reads)
    return Inputs(
        teacher_seed(bench.settings) if spec.seed is None else spec.seed,
        training,
        examples,
        order,
        targets_of(bench, recipe, spec.task, spec.role, spec.point),
        lambda: recipe.loss(bench.settings, spec.point, pair),
        chat(bench, spec.role),
        bench.layout.run(spec.run_id),
        bench.layout.model(spec.run_id),
    )


def _evaluate_only(bench: Bench, spec: RunSpec) -> dict[str, Any]:
    model, started = base(bench, spec.role), time.perf_counter()
    results = {split: _predictions(bench, spec, model, split) for split in EVALUATED}
    return {
        **_results(bench, spec, results),
        "timing": {"train_seconds": 0.0, "evaluate_seconds": time.perf_counter() - started},
        "model": _sizes(bench, spec, model),
        "made": _made(bench, spec),
    }


def _train_and_evaluate(bench: Bench, spec: RunSpec) -> dict[str, Any]:
    inputs, kind = gather(bench, spec), task(bench, spec.task)
    evaluation_set(bench, spec.task, spec.role, "dev")
    base(bench, spec.role)  # what is loaded now, or was by an earlier run, draws no random numbers from here on
    seed_everything(inputs.seed)
    reset_peak_memory(bench.choice.device)
    with for_training(bench, spec.role, inputs.settings.gradient_checkpointing) as model:
        vocabulary = len(inputs.chat.token_bytes)
        distiller = Distiller(model, vocabulary, inputs.loss())
        distiller.terms.to(bench.choice.device)
        _check_space(bench, spec, distiller)

        def evaluate() -> float:
            predictions = _predictions(bench, spec, model, "dev", trained_fingerprint(model))
            return metrics(kind, predictions)[kind.metric]

        def keep_best() -> None:
            with atomic_folder(inputs.weights) as temporary:
                loading.save_trained(model, inputs.chat, temporary, source(bench, spec.role))

        checkpoints = Checkpoints(
            inputs.record,
            inputs.settings.checkpoint_minutes,
            capture(bench.choice),
            bench.progress.say,
            best=lambda: content_fingerprint(inputs.weights),
        )
        with bench.progress.work(spec.run_id, 1) as work:
            training = train(
                distiller, inputs.examples, inputs.chat.pad_id, inputs.settings, bench.choice, inputs.seed,
                inputs.targets, evaluate, keep_best, _step(work), checkpoints,
                bench.progress.say, inputs.order,
            )  # fmt: skip
        training.write_history(inputs.record / HISTORY)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        best, started = model, time.perf_counter()
        if not training.trained_here or training.best_epoch != len(training.dev):
            dtype = weights_dtype(bench, spec.role)
            best = loading.load_trained(source(bench, spec.role), inputs.weights, bench.choice.device, dtype)
        content = content_fingerprint(inputs.weights)
        results = {split: _predictions(bench, spec, best, split, content) for split in EVALUATED}
        sizes = _sizes(bench, spec, best, inputs.weights) | {"trainable_parameters": trainable}
    seconds = max(training.seconds, 1e-9)
    return {
        **_results(bench, spec, results),
        "timing": {
            "train_seconds": training.seconds,
            "evaluate_seconds": time.perf_counter() - started,
            "steps": training.steps,
            "examples_per_second": training.examples / seconds,
            "supervised_tokens_per_second": training.supervised_tokens / seconds,
            "peak_memory_mb": peak_memory_mb(bench.choice.device),
            "micro_batch_size": training.micro_batch_size,
        },
        "model": sizes,
        "selection": {"epoch": training.best_epoch, "metric": kind.metric, "dev": training.dev},
        "teacher": _teacher_record(bench, spec),
        "made": _made(bench, spec, inputs.weights),
    }


def _check_space(bench: Bench, spec: RunSpec, model: Any) -> None:
    """RunError if the disk cannot hold a run's checkpoints and, twice for a moment, its weights."""
    saved = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    need, free = checkpoint_bytes(saved), free_bytes(bench.results)
    if need > free:
        raise RunError(
            f"{spec.run_id} needs {need / 1e6:,.0f} MB for its weights and checkpoints, but only {free / 1e6:,.0f} MB "
            "are free; free some, or train adapters (models.lora.enabled)"
        )


def _step(work: Any) -> Callable[[int, int], None]:
    def advance(step: int, of: int) -> None:
        work.total = of
        if step > work.done + 1:  # an earlier invocation did the others
            work.done = work.began_at = step - 1
        work.advance()

    return advance


def _predictions(bench: Bench, spec: RunSpec, model: Any, split: str, weights: str | None = None) -> list[Prediction]:
    """Those of a run's model on a split; `weights` identifies what was trained of it."""
    data = evaluation_set(bench, spec.task, spec.role, split)
    key = fingerprint([identity(bench, spec), data.fingerprint, weights, bench.choice.numerics])
    name = PREDICTED.replace("*", f"{split}-{key[:16]}")  # of every epoch its own
    parts = Parts(bench.layout.run(spec.run_id), name, key)
    settings = bench.settings.models.teacher if spec.role == TEACHER else bench.settings.evaluation
    label = f"{spec.run_id}, {split}"
    return evaluated(bench, label, model, chat(bench, spec.role), data, settings.batch_size, parts)


def _results(bench: Bench, spec: RunSpec, results: dict[str, list[Prediction]]) -> dict[str, Any]:
    write_predictions(bench.layout.run(spec.run_id) / PREDICTIONS, results["validation"])
    kind = task(bench, spec.task)
    return {"metrics": {split: metrics(kind, predictions) for split, predictions in results.items()}}


def _made(bench: Bench, spec: RunSpec, *others: Path) -> dict[str, str | None]:
    """What a run leaves on disk, by its path below the results, with the fingerprint of its content."""
    paths = [bench.layout.run(spec.run_id) / PREDICTIONS, *others]
    return {path.relative_to(bench.results).as_posix(): content_fingerprint(path) for path in paths}


def _sizes(bench: Bench, spec: RunSpec, model: Any, weights: Path | None = None) -> dict[str, Any]:
    """Sizes for the record: the model's and its adapter's parameters, and the bytes on disk."""
    came = source(bench, spec.role)
    about = {"name": came.name, "revision": came.revision, "stands_in": came.stands_in}
    disk = folder_bytes(weights) / 1e6 if weights else None
    return {**about, **count_parameters(model), "disk_mb": disk}


def _teacher_record(bench: Bench, spec: RunSpec) -> dict[str, Any] | None:
    if spec.recipe is None or not spec.uses_teacher:
        return None
    came = source(bench, TEACHER)
    record: dict[str, Any] = {"name": came.name, "revision": came.revision}
    record |= {"stands_in": came.stands_in, "quality": quality(bench, spec.task)}
    record["seconds"] = seconds_spent(cache_folder(bench, spec.task))
    if spec.recipe.lesson == "teacher":
        record["answers_learned_share"] = learned_share(bench, spec.task, spec.recipe)
    return record

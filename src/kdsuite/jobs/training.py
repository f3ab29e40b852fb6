"""One run: from its spec to adapter, history, metrics and predictions on disk, or to a failure with its reason."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch

from kdsuite.config import TrainingSettings
from kdsuite.errors import KdsuiteError, OutOfMemory, RunError, without_token
from kdsuite.evaluate.predict import Prediction, metrics, write_predictions
from kdsuite.jobs.evaluating import evaluated, numerics
from kdsuite.jobs.workshop import TEACHER, Workshop
from kdsuite.methods.features import Projectors
from kdsuite.methods.objective import Distiller, Objective
from kdsuite.methods.registry import METHODS
from kdsuite.methods.targets import TeacherTargets
from kdsuite.models import loading
from kdsuite.models.costs import checkpoint_bytes
from kdsuite.models.forward import state_width
from kdsuite.models.sizes import count_parameters, trained_fingerprint
from kdsuite.plan import RunSpec, run_fingerprint
from kdsuite.runtime.device import peak_memory_mb, reset_peak_memory
from kdsuite.runtime.environment import capture, code_version
from kdsuite.runtime.memory import is_out_of_memory
from kdsuite.runtime.seeding import seed_everything
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
from kdsuite.store.parts import Parts
from kdsuite.store.records import PREDICTED
from kdsuite.store.spending import seconds_spent
from kdsuite.tasks.encoding import Encoded
from kdsuite.teacher.base import Teacher, Together
from kdsuite.teacher.local import OutputSettings
from kdsuite.train.checkpoint import Checkpoints
from kdsuite.train.loop import Training, train

EVALUATED = ("dev", "validation")


def is_done(shop: Workshop, spec: RunSpec) -> bool:
    """Whether a completed record with these very settings, its predictions and its weights are on disk, unaltered."""
    if shop.registry.state(spec.run_id, _identity(shop, spec)) != "completed":
        return False
    made: dict[str, str] = (shop.registry.read(spec.run_id) or {}).get("made", {})
    altered = [name for name, content in made.items() if content_fingerprint(shop.results / name) != content]
    for name in altered:
        shop.progress.say(f"{name} is missing or altered; {spec.run_id} is done again")
    return bool(made) and not altered


def execute(shop: Workshop, spec: RunSpec) -> dict[str, Any]:
    """Do a run, going on from its checkpoint if there is one, and record it; the caller holds its lock.

    A failure is recorded with its reason and raised as RunError; a disk that cannot be written to ends it all.
    """
    shop.free()  # what earlier runs left: none begins with more memory than the first
    environment = {"environment": capture(shop.choice), "code_version": code_version()}
    folder = shop.registry.start(spec.run_id, _identity(shop, spec), spec.as_dict(), **environment)
    remove_temporaries(shop.results / "models", spec.run_id)
    try:
        fields = _train_and_evaluate(shop, spec) if _is_trained(shop, spec) else _only_evaluate(shop, spec)
    except KeyboardInterrupt:
        shop.registry.interrupt(spec.run_id)
        raise
    except KdsuiteError as error:
        raise _failure(shop, spec, error, str(error), f"failed: {error}\n") from None
    except Exception as error:
        if problem := storage_problem(error):
            with suppress(OSError):
                shop.registry.interrupt(spec.run_id, problem)
            raise
        reason = f"{type(error).__name__}: {error} (traceback in {folder / 'log.txt'})"
        if is_out_of_memory(error):
            reason = f"out of memory on {shop.choice.device}; `kdsuite plan` says what to change"
        raise _failure(shop, spec, error, reason, traceback.format_exc()) from None
    shop.registry.complete(spec.run_id, **fields)
    _checkpoints(shop, spec).clear()
    for part in folder.glob(PREDICTED):
        part.unlink()
    return fields


def _identity(shop: Workshop, spec: RunSpec) -> str:
    return run_fingerprint(shop.settings, spec, shop.fingerprints(spec.task))


def _failure(shop: Workshop, spec: RunSpec, error: BaseException, reason: str, log: str) -> RunError:
    """Record a failure; the error that tells it."""
    atomic_write_text(shop.registry.folder(spec.run_id) / "log.txt", without_token(log))
    failure = (OutOfMemory if is_out_of_memory(error) else RunError)(reason)
    shop.registry.fail(spec.run_id, str(failure))
    return failure


def _checkpoints(shop: Workshop, spec: RunSpec) -> Checkpoints:
    weights = shop.model_folder(spec.run_id)
    return Checkpoints(
        shop.registry.folder(spec.run_id),
        _training_settings(shop, spec).checkpoint_minutes,
        capture(shop.choice),
        shop.progress.say,
        best=lambda: content_fingerprint(weights),
    )


def _is_trained(shop: Workshop, spec: RunSpec) -> bool:
    return spec.trained or (
        spec.method == TEACHER and shop.settings.tasks[spec.task].teacher_training.enabled
    )


def _only_evaluate(shop: Workshop, spec: RunSpec) -> dict[str, Any]:
    role = spec.student or TEACHER
    model = shop.base(role)
    started = time.perf_counter()
    results = {split: _predictions(shop, spec, model, split) for split in EVALUATED}
    return {
        **_results(shop, spec, results),
        "timing": {"train_seconds": 0.0, "evaluate_seconds": time.perf_counter() - started},
        "model": _sizes(shop, role, model, None),
        "made": _made(shop, spec),
    }


def _made(shop: Workshop, spec: RunSpec, *others: str) -> dict[str, str | None]:
    """What a run leaves on disk, by its path below the results, with the fingerprint of its content."""
    names = [f"raw_runs/{spec.run_id}/predictions.jsonl", *others]
    return {name: content_fingerprint(shop.results / name) for name in names}


def _train_and_evaluate(shop: Workshop, spec: RunSpec) -> dict[str, Any]:
    role = spec.student or TEACHER
    settings = _training_settings(shop, spec)
    examples, targets = _lesson(shop, spec, role)
    seed = shop.settings.seeds[0] if spec.seed is None else spec.seed
    task = shop.task(spec.task)
    shop.evaluation_set(spec.task, role, "dev")
    shop.base(role)  # what is loaded now, or was by an earlier run, draws no random numbers from here on
    seed_everything(seed)
    reset_peak_memory(shop.choice.device)
    folder, checkpoints = shop.model_folder(spec.run_id), _checkpoints(shop, spec)
    with shop.for_training(role, settings.gradient_checkpointing) as model:
        distiller = _distiller(shop, spec, role, model)
        _check_space(shop, spec, distiller)

        def evaluate() -> float:
            predictions = _predictions(shop, spec, model, "dev", trained_fingerprint(model))
            return metrics(task, predictions)[task.metric]

        def keep_best() -> None:
            with atomic_folder(folder) as temporary:
                loading.save_trained(model, shop.chat(role), temporary, shop.source(role))

        with shop.progress.work(spec.run_id, 1) as work:
            training = train(
                distiller, examples, shop.chat(role).pad_id, settings, shop.choice, seed,
                shop.registry.folder(spec.run_id) / "scratch", targets, evaluate, keep_best, _step(work),
                checkpoints, shop.progress.say,
            )  # fmt: skip
        shutil.rmtree(shop.registry.folder(spec.run_id) / "scratch", ignore_errors=True)
        training.write_history(shop.registry.folder(spec.run_id) / "history.csv")
        trained_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        best = model if training.trained_here and training.best_epoch == len(training.dev) else None
        started = time.perf_counter()
        if best is None:
            best = loading.load_trained(
                shop.source(role), folder, shop.choice.device, shop.weights_dtype(role)
            )
        weights = content_fingerprint(folder)
        results = {split: _predictions(shop, spec, best, split, weights) for split in EVALUATED}
        sizes = _sizes(shop, role, best, spec.run_id) | {"trainable_parameters": trained_parameters}
    return {
        **_results(shop, spec, results),
        "timing": _timing(training, time.perf_counter() - started, peak_memory_mb(shop.choice.device)),
        "model": sizes,
        "selection": {"epoch": training.best_epoch, "metric": task.metric, "dev": training.dev},
        "teacher": _teacher_record(shop, spec),
        "made": _made(shop, spec, f"models/{spec.run_id}"),
    }


def _check_space(shop: Workshop, spec: RunSpec, model: Any) -> None:
    """RunError if the disk cannot hold a run's checkpoints and, twice for a moment, its weights."""
    saved = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    need, free = checkpoint_bytes(saved), free_bytes(shop.results)
    if need > free:
        raise RunError(
            f"{spec.run_id} needs {need / 1e6:,.0f} MB for its weights and checkpoints, but only {free / 1e6:,.0f} MB "
            "are free; free some, or train adapters (models.lora.enabled)"
        )


def _training_settings(shop: Workshop, spec: RunSpec) -> TrainingSettings:
    task = shop.settings.tasks[spec.task]
    return task.teacher_training if spec.method == TEACHER else task.training


def _lesson(shop: Workshop, spec: RunSpec, role: str) -> tuple[list[Encoded], TeacherTargets | None]:
    """What a run learns from: its examples and, for methods that need them, the teacher outputs."""
    if spec.method == TEACHER:
        return shop.encoded(spec.task, role, "teacher_train"), None
    method = METHODS[spec.method]
    if method.target == "teacher":
        _refuse_below_floor(shop, spec.task)
        return shop.encoded_answers(spec.task, role), None
    examples = shop.encoded(spec.task, role, "train")
    objective = _objective(shop, spec)
    if set(objective.weights) == {"ce"}:
        return examples, None
    soft, online = "kd" in objective.weights, method.features and not shop.settings.kd3.cache
    layers = tuple(teacher for _, teacher in shop.layer_pairs(role)) if method.features else ()
    parts: list[Teacher] = [] if online and not soft else [shop.teacher_cache(spec.task)]
    if online:
        parts.insert(0, shop.teacher_of(spec.task, OutputSettings(layers=layers)))
    targets = TeacherTargets(
        Together(*parts), shop.vocabulary_map(role), spec.temperature if soft else None, layers
    )
    return examples, targets


def _refuse_below_floor(shop: Workshop, task: str) -> None:
    quality, floor = shop.quality(task), shop.settings.tasks[task].quality_floor
    metric = shop.task(task).metric
    if metric not in quality:
        raise RunError(f"the teacher's answers of {task} are not there; run `kdsuite cache`")
    if quality[metric] < floor:
        raise RunError(
            f"refused: the teacher's {metric} on the training set of {task} is {quality[metric]:.1f}, below the floor "
            f"of {floor:g}; take a better teacher, or lower tasks.{task}.quality_floor"
        )


def _objective(shop: Workshop, spec: RunSpec) -> Objective:
    method = METHODS["B0" if spec.method == TEACHER else spec.method]
    kd1, kd3 = shop.settings.kd1, shop.settings.kd3
    return Objective(
        method,
        spec.alpha,
        spec.temperature,
        spec.feature_weight,
        kd3.loss,
        kd1.divergence,
        kd1.beta,
        kd1.cross_tokenizer,
    )


def _distiller(shop: Workshop, spec: RunSpec, role: str, model: Any) -> Distiller:
    vocabulary = len(shop.chat(role).token_bytes)
    objective = _objective(shop, spec)
    lonely = torch.from_numpy(shop.vocabulary_map(role).unmapped) if objective.method.soft else None
    if not objective.method.features:
        return Distiller(model, vocabulary, objective, unmapped=lonely)
    pairs = shop.layer_pairs(role)
    widths = [(state_width(shop.config(role), a), state_width(shop.config(TEACHER), b)) for a, b in pairs]
    projectors = Projectors(widths)
    layers = tuple(layer for layer, _ in pairs)
    return Distiller(model, vocabulary, objective, layers, projectors.to(shop.choice.device), lonely)


def _step(work: Any) -> Callable[[int, int], None]:
    def advance(step: int, of: int) -> None:
        work.total = of
        if step > work.done + 1:  # an earlier invocation did the others
            work.done = work.began_at = step - 1
        work.advance()

    return advance


def _predictions(
    shop: Workshop, spec: RunSpec, model: Any, split: str, weights: str | None = None
) -> list[Prediction]:
    """Those of a run's model on a split; `weights` identifies what was trained of it."""
    role, settings = spec.student or TEACHER, shop.settings
    data = shop.evaluation_set(spec.task, role, split)
    key = fingerprint([_identity(shop, spec), data.fingerprint, weights, numerics(shop)])
    name = PREDICTED.replace("*", f"{split}-{key[:16]}")  # of every epoch its own
    parts = Parts(shop.registry.folder(spec.run_id), name, key)
    batch_size = settings.models.teacher.batch_size if role == TEACHER else settings.evaluation.batch_size
    return evaluated(shop, f"{spec.run_id}, {split}", model, shop.chat(role), data, batch_size, parts)


def _results(shop: Workshop, spec: RunSpec, results: dict[str, list[Prediction]]) -> dict[str, Any]:
    task = shop.task(spec.task)
    write_predictions(shop.registry.folder(spec.run_id) / "predictions.jsonl", results["validation"])
    return {"metrics": {split: metrics(task, predictions) for split, predictions in results.items()}}


def _sizes(shop: Workshop, role: str, model: Any, run_id: str | None) -> dict[str, Any]:
    """Sizes for the record: the model's and its adapter's parameters, and the bytes on disk."""
    source = shop.source(role)
    folders = [shop.model_folder(run_id)] if run_id else []
    disk = sum(folder_bytes(f) for f in folders) / 1e6 if folders else None
    about = {"name": source.name, "revision": source.revision, "stands_in": source.stands_in}
    return {**about, **asdict(count_parameters(model)), "disk_mb": disk}


def _timing(training: Training, evaluate_seconds: float, peak_mb: float) -> dict[str, Any]:
    seconds = max(training.seconds, 1e-9)
    return {
        "train_seconds": training.seconds,
        "evaluate_seconds": evaluate_seconds,
        "steps": training.steps,
        "examples_per_second": training.examples / seconds,
        "supervised_tokens_per_second": training.supervised_tokens / seconds,
        "peak_memory_mb": peak_mb,
        "micro_batch_size": training.micro_batch_size,
    }


def _teacher_record(shop: Workshop, spec: RunSpec) -> dict[str, Any] | None:
    if not spec.uses_teacher:
        return None
    source = shop.source(TEACHER)
    record: dict[str, Any] = {"name": source.name, "revision": source.revision}
    record |= {"stands_in": source.stands_in, "quality": shop.quality(spec.task)}
    record["seconds"] = seconds_spent(shop.cache_folder(spec.task))
    if METHODS[spec.method].target == "teacher":
        record["answers_learned_share"] = len(shop.lessons(spec.task)) / len(shop.splits(spec.task)["train"])
    return record

"""One run: from its spec to adapter, history, metrics and predictions on disk, or to a failure with its reason."""

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kdsuite.config import TEACHER
from kdsuite.errors import KdsuiteError, OutOfMemory, RunError, without_token
from kdsuite.evaluate.predict import Prediction, metrics, scored, write_predictions
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.data import encoded, evaluation_set, task
from kdsuite.jobs.models import (
    CPU,
    asked,
    base,
    chat,
    for_training,
    server_found,
    shared,
    source,
    teacher_model,
    weights_dtype,
)
from kdsuite.jobs.rationales import rationale_examples
from kdsuite.jobs.teaching import cache_folder, identity, lesson_examples, output_settings, quality, read_by
from kdsuite.jobs.teaching import order as order_of
from kdsuite.jobs.transfer import time_folder
from kdsuite.methods.base import method
from kdsuite.methods.terms import Distiller, Term
from kdsuite.models import loading
from kdsuite.models.costs import checkpoint_bytes
from kdsuite.models.sizes import count_parameters, trained_fingerprint
from kdsuite.models.spread import shard, sharded, whole_weights
from kdsuite.plan import RunSpec, teacher_seed
from kdsuite.runtime.device import peak_memory_mb, reset_peak_memory
from kdsuite.runtime.environment import capture, code_version
from kdsuite.runtime.memory import is_out_of_memory
from kdsuite.runtime.process import seed_everything
from kdsuite.runtime.ranks import here, together
from kdsuite.runtime.tracking import Tracker
from kdsuite.store import files
from kdsuite.store.artefact import altered
from kdsuite.store.layout import HISTORY, LOG, PREDICTED, PREDICTIONS
from kdsuite.store.parts import Parts
from kdsuite.store.spending import seconds_spent
from kdsuite.tasks.splits import fraction_of
from kdsuite.teacher.http import HttpTeacher
from kdsuite.train.checkpoint import Checkpoints
from kdsuite.train.loop import Material, train

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
    files.remove_temporaries(bench.layout.model(run_id).parent, run_id)
    try:
        trained = spec.trained or (spec.method == TEACHER and bench.settings.tasks[spec.task].teacher_training.enabled)
        fields = _train_and_evaluate(bench, spec) if trained else _evaluate_only(bench, spec)
    except KeyboardInterrupt:
        registry.interrupt(run_id)
        raise
    except Exception as error:
        reason, log = str(error), f"failed: {error}\n"
        if not isinstance(error, KdsuiteError):
            if problem := files.storage_problem(error):
                with suppress(OSError):
                    registry.interrupt(run_id, problem)
                raise
            what = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
            reason, log = f"{what} (traceback in {folder / 'log.txt'})", traceback.format_exc()
            if is_out_of_memory(error):
                reason = f"out of memory on {bench.choice.device}; `kdsuite plan` says what to change"
        files.atomic_write_text(folder / LOG, without_token(log))
        failure = (OutOfMemory if is_out_of_memory(error) else RunError)(reason)
        registry.fail(run_id, str(failure))
        raise failure from None
    registry.complete(run_id, **fields)
    Checkpoints(folder, 0.0, {}).clear()
    for part in folder.glob(PREDICTED):
        part.unlink()
    return fields


@contextmanager
def _tracked(bench: Bench, spec: RunSpec) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Where the rows of a run's history and its metrics go as they come: to every tracker of the settings."""
    names = {role: source(bench, role).name for role in (TEACHER, spec.role)}
    about = {"project": bench.results.absolute().name, "run": spec.run_id}
    config = {key: value for key, value in spec.as_dict().items() if key != "point"} | dict(spec.point) | names
    at, status = bench.layout.tracking, "failed"
    given = {**about, "config": config}
    names_here = () if here().rank else bench.settings.tracking  # who follows says nothing
    trackers = [Tracker(name, at / name, given, bench.progress.say) for name in names_here]

    def log(row: Mapping[str, float]) -> None:
        values = {name: value for name, value in row.items() if name != "step"}
        for tracker in trackers:
            tracker.log(int(row["step"]), values)

    try:
        yield log
        status = "completed"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        for tracker in trackers:
            tracker.finish(status)


def _told(fields: dict[str, Any], log: Callable[[Mapping[str, float]], None]) -> dict[str, Any]:
    """The fields of a record, whose metrics and times trackers were told: validation/accuracy."""
    groups = {**fields["metrics"], "timing": fields["timing"]}
    numbers = {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
    told = {name: value for name, value in numbers.items() if value is not None}
    log({"step": fields["timing"].get("steps", 0), **told})
    return fields


def _evaluate_only(bench: Bench, spec: RunSpec) -> dict[str, Any]:
    model = teacher_model(bench, spec.task) if spec.role == TEACHER else base(bench, spec.role)
    started = time.perf_counter()
    with _tracked(bench, spec) as log:
        results = _results(bench, spec, model)
        timing = {"train_seconds": 0.0, "evaluate_seconds": time.perf_counter() - started}
        return _told(results | {"timing": timing}, log)


def gather(bench: Bench, spec: RunSpec) -> tuple[Material, Callable[[], Mapping[str, Term]]]:
    """What a run, or the teacher's fine-tuning, learns from; and what makes its loss, to be called behind the seeding:
    projections begin at random. RunError where the teacher's part is missing."""
    recipe, settings = spec.recipe or method("B0"), bench.settings.tasks[spec.task]
    if spec.method == TEACHER:
        order = examples = encoded(bench, spec.task, TEACHER, "teacher_train")
        how = settings.teacher_training
    else:
        examples, how = lesson_examples(bench, spec.task, spec.role, spec.method), settings.training
        order = order_of(bench, spec.task, spec.role, spec.method)
        if spec.fraction < 1:
            order = fraction_of(order, spec.fraction)
            ids = {e.id for e in order}
            examples = [e for e in examples if e.id in ids]
            if not examples:
                raise RunError(f"{spec.method} has no lesson for any of the first {len(order)} examples of {spec.task}")
    pair, targets = read_by(bench, recipe, spec.task, spec.role, spec.point)
    seed = teacher_seed(bench.settings) if spec.seed is None else spec.seed
    request = recipe.request(bench.settings, spec.point)
    beside = rationale_examples(bench, spec.task, spec.role, request) if request else ()
    material = Material(examples, chat(bench, spec.role).pad_id, how, seed, targets, order, beside)
    return material, lambda: recipe.loss(bench.settings, spec.point, pair)


@together
def _train_and_evaluate(bench: Bench, spec: RunSpec) -> dict[str, Any]:
    with _tracked(bench, spec) as log:
        return _told(_train(bench, spec, log), log)


def _train(bench: Bench, spec: RunSpec, log: Callable[[Mapping[str, float]], None]) -> dict[str, Any]:
    material, loss = gather(bench, spec)
    kind, tokens, settings = task(bench, spec.task), chat(bench, spec.role), material.settings
    record, weights, came = bench.layout.run(spec.run_id), bench.layout.model(spec.run_id), source(bench, spec.role)
    evaluation_set(bench, spec.task, spec.role, "dev")
    if here().size == 1:
        base(bench, spec.role)  # what is loaded now, or was by an earlier run, draws no random numbers from here on
    seed_everything(material.seed)
    reset_peak_memory(bench.choice.device)
    with for_training(bench, spec.role, settings.gradient_checkpointing) as model:
        distiller = Distiller(model, len(tokens.token_bytes), loss())
        for term in distiller.terms.to(bench.choice.device).children():
            if here().size > 1 and any(True for _ in term.parameters()):
                shard(term, bench.choice.device)
        _check_space(bench, spec, distiller)

        def evaluate() -> float:
            predictions = _predictions(bench, spec, model, "dev", trained_fingerprint(model))
            return metrics(kind, predictions)[kind.metric]

        def keep_best() -> None:
            content = whole_weights(model)

            def write() -> None:
                with files.atomic_folder(weights) as temporary:
                    loading.save_trained(model, tokens, temporary, came, content)

            here().agreed(write)

        def advance(step: int, of: int) -> None:
            work.total = of
            work.skip(step - 1 - work.done)  # what an earlier invocation did
            work.advance()

        say, minutes, environment = bench.progress.say, settings.checkpoint_minutes, capture(bench.choice)
        checkpoints = Checkpoints(record, minutes, environment, say, best=lambda: files.content_fingerprint(weights))
        with bench.progress.work(spec.run_id, 1) as work:
            training = train(distiller, material, bench.choice, evaluate, keep_best, advance, checkpoints, say, log)
        here().agreed(lambda: training.write_history(record / HISTORY))
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        best, started = model, time.perf_counter()
        if not training.trained_here or training.best_epoch != len(training.dev):
            best = _best(bench, spec, weights)
        results = here().agreed(lambda: _results(bench, spec, best, weights))
    results["model"]["trainable_parameters"] = trainable
    peak = max(training.peak_memory_mb, peak_memory_mb(bench.choice.device))
    cost = {"evaluate_seconds": time.perf_counter() - started, "peak_memory_mb": peak}
    return results | {
        "timing": training.timing | cost,
        "selection": {"epoch": training.best_epoch, "metric": kind.metric, "dev": training.dev},
        "teacher": _teacher_record(bench, spec, material),
    }


def _best(bench: Bench, spec: RunSpec, weights: Path) -> Any:
    """The model of the best epoch, as it was kept."""
    came, device, dtype = source(bench, spec.role), bench.choice.device, weights_dtype(bench, spec.role)
    if here().size == 1:
        return loading.load_trained(came, weights, device, dtype)
    return shared(bench, spec.role, sharded(lambda: loading.load_trained(came, weights, CPU, dtype), device))


def _check_space(bench: Bench, spec: RunSpec, model: Any) -> None:
    """RunError if the disk cannot hold a run's checkpoints and, twice for a moment, its weights."""
    saved = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    need, free = checkpoint_bytes(saved), files.free_bytes(bench.results)
    if need > free:
        raise RunError(
            f"{spec.run_id} needs {need / 1e6:,.0f} MB for its weights and checkpoints, but only {free / 1e6:,.0f} MB "
            "are free; free some, or train adapters (models.lora.enabled)"
        )


def _predictions(bench: Bench, spec: RunSpec, model: Any, split: str, weights: str | None = None) -> list[Prediction]:
    """Those of a run's model on a split; `weights` identifies what was trained of it."""
    data = evaluation_set(bench, spec.task, spec.role, split)
    key = files.fingerprint([identity(bench, spec), data.fingerprint, weights, bench.choice.numerics])
    name = PREDICTED.replace("*", f"{split}-{key[:16]}")  # of every epoch its own
    parts = Parts(bench.layout.run(spec.run_id), name, key)
    settings = bench.settings.models.teacher if spec.role == TEACHER else bench.settings.evaluation
    label = f"{spec.run_id}, {split}"
    return scored(data, asked(bench, label, model, chat(bench, spec.role), data, settings.batch_size, parts))


def _results(bench: Bench, spec: RunSpec, model: Any, weights: Path | None = None) -> dict[str, Any]:
    """Metrics, the model's and its adapter's sizes, and what lies on disk by its path below the results, with the
    fingerprint of its content. `weights` is the folder of those that were trained."""
    kind, came, said = task(bench, spec.task), source(bench, spec.role), bench.layout.run(spec.run_id) / PREDICTIONS
    content = files.content_fingerprint(weights) if weights else None
    results = {split: _predictions(bench, spec, model, split, content) for split in EVALUATED}
    write_predictions(said, results["validation"])
    about = {"name": came.name, "revision": came.revision, "stands_in": came.stands_in}
    if not isinstance(model, HttpTeacher):  # how large that is, is not known
        about |= count_parameters(model)
    made = [said, weights] if weights else [said]
    return {
        "metrics": {split: metrics(kind, predictions) for split, predictions in results.items()},
        "model": about | {"disk_mb": files.folder_bytes(weights) / 1e6 if weights else None},
        "made": {path.relative_to(bench.results).as_posix(): files.content_fingerprint(path) for path in made},
    }


def _teacher_record(bench: Bench, spec: RunSpec, material: Material) -> dict[str, Any] | None:
    if spec.recipe is None or not spec.uses_teacher:
        return None
    came, folders = source(bench, TEACHER), [cache_folder(bench, spec.task)]
    if bench.settings.tasks[spec.task].transfers:
        folders.append(time_folder(bench, spec.task))
    record: dict[str, Any] = {
        "name": came.name,
        "revision": came.revision,
        "stands_in": came.stands_in,
        "quality": quality(bench, spec.task),
        "seconds": seconds_spent(*folders),
    }
    if bench.settings.models.served:
        record["served"] = str(server_found(bench))
        reads = spec.recipe.reads(bench.settings, spec.point) and not task(bench, spec.task).labels  # labels are exact
        record["top_k"] = output_settings(bench, spec.task).top_k if reads else None
    ids = {e.id for e in material.order or material.examples}
    learned = {"answers": material.examples if spec.recipe.lesson == "teacher" else (), "rationales": material.beside}
    for what, some in learned.items():
        if some:
            record[f"{what}_learned_share"] = sum(e.id in ids for e in some) / len(ids)
    return record

"""What the teacher of a task has said, on disk: outputs at target positions, answers, how good they are."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdsuite.config import TEACHER
from kdsuite.errors import RunError
from kdsuite.jobs.bench import Bench, kept
from kdsuite.jobs.data import encoded, encoded_answers, fingerprints, task
from kdsuite.jobs.models import chat, config, served_teacher, teacher_model
from kdsuite.jobs.transfer import answered, taught
from kdsuite.methods.alignment import VocabularyMap, map_vocabulary
from kdsuite.methods.base import Kept, Method, Pair, Point, kept_by, method
from kdsuite.methods.rollouts import Rollouts
from kdsuite.methods.targets import TeacherTargets, suited
from kdsuite.models.forward import state_width
from kdsuite.plan import RunSpec, run_fingerprint, student_identity, teacher_identity
from kdsuite.store import files
from kdsuite.store.layout import ANSWERS as ANSWERS_FILE
from kdsuite.store.layout import MANIFEST, QUALITY
from kdsuite.tasks.encoding import Encoded
from kdsuite.teacher.base import Teacher, Together
from kdsuite.teacher.cached import FORMAT, CachedTeacher, imported_into, is_complete, targets_fingerprint
from kdsuite.teacher.http import HttpTeacher
from kdsuite.teacher.local import LocalTeacher, OutputSettings


def planned_methods(bench: Bench) -> list[Method]:
    return [method(name) for name in bench.settings.methods]


# --- what student and teacher have in common


@kept
def vocabulary_map(bench: Bench, student: str) -> VocabularyMap:
    return map_vocabulary(chat(bench, TEACHER), chat(bench, student))


def layer_pairs(bench: Bench, one: Method, student: str) -> list[tuple[int, int]]:
    """The layers that a method matches. SettingsError for layers that a model does not have."""
    if bench.settings.models.served:
        return []
    depths = (config(bench, role).num_hidden_layers for role in (student, TEACHER))
    return one.layers(bench.settings, *depths)


def read_by(
    bench: Bench, one: Method, name: str, student: str, point: Point
) -> tuple[Pair, TeacherTargets | Rollouts | None]:
    """What a method's loss is told of student and teacher, and the teacher's outputs as its run reads them; nothing
    where it reads none."""
    reads = one.reads(bench.settings, point)
    if not reads:
        return Pair(), None
    pairs, vocabulary = layer_pairs(bench, one, student), vocabulary_map(bench, student)
    widths = [(state_width(config(bench, student), a), state_width(config(bench, TEACHER), b)) for a, b in pairs]
    layers = tuple(teacher for _, teacher in pairs)
    stored = one.kept(bench.settings) or Kept(dtype="float32")
    online = bool(layers) and not stored.states
    temperature = point.get("temperature", 1.0) if "distributions" in reads else None
    parts: list[Teacher] = [teacher_of(bench, name, OutputSettings(layers=layers))] if online else []
    if temperature is not None or not online:
        parts.append(teacher_cache(bench, name))
    told = Pair(pairs, widths, torch.from_numpy(vocabulary.unmapped))
    entries = _entries(bench, one, name, temperature) if temperature else "topk_tail"
    targets = TeacherTargets(Together(*parts), vocabulary, temperature, layers, entries, stored)
    how = one.on_policy(bench.settings, point)
    if how is None or task(bench, name).labels:
        return told, targets
    live = teacher_of(bench, name, replace(output_settings(bench, name), layers=(), draws=()))
    about = chat(bench, student), chat(bench, TEACHER), _by_id(bench, name)
    return told, Rollouts(how, targets, live, *about, bench.settings.tasks[name].max_new_tokens)


def _entries(bench: Bench, one: Method, name: str, temperature: float) -> str:
    """What stands for the teacher's distributions in the runs of a method at T."""
    stored = one.kept(bench.settings)
    if not stored or task(bench, name).labels:
        return "topk_tail"
    if len(stored.draws) < 2:
        return next(iter(stored.draws), "topk_tail")
    return suited(teacher_cache(bench, name).tail(temperature))


def teacher_of(bench: Bench, name: str, keep: OutputSettings) -> LocalTeacher | HttpTeacher:
    """The teacher of a task, asked about examples by id, whosever tokens they are in."""
    if bench.settings.models.served:
        return replace(served_teacher(bench, name), keep=keep, known=_by_id(bench, name))
    about = chat(bench, TEACHER), keep, bench.settings.tasks[name].max_new_tokens, _by_id(bench, name)
    return LocalTeacher(teacher_model(bench, name), *about, bench.choice.precision)


@kept
def _by_id(bench: Bench, name: str) -> dict[str, Encoded]:
    return {e.id: e for e in taught(bench, name, TEACHER)}


# --- where it lies


@kept
def output_settings(bench: Bench, name: str) -> OutputSettings:
    """What is kept of the teacher's outputs: enough for all methods of the plan."""
    methods = planned_methods(bench)
    pairs = [p for one in methods for student in bench.settings.students for p in layer_pairs(bench, one, student)]
    labels = len(tuple(task(bench, name).labels or ()))
    return kept_by(methods, bench.settings).outputs({layer for _, layer in pairs}, labels)


@kept
def cache_key(bench: Bench, name: str) -> dict[str, Any]:
    """Everything that the teacher outputs of a task depend on, JSON-ready."""
    settings, read = bench.settings.tasks[name], fingerprints(bench, name)
    key = {
        "format": FORMAT,
        "teacher": teacher_identity(bench.settings, name, read),
        "dtype": "as served" if bench.settings.models.served else bench.choice.dtype_name,
        "data": {"source": settings.source, "fingerprint": read["data"]},
        "targets": targets_fingerprint(taught(bench, name, TEACHER)),
        "generation": settings.model_dump(include={"max_length", "doc_stride", "max_new_tokens"}),
        "outputs": output_settings(bench, name).as_key(),
    }
    return json.loads(json.dumps(key))


def cache_folder(bench: Bench, name: str) -> Path:
    return bench.layout.cache(name, files.fingerprint(cache_key(bench, name))[:16])


@kept
def teacher_cache(bench: Bench, name: str) -> CachedTeacher:
    """The cached outputs of a task. RunError when they are not complete."""
    folder = cache_folder(bench, name)
    if not is_complete(folder, cache_key(bench, name)):
        raise RunError(f"the teacher outputs of {name} are not complete; run `kdsuite cache`")
    stored = CachedTeacher(folder, tuple(task(bench, name).labels or ()))
    _refuse_another_import(bench, name, "outputs", stored.manifest.get("imported"))
    return stored


@kept
def answers(bench: Bench, name: str) -> list[dict[str, Any]]:
    """The teacher's answers: id, raw, answer (cleaned), confidence, scores. RunError when they are not there."""
    path = cache_folder(bench, name) / ANSWERS_FILE
    if not path.exists():
        raise RunError(f"the teacher's answers of {name} are not there; run `kdsuite cache`")
    if quality(bench, name).get("answers_sha256") != files.sha256_file(path):
        raise RunError(f"{path} is not what was written; run `kdsuite cache`")
    _refuse_another_import(bench, name, "answers", quality(bench, name).get("imported", {}).get("answers"))
    return files.read_rows(path)


@kept
def lessons(bench: Bench, name: str, learner: str) -> dict[str, str]:
    """The cleaned answers by example id that are not empty and that a method accepts. RunError if there is none."""
    one = method(learner)
    said = [*answers(bench, name), *answered(bench, name)]
    rows = [row for row in said if row["answer"] and one.accepts(bench.settings, row)]
    if not rows:
        filters = one.identity(bench.settings).items()
        said = ", ".join(f"{key}.{k} {v}" for key, values in filters for k, v in values.items())
        raise RunError(
            f"none of the teacher's answers of {name} is learned by {learner} with {said or 'its filter'}; change that"
        )
    return {row["id"]: row["answer"] for row in rows}


def order(bench: Bench, name: str, role: str, learner: str) -> list[Encoded]:
    """The examples whose lengths decide a method's batches: those of `train`, and what a teacher answered beside."""
    return taught(bench, name, role) if method(learner).needs else encoded(bench, name, role, "train")


@kept
def lesson_examples(bench: Bench, name: str, role: str, learner: str) -> list[Encoded]:
    """What a method learns from: the gold targets of `train`, or the teacher's answers that it accepts."""
    if method(learner).lesson == "gold":
        return order(bench, name, role, learner)
    settings, metric, there = bench.settings.tasks[name], task(bench, name).metric, quality(bench, name)
    if metric not in there:
        raise RunError(f"the teacher's answers of {name} are not there; run `kdsuite cache`")
    if there[metric] < settings.quality_floor:
        raise RunError(
            f"refused: the teacher's {metric} on the training set of {name} is {there[metric]:.1f}, below the floor "
            f"of {settings.quality_floor:g}; take a better teacher, or lower tasks.{name}.quality_floor"
        )
    if found := encoded_answers(bench, name, role, lessons(bench, name, learner)):
        return found
    raise RunError(f"none of the teacher's answers of {name} can be learned by {role}; raise tasks.{name}.max_length")


@kept
def quality(bench: Bench, name: str) -> dict[str, Any]:
    """Teacher quality on the training set, in percent, and coverage; {} when it was not measured.

    The coverage of a student that is no longer the one of its name is left out.
    """
    found = stored_quality(bench, name)
    covered = {
        student: shares
        for student, shares in found.get("coverage", {}).items()
        if student in bench.settings.students and shares.get("student") == student_key(bench, name, student)
    }
    return {k: v for k, v in found.items() if k != "coverage"} | ({"coverage": covered} if covered else {})


def stored_quality(bench: Bench, name: str) -> dict[str, Any]:
    """What `quality` is made of, as it is on disk."""
    path = cache_folder(bench, name) / QUALITY
    try:
        return files.read_json(path) if path.exists() else {}
    except ValueError as error:
        bench.progress.say(f"{error}; it is measured again")
        return {}


@kept
def imported(bench: Bench, name: str) -> dict[str, dict[str, str]]:
    """Of what was imported of the teacher of a task, `outputs` or `answers`, the `file` and its `sha256`.

    Only where something was imported at all are the examples encoded to find out which cache is this plan's."""
    caches = (path.parent for path in bench.layout.cache(name, "").glob(f"*/{MANIFEST}"))
    try:
        return imported_into(cache_folder(bench, name)) if any(map(imported_into, caches)) else {}
    except RunError:  # inputs without targets are not answered yet: nothing can be imported before
        return {}


def _refuse_another_import(bench: Bench, name: str, what: str, came: dict[str, str] | None) -> None:
    """RunError where outputs or answers that are read now are not of the file that this bench knows of."""
    if came != imported(bench, name).get(what):
        raise RunError(f"the {what} of {name} were imported anew meanwhile; give the same command again")


def identity(bench: Bench, spec: RunSpec) -> str:
    """What a run's record is known by: all that decides its result."""
    taken = {what: came["sha256"] for what, came in imported(bench, spec.task).items()}
    return run_fingerprint(bench.settings, spec, fingerprints(bench, spec.task), bench.choice.numerics, taken)


def student_key(bench: Bench, name: str, student: str) -> str:
    """Identifies a student by its content and its settings, where something is stored under its name."""
    return files.fingerprint(student_identity(bench.settings, student, fingerprints(bench, name)))

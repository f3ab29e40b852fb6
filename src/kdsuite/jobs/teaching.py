"""What the teacher of a task says, on disk: outputs at target positions, answers, how good they are; and the job
that completes them as far as the plan's methods need it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdsuite.config import TEACHER
from kdsuite.errors import RunError
from kdsuite.jobs.bench import Bench, kept
from kdsuite.jobs.data import encoded, encoded_answers, fingerprints, lines, splits, task
from kdsuite.jobs.models import chat, config, journal, precision, served_teacher, source, teacher_model, tell_tokens
from kdsuite.jobs.transfer import answer_unlabeled, answered, taught
from kdsuite.methods.alignment import VocabularyMap, align, map_vocabulary
from kdsuite.methods.base import ANSWERS, Method, Point, kept_by, method, needed
from kdsuite.methods.rollouts import Rollouts
from kdsuite.methods.targets import TeacherTargets, suited
from kdsuite.methods.terms import Pair
from kdsuite.models.costs import cache_bytes
from kdsuite.models.forward import state_width
from kdsuite.plan import student_identity, teacher_identity
from kdsuite.runtime.memory import BatchSize
from kdsuite.store import files
from kdsuite.store.layout import ANSWERS as ANSWERS_FILE
from kdsuite.store.layout import QUALITY
from kdsuite.store.parts import Parts
from kdsuite.store.spending import counted
from kdsuite.tasks.cleaning import RULES
from kdsuite.tasks.encoding import Encoded
from kdsuite.teacher.base import Teacher, Together
from kdsuite.teacher.cached import FORMAT, CachedTeacher, build_cache, is_complete, keep_key, targets_fingerprint
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
    stored = one.kept(bench.settings)
    online = bool(layers) and not (stored and stored.states)
    temperature = point.get("temperature", 1.0) if "distributions" in reads else None
    parts: list[Teacher] = [teacher_of(bench, name, OutputSettings(layers=layers))] if online else []
    if temperature is not None or not online:
        parts.append(teacher_cache(bench, name))
    told = Pair(pairs, widths, torch.from_numpy(vocabulary.unmapped))
    entries = _entries(bench, one, name, temperature) if temperature else "topk_tail"
    targets = TeacherTargets(Together(*parts), vocabulary, temperature, layers, entries)
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
    return LocalTeacher(teacher_model(bench, name), *about, lambda: precision(bench))


@kept
def _by_id(bench: Bench, name: str) -> dict[str, Encoded]:
    return {e.id: e for e in taught(bench, name, TEACHER)}


# --- where it lies


@kept
def output_settings(bench: Bench, name: str) -> OutputSettings:
    """What is kept of the teacher's outputs: enough for all methods of the plan."""
    methods = planned_methods(bench)
    stored = kept_by(methods, bench.settings)
    pairs = [p for one in methods for student in bench.settings.students for p in layer_pairs(bench, one, student)]
    return OutputSettings(
        top_k=stored.top_k,
        dtype=stored.dtype,
        temperatures=tuple(sorted(stored.temperatures - {1.0})),
        layers=tuple(sorted({layer for _, layer in pairs})) if stored.states else (),
        labels=len(tuple(task(bench, name).labels or ())),
        standardised=stored.standardised,
        draws=() if task(bench, name).labels else tuple(sorted(stored.draws)),
    )


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
    return CachedTeacher(folder, tuple(task(bench, name).labels or ()))


@kept
def answers(bench: Bench, name: str) -> list[dict[str, Any]]:
    """The teacher's answers: id, raw, answer (cleaned), confidence, scores. RunError when they are not there."""
    path = cache_folder(bench, name) / ANSWERS_FILE
    if not path.exists():
        raise RunError(f"the teacher's answers of {name} are not there; run `kdsuite cache`")
    if quality(bench, name).get("answers_sha256") != files.sha256_file(path):
        raise RunError(f"{path} is not what was written; run `kdsuite cache`")
    return [json.loads(line) for line in lines(path.read_text(encoding="utf-8"))]


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
    return encoded_answers(bench, name, role, lessons(bench, name, learner))


@kept
def quality(bench: Bench, name: str) -> dict[str, Any]:
    """Teacher quality on the training set, in percent, and coverage; {} when it was not measured.

    The coverage of a student that is no longer the one of its name is left out.
    """
    found = _stored_quality(bench, name)
    covered = {
        student: shares
        for student, shares in found.get("coverage", {}).items()
        if student in bench.settings.students and shares.get("student") == _student_key(bench, name, student)
    }
    return {k: v for k, v in found.items() if k != "coverage"} | ({"coverage": covered} if covered else {})


def _stored_quality(bench: Bench, name: str) -> dict[str, Any]:
    """What `quality` is made of, as it is on disk."""
    path = cache_folder(bench, name) / QUALITY
    try:
        return files.read_json(path) if path.exists() else {}
    except ValueError as error:
        bench.progress.say(f"{error}; it is measured again")
        return {}


def _student_key(bench: Bench, name: str, student: str) -> str:
    """Identifies a student by its content and its settings, where something is stored under its name."""
    return files.fingerprint(student_identity(bench.settings, student, fingerprints(bench, name)))


# --- how it gets there


def build_teacher_outputs(bench: Bench, name: str) -> None:
    """Complete the cache of a task as far as the methods need it: outputs, answers, quality, coverage.

    The caller holds the task's lock.
    """
    answer_unlabeled(bench, name, BatchSize(bench.settings.models.teacher.batch_size))
    with counted(cache_folder(bench, name)):
        _build(bench, name)


def _build(bench: Bench, name: str) -> None:
    folder, most = cache_folder(bench, name), bench.settings.models.teacher.batch_size
    files.remove_temporaries(folder)
    labelled = bool(task(bench, name).labels)
    new, batch, methods = dict(quality(bench, name)), BatchSize(most), planned_methods(bench)
    wanted = needed([one for one in methods if one.lesson == "teacher" or one.kept(bench.settings)], labelled)
    if wanted - {ANSWERS}:
        stored = _build_outputs(bench, name, batch)
        known = new.get("coverage", {})
        new["coverage"] = {
            student: known.get(student)
            or {
                "model": source(bench, student).name,
                "student": _student_key(bench, name, student),
                **_coverage(bench, name, student, stored),
            }
            for student in bench.settings.students
        }
        for kept in filter(None, (one.kept(bench.settings) for one in methods)):
            if len(kept.draws) > 1 and not labelled:
                tails = {t: stored.tail(t) for t in sorted(kept.temperatures)}
                new["targets"] = {f"T={t:g}": {"tail": tail, "entries": suited(tail)} for t, tail in tails.items()}
    if any(one.lesson == "teacher" for one in methods):
        new |= _build_answers(bench, name, batch)
        keep_key(folder, cache_key(bench, name))
    if batch.value < most:
        new["batch_size"] = batch.value  # for want of memory
    if new != _stored_quality(bench, name):
        files.atomic_write_record(folder / QUALITY, new)
        bench.forget(quality, answers)
    _answer_parts(bench, name).clear()
    if bench.settings.models.served:
        journal(bench, name).clear()
        tell_tokens(bench)
    bench.progress.say(_quality_line(bench, name, new))


def _build_outputs(bench: Bench, name: str, batch: BatchSize) -> CachedTeacher:
    """Complete the cache. What it will take on disk is told; RunError if there is less."""
    examples, keep = taught(bench, name, TEACHER), output_settings(bench, name)
    folder, key, say = cache_folder(bench, name), cache_key(bench, name), bench.progress.say
    if is_complete(folder, key):
        return CachedTeacher(folder)
    states = 0
    if keep.layers:
        width = config(bench, TEACHER).get_text_config().hidden_size
        states = width * bench.choice.dtype.itemsize * len(keep.layers)
    states += 4 * (3 + 2 * len(keep.temperatures)) * keep.standardised
    positions = sum(e.choices.count(e.gold) for e in examples) / len(examples)
    kept = keep.entries, keep.dtype, len(keep.temperatures), states, keep.labels
    need, free = cache_bytes(len(examples), positions, *kept), files.free_bytes(bench.results)
    say(
        f"teacher outputs of {name}: {len(examples)} examples of {need / len(examples) / 1e3:.1f} kB, "
        f"{need / 1e6:,.0f} MB in all; {free / 1e6:,.0f} MB are free"
    )
    if need > free:
        raise RunError(
            f"the teacher outputs of {name} need {need / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are free; "
            "free some, lower kd1.top_k, or set kd3.cache=false"
        )

    def build(size: int) -> CachedTeacher:
        teacher = teacher_of(bench, name, keep)
        with (
            bench.progress.work(f"teacher outputs, {name}", len(examples), "examples") as work,
            teacher.reading(examples),
        ):
            return build_cache(folder, key, examples, teacher.score, size, work.advance)

    return batch.fit(build, bench.choice.device, say)


def _build_answers(bench: Bench, name: str, batch: BatchSize) -> dict[str, Any]:
    """Write the teacher's answers unless they are there whole and cleaned by today's rules.

    Returns what of their quality is new.
    """
    path, known, kind = cache_folder(bench, name) / ANSWERS_FILE, quality(bench, name), task(bench, name)
    whole = path.exists() and known.get("answers_sha256") == files.sha256_file(path)
    if whole and known.get("cleaning") == RULES:
        return {}
    if whole:
        said = [(row["raw"], row["confidence"]) for row in answers(bench, name)]
    elif kind.labels:
        said = teacher_cache(bench, name).answers(encoded(bench, name, TEACHER, "train"))
    else:
        said = _generated(bench, name, batch)
    return write_answers(bench, name, said)


def write_answers(bench: Bench, name: str, said: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Write what was said to every training example, raw with its confidence; returns how good that is."""
    path, kind, examples = cache_folder(bench, name) / ANSWERS_FILE, task(bench, name), splits(bench, name)["train"]
    rows = []
    for example, (raw, confidence) in zip(examples, said, strict=True):
        answer = raw if kind.labels else kind.clean(raw, example)
        scores = kind.score(answer, example.references)
        rows.append({"id": example.id, "raw": raw, "answer": answer, "confidence": confidence, "scores": scores})
    files.atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {
        **kind.aggregate([row["answer"] for row in rows], [e.references for e in examples]),
        "metric": kind.metric,
        "kept_share": sum(bool(row["answer"]) for row in rows) / len(rows),
        "cleaning": RULES,
        "answers_sha256": files.sha256_file(path),
    }


def _generated(bench: Bench, name: str, batch: BatchSize) -> list[tuple[str, float]]:
    """The teacher's raw answer to every training question with its mean probability per token (geometric).

    From the prompts that the outputs were taken with.
    """
    examples, parts = encoded(bench, name, TEACHER, "train"), _answer_parts(bench, name)

    def build(size: int) -> dict[int, Any]:
        teacher = teacher_of(bench, name, OutputSettings())
        batches = teacher.batches(examples, size)
        return parts.work(batches, lambda some: teacher.answers([examples[i] for i in some]), work.advance)

    label = f"teacher answers, {name}"
    with bench.progress.work(label, len(examples), "examples", done=len(parts.done)) as work:
        said = batch.fit(build, bench.choice.device, bench.progress.say)
    return [tuple(said[i]) for i in range(len(examples))]


def _answer_parts(bench: Bench, name: str) -> Parts:
    """The answers so far; the folder is that of all that they depend on."""
    folder = cache_folder(bench, name)
    return Parts(folder, "answers", f"{folder.name}, as probabilities")


def _coverage(bench: Bench, name: str, student: str, stored: CachedTeacher) -> dict[str, float]:
    """How much of the teacher's knowledge reaches a student, as shares 0–1.

    aligned: target positions of the student that have a counterpart; vocabulary: student tokens with one;
    mass: the teacher's probability (T = 1) on kept tokens that the student has, at aligned positions.
    """
    vocabulary = vocabulary_map(bench, student)
    positions = aligned = 0
    mass: list[float] = []
    for example in encoded(bench, name, student, "train"):
        record = stored[example.id]
        pairs = align([(int(a), int(b)) for a, b in record["spans"]], example.spans[example.gold_slice])
        positions += example.choices.count(example.gold)
        aligned += len(pairs)
        own = [t for _, t in pairs]
        shares = np.exp(record["topk_logprobs"][own].astype(np.float64))
        mass += np.where(vocabulary(record["topk_ids"][own], pairs) >= 0, shares, 0).sum(-1).tolist()
    return {"aligned": aligned / positions, "vocabulary": vocabulary.share, "mass": float(np.mean(mass))}


def _quality_line(bench: Bench, name: str, new: dict[str, Any]) -> str:
    parts = []
    if "metric" in new:
        parts.append(
            f"{new['metric']} {new[new['metric']]:.1f} on the {new['n']} training examples, "
            f"{new['kept_share']:.0%} of its answers kept"
        )
        for one in planned_methods(bench):
            share = learned_share(bench, name, one) if one.lesson == "teacher" else new["kept_share"]
            if share < new["kept_share"]:
                parts.append(f"{one.name} learns {share:.0%} of them")
    for temperature, found in new.get("targets", {}).items():
        parts.append(
            f"{found['entries']} targets at {temperature}, where {found['tail']:.1%} of the probability is beyond the "
            "kept tokens"
        )
    for student, share in new.get("coverage", {}).items():
        parts.append(
            f"{student} reached at {share['aligned']:.1%} of target positions, "
            f"{share['vocabulary']:.1%} of its vocabulary, {share['mass']:.1%} of the probability"
        )
    return f"teacher of {name}: {'; '.join(parts) or 'no outputs needed'}"


def learned_share(bench: Bench, name: str, one: Method) -> float:
    """How much of `train` a method that learns the teacher's answers has a lesson for."""
    return len(lessons(bench, name, one.name)) / len(taught(bench, name, TEACHER))

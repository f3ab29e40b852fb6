"""The cache stage of one task: the teacher (fine-tuned if asked for), its outputs, its answers, its quality."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdsuite.errors import RunError
from kdsuite.jobs.workshop import TEACHER, Workshop
from kdsuite.methods.alignment import align
from kdsuite.methods.registry import METHODS
from kdsuite.models.generation import generate, prompt_batches
from kdsuite.runtime.memory import BatchSize
from kdsuite.store.files import (
    atomic_write_record,
    atomic_write_text,
    free_bytes,
    remove_temporaries,
    sha256_file,
)
from kdsuite.store.layout import ANSWERS, QUALITY
from kdsuite.store.parts import Parts
from kdsuite.store.spending import counted
from kdsuite.tasks.encoding import Encoded
from kdsuite.teacher.cached import CachedTeacher, build_cache, is_complete
from kdsuite.teacher.cleaning import RULES, clean_answer
from kdsuite.teacher.local import OutputSettings, Record, ask, record_bytes


def build_teacher_outputs(shop: Workshop, task: str) -> None:
    """Complete the cache of a task as far as the methods need it: outputs, answers, quality, coverage.

    The caller holds the task's lock.
    """
    with counted(shop.cache_folder(task)):
        _build(shop, task)


def _build(shop: Workshop, task: str) -> None:
    remove_temporaries(shop.cache_folder(task))
    methods = [METHODS[m] for m in shop.settings.methods]
    labelled = bool(shop.task(task).labels)
    quality = dict(shop.quality(task))
    batch = BatchSize(shop.settings.models.teacher.batch_size)
    features = shop.settings.kd3.cache and any(m.features for m in methods)
    if features or any(m.soft or (labelled and m.target == "teacher") for m in methods):
        cache = _build_outputs(shop, task, batch)
        quality["coverage"] = _coverages(shop, task, cache)
    if any(m.target == "teacher" for m in methods):
        quality |= _build_answers(shop, task, batch)
    if batch.value < shop.settings.models.teacher.batch_size:
        quality["batch_size"] = batch.value  # for want of memory
    if quality != shop.stored_quality(task):
        atomic_write_record(shop.cache_folder(task) / QUALITY, quality)
        Workshop.quality.cache_clear()
        Workshop.answers.cache_clear()
    _answer_parts(shop, task).clear()
    shop.progress.say(_quality_line(shop, task, quality))


def _build_outputs(shop: Workshop, task: str, batch: BatchSize) -> CachedTeacher:
    examples = shop.encoded(task, TEACHER, "train")
    chat, keep = shop.chat(TEACHER), shop.output_settings(task)
    if not is_complete(shop.cache_folder(task), shop.cache_key(task)):
        _check_space(shop, task, examples, keep)

    def answer(some: Sequence[Encoded]) -> list[Record]:
        with shop.precision():
            return ask(shop.teacher_model(task), chat, some, keep)

    def build(size: int) -> CachedTeacher:
        with shop.progress.work(f"teacher outputs, {task}", len(examples), "examples") as work:
            return build_cache(
                shop.cache_folder(task), shop.cache_key(task), examples, answer, size, work.advance
            )

    return batch.fit(build, shop.choice.device, shop.progress.say)


def _check_space(shop: Workshop, task: str, examples: Sequence[Encoded], keep: OutputSettings) -> None:
    """Say what the outputs will take on disk. RunError if there is less."""
    states = shop.config(TEACHER).get_text_config().hidden_size * shop.choice.dtype.itemsize
    need = sum(record_bytes(e.choices.count(e.gold), keep, states) for e in examples)
    free = free_bytes(shop.results)
    shop.progress.say(
        f"teacher outputs of {task}: {len(examples)} examples of {need / len(examples) / 1e3:.1f} kB, "
        f"{need / 1e6:,.0f} MB in all; {free / 1e6:,.0f} MB are free"
    )
    if need > free:
        raise RunError(
            f"the teacher outputs of {task} need {need / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are free; "
            "free some, lower kd1.top_k, or set kd3.cache=false"
        )


def _build_answers(shop: Workshop, task: str, batch: BatchSize) -> dict[str, Any]:
    """Write the teacher's answers unless they are there whole and cleaned by today's rules.

    Returns what of their quality is new.
    """
    path, quality = shop.cache_folder(task) / ANSWERS, shop.quality(task)
    whole = path.exists() and quality.get("answers_sha256") == sha256_file(path)
    if whole and quality.get("cleaning") == RULES:
        return {}
    examples, kind = shop.splits(task)["train"], shop.task(task)
    if whole:
        said = [(row["raw"], row["confidence"]) for row in shop.answers(task)]
    else:
        said = (
            shop.teacher_cache(task).answers(shop.encoded(task, TEACHER, "train"))
            if kind.labels
            else _generated(shop, task, batch)
        )
    rows = []
    for example, (raw, confidence) in zip(examples, said, strict=True):
        answer = raw if kind.labels else clean_answer(raw, **example.inputs)
        scores = kind.score(answer, example.references)
        rows.append(
            {"id": example.id, "raw": raw, "answer": answer, "confidence": confidence, "scores": scores}
        )
    atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    metrics = kind.aggregate([row["answer"] for row in rows], [e.references for e in examples])
    kept = sum(bool(row["answer"]) for row in rows) / len(rows)
    return {
        **metrics,
        "metric": kind.metric,
        "kept_share": kept,
        "cleaning": RULES,
        "answers_sha256": sha256_file(path),
    }


def _generated(shop: Workshop, task: str, batch: BatchSize) -> list[tuple[str, float]]:
    """The teacher's raw answer to every training question with its mean probability per token (geometric).

    From the prompts that the outputs were taken with.
    """
    encoded = shop.encoded(task, TEACHER, "train")
    prompts = [e.input_ids[: e.segments.count(0)] for e in encoded]
    new_tokens = shop.settings.tasks[task].max_new_tokens
    parts = _answer_parts(shop, task)

    def answer(some: Sequence[int]) -> list[tuple[str, float]]:
        model, chat = shop.teacher_model(task), shop.chat(TEACHER)
        return generate(model, chat, [prompts[i] for i in some], new_tokens, len(some))

    def build(size: int) -> dict[int, Any]:
        batches = prompt_batches(shop.teacher_model(task), prompts, new_tokens, size)
        with shop.precision():
            return parts.work(batches, answer, work.advance)

    with shop.progress.work(
        f"teacher answers, {task}", len(prompts), "examples", done=len(parts.done)
    ) as work:
        answers = batch.fit(build, shop.choice.device, shop.progress.say)
    return [(text, math.exp(confidence)) for text, confidence in (answers[i] for i in range(len(prompts)))]


def _answer_parts(shop: Workshop, task: str) -> Parts:
    """The answers so far; the folder is that of all that they depend on."""
    folder = shop.cache_folder(task)
    return Parts(folder, "answers", folder.name)


def _coverages(shop: Workshop, task: str, cache: CachedTeacher) -> dict[str, dict[str, Any]]:
    """The coverage of every student, with what identifies it; what is known of the very same is kept."""
    known = shop.quality(task).get("coverage", {})
    return {
        student: known.get(student)
        or {
            "model": shop.source(student).name,
            "student": shop.student_key(task, student),
            **coverage(shop, task, student, cache),
        }
        for student in shop.settings.trained_students
    }


def coverage(shop: Workshop, task: str, student: str, cache: CachedTeacher) -> dict[str, float]:
    """How much of the teacher's knowledge reaches a student, as shares 0–1.

    aligned: target positions of the student that have a counterpart; vocabulary: student tokens with one;
    mass: the teacher's probability (T = 1) on kept tokens that the student has, at aligned positions.
    """
    vocabulary = shop.vocabulary_map(student)
    positions = aligned = 0
    mass: list[float] = []
    for example in shop.encoded(task, student, "train"):
        record = cache[example.id]
        spans = [(int(a), int(b)) for a, b in record["spans"]]
        pairs = align(spans, example.spans[example.gold_slice])
        positions += example.choices.count(example.gold)
        aligned += len(pairs)
        own = [t for _, t in pairs]
        shares = np.where(
            vocabulary(record["topk_ids"][own], pairs) >= 0,
            np.exp(record["topk_logprobs"][own].astype(np.float64)),
            0,
        )
        mass += shares.sum(-1).tolist()
    return {"aligned": aligned / positions, "vocabulary": vocabulary.share, "mass": float(np.mean(mass))}


def _quality_line(shop: Workshop, task: str, quality: dict[str, Any]) -> str:
    parts = []
    if "metric" in quality:
        metric = quality["metric"]
        parts.append(
            f"{metric} {quality[metric]:.1f} on the {quality['n']} training examples, "
            f"{quality['kept_share']:.0%} of its answers kept"
        )
        if shop.settings.kd2.filter != "all":
            share = len(shop.lessons(task)) / len(shop.splits(task)["train"])
            parts.append(f"{share:.0%} of them are learned (kd2.filter {shop.settings.kd2.filter})")
    for student, share in quality.get("coverage", {}).items():
        parts.append(
            f"{student} reached at {share['aligned']:.1%} of target positions, "
            f"{share['vocabulary']:.1%} of its vocabulary, {share['mass']:.1%} of the probability"
        )
    return f"teacher of {task}: {'; '.join(parts) or 'no outputs needed'}"

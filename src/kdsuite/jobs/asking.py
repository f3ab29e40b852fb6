"""The teacher is asked: what completes its outputs and answers on a task as far as the plan's methods need them."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from kdsuite.config import TEACHER
from kdsuite.errors import RunError
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.data import encoded, splits, task
from kdsuite.jobs.models import chat, config, journal, source, tell_tokens
from kdsuite.jobs.teaching import (
    answers,
    cache_folder,
    cache_key,
    imported,
    lessons,
    output_settings,
    planned_methods,
    quality,
    stored_quality,
    student_key,
    teacher_cache,
    teacher_of,
    vocabulary_map,
)
from kdsuite.jobs.transfer import answer_unlabeled, taught
from kdsuite.methods.alignment import align
from kdsuite.methods.base import ANSWERS, needed
from kdsuite.methods.targets import suited
from kdsuite.runtime.memory import BatchSize
from kdsuite.store import files
from kdsuite.store.layout import ANSWERS as ANSWERS_FILE
from kdsuite.store.layout import QUALITY
from kdsuite.store.parts import Parts
from kdsuite.store.spending import counted
from kdsuite.tasks.cleaning import RULES
from kdsuite.teacher.cached import CachedTeacher, build_cache, build_shard, has_shard, is_complete, keep_key
from kdsuite.teacher.local import OutputSettings
from kdsuite.teacher.shards import shard_of, shards

Alone = Callable[[], AbstractContextManager[Any]]  # held while what several processes write is changed


def parts_of(bench: Bench, name: str) -> int:
    """In how many parts the teacher can be asked about a task by as many processes; 0 where one asks for all.

    A server is asked by one process, several requests at once; what it answers to inputs without targets is learned
    from in turn.
    """
    if bench.settings.models.served or bench.settings.tasks[name].unlabeled:
        return 0
    count = shards(len(splits(bench, name)["train"]))
    return count if count > 1 else 0


def build_part(bench: Bench, name: str, number: int) -> None:
    """What the teacher says in one of the parts of a task, unless that is done; the caller holds the part's lock."""
    folder, batch = cache_folder(bench, name), BatchSize(bench.settings.models.teacher.batch_size)
    outputs, texts = _wanted(bench, name)

    def alone() -> AbstractContextManager[Any]:
        return bench.locks.hold(f"cache-{name}")

    with counted(folder, alone):
        if outputs:
            _build_outputs(bench, name, batch, number, alone)
        if texts and not task(bench, name).labels and not _are_whole(bench, name):
            _generated(bench, name, batch, number)


def build_teacher_outputs(bench: Bench, name: str) -> None:
    """Complete the cache of a task as far as the methods need it: outputs, answers, quality, coverage.

    The caller holds the task's lock.
    """
    answer_unlabeled(bench, name)
    with counted(cache_folder(bench, name)):
        _build(bench, name)


def _build(bench: Bench, name: str) -> None:
    folder, most = cache_folder(bench, name), bench.settings.models.teacher.batch_size
    files.remove_temporaries(folder)
    bench.forget(quality, answers, imported)  # others may have written them since
    labelled = bool(task(bench, name).labels)
    new, batch, methods = dict(quality(bench, name)), BatchSize(most), planned_methods(bench)
    outputs, texts = _wanted(bench, name)
    if outputs:
        _build_outputs(bench, name, batch)
        stored = CachedTeacher(folder)
        known = new.get("coverage", {})
        new["coverage"] = {
            student: known.get(student)
            or {
                "model": source(bench, student).name,
                "student": student_key(bench, name, student),
                **_coverage(bench, name, student, stored),
            }
            for student in bench.settings.students
        }
        for kept in filter(None, (one.kept(bench.settings) for one in methods)):
            if len(kept.draws) > 1 and not labelled:
                tails = {t: stored.tail(t) for t in sorted(kept.temperatures)}
                new["targets"] = {f"T={t:g}": {"tail": tail, "entries": suited(tail)} for t, tail in tails.items()}
    if texts:
        new |= _build_answers(bench, name, batch)
        keep_key(folder, cache_key(bench, name))
    if batch.value < most:
        new["batch_size"] = batch.value  # for want of memory
    if new != stored_quality(bench, name):
        files.atomic_write_record(folder / QUALITY, new)
        bench.forget(quality, answers)
    for number in (None, *range(parts_of(bench, name))):
        _answer_parts(bench, name, number).clear()
    if bench.settings.models.served:
        journal(bench, name).clear()
        tell_tokens(bench)
    bench.progress.say(_quality_line(bench, name, new))


def _wanted(bench: Bench, name: str) -> tuple[bool, bool]:
    """Whether the planned methods need what the teacher says at target positions, and its own answers."""
    methods, labelled = planned_methods(bench), bool(task(bench, name).labels)
    reading = [one for one in methods if one.lesson == "teacher" or one.kept(bench.settings)]
    return bool(needed(reading, labelled) - {ANSWERS}), any(one.lesson == "teacher" for one in methods)


def _build_outputs(
    bench: Bench, name: str, batch: BatchSize, number: int | None = None, alone: Alone = nullcontext
) -> None:
    """Complete the cache, or one of its parts. What it will take on disk is told; RunError if there is less."""
    examples, keep = taught(bench, name, TEACHER), output_settings(bench, name)
    folder, key, say = cache_folder(bench, name), cache_key(bench, name), bench.progress.say
    if is_complete(folder, key) if number is None else has_shard(folder, key, number):
        return
    _refuse_to_mend(bench, name, "outputs")
    if not number:
        width = config(bench, TEACHER).get_text_config().hidden_size if keep.layers else 0
        positions = sum(e.choices.count(e.gold) for e in examples) / len(examples)
        vocabulary = len(chat(bench, TEACHER).token_bytes)
        need = keep.disk_bytes(len(examples), positions, width, bench.choice.dtype_name, vocabulary)
        free = files.free_bytes(bench.results)
        say(
            f"teacher outputs of {name}: {len(examples)} examples of {need / len(examples) / 1e3:.1f} kB, "
            f"{need / 1e6:,.0f} MB in all; {free / 1e6:,.0f} MB are free"
        )
        if need > free:
            raise RunError(
                f"the teacher outputs of {name} need {need / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are free; "
                "free some, lower kd1.top_k, or set kd3.cache=false"
            )

    def build(size: int) -> None:
        teacher, count = teacher_of(bench, name, keep), len(examples if number is None else shard_of(examples, number))
        label = f"teacher outputs, {name}{_part(number, parts_of(bench, name))}"
        with bench.progress.work(label, count, "examples") as work, teacher.reading(examples):
            if number is None:
                build_cache(folder, key, examples, teacher.score, size, work.advance)
            else:
                build_shard(folder, key, examples, number, teacher.score, size, work.advance, alone)

    batch.fit(build, bench.choice.device, say)


def _build_answers(bench: Bench, name: str, batch: BatchSize) -> dict[str, Any]:
    """Write the teacher's answers unless they are there whole, and cleaned and scored by today's rules.

    Returns what of their quality is new.
    """
    kind, whole = task(bench, name), _are_whole(bench, name)
    if whole and _rules(bench, name).items() <= quality(bench, name).items():
        return {}
    if whole:
        said = [(row["raw"], row["confidence"]) for row in answers(bench, name)]
    elif kind.labels:
        _refuse_to_mend(bench, name, "answers")
        said = teacher_cache(bench, name).answers(encoded(bench, name, TEACHER, "train"))
    else:
        said = [one for _, one in sorted(_generated(bench, name, batch).items())]
    return write_answers(bench, name, said)


def _rules(bench: Bench, name: str) -> dict[str, Any]:
    """By what answers are cleaned and scored today, as it stands beside them; scoring where it was ever another one."""
    scoring = json.loads(json.dumps(task(bench, name).settings.scoring()))
    return {"cleaning": RULES} | ({"scoring": scoring} if scoring or "scoring" in quality(bench, name) else {})


def _refuse_to_mend(bench: Bench, name: str, what: str) -> None:
    """RunError where what is not whole was imported: what the teacher says here would stand for what it said there."""
    if came := imported(bench, name).get(what):
        raise RunError(
            f"the {what} of {name} were imported and are not what was written; import {came['file']} again, or delete "
            f"{cache_folder(bench, name)} to ask the teacher"
        )


def _are_whole(bench: Bench, name: str) -> bool:
    """Whether the teacher's answers are there as they were written, by whatever rules they were cleaned."""
    path = cache_folder(bench, name) / ANSWERS_FILE
    return path.exists() and quality(bench, name).get("answers_sha256") == files.sha256_file(path)


def write_answers(bench: Bench, name: str, said: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Write what was said to every training example, raw with its confidence; returns how good that is."""
    path, kind, examples = cache_folder(bench, name) / ANSWERS_FILE, task(bench, name), splits(bench, name)["train"]
    rows = []
    for example, (raw, confidence) in zip(examples, said, strict=True):
        answer = raw if kind.labels else kind.clean(raw, example)
        scores = kind.score(answer, example.references)
        rows.append({"id": example.id, "raw": raw, "answer": answer, "confidence": confidence, "scores": scores})
    files.atomic_write_rows(path, rows)
    return {
        **kind.aggregate([row["answer"] for row in rows], [e.references for e in examples]),
        "metric": kind.metric,
        "kept_share": sum(bool(row["answer"]) for row in rows) / len(rows),
        **_rules(bench, name),
        "answers_sha256": files.sha256_file(path),
    }


def _generated(bench: Bench, name: str, batch: BatchSize, number: int | None = None) -> dict[int, tuple[str, float]]:
    """The teacher's raw answers to training questions, by index, with their mean probability per token (geometric):
    in one of the parts, or in all that are left.

    From the prompts that the outputs were taken with. Parts take the batches in turn: prompts that begin alike stay
    together, and each part has long and short ones.
    """
    _refuse_to_mend(bench, name, "answers")
    examples, teacher = encoded(bench, name, TEACHER, "train"), teacher_of(bench, name, OutputSettings())
    parts, others = _answer_parts(bench, name, number), parts_of(bench, name)
    if number is None:
        for one in range(others):
            parts.done |= _answer_parts(bench, name, one).done

    def mine(size: int) -> list[list[int]]:
        batches = teacher.prompt_batches([e.prompt for e in examples], teacher.max_new_tokens, size)
        return batches[number or 0 :: 1 if number is None else others]

    def build(size: int) -> dict[int, Any]:
        return parts.work(mine(size), lambda some: teacher.answers([examples[i] for i in some]), work.advance)

    label, count = f"teacher answers, {name}{_part(number, others)}", sum(map(len, mine(batch.value)))
    with bench.progress.work(label, count, "examples", done=min(count, len(parts.done))) as work:
        said = batch.fit(build, bench.choice.device, bench.progress.say)
    return {index: tuple(one) for index, one in said.items()}


def _part(number: int | None, others: int) -> str:
    return "" if number is None else f", part {number + 1} of {others}"


def _answer_parts(bench: Bench, name: str, number: int | None) -> Parts:
    """The answers so far, of one of the parts or beside them; the folder is that of all that they depend on."""
    folder = cache_folder(bench, name)
    return Parts(folder, "answers" if number is None else f"answers-of-{number}", f"{folder.name}, as probabilities")


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
            if one.lesson == "teacher":
                share = len(lessons(bench, name, one.name)) / len(taught(bench, name, TEACHER))
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

"""Inputs without targets: what the teacher answers is learned there by the methods that learn from it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from kdsuite.config import TEACHER
from kdsuite.errors import RunError
from kdsuite.evaluate.predict import EvaluationSet
from kdsuite.jobs.bench import Bench, kept
from kdsuite.jobs.data import encoded, encoded_said, fingerprints, splits, task
from kdsuite.jobs.models import asked, chat, teacher_model
from kdsuite.plan import teacher_identity
from kdsuite.store.artefact import Artefact
from kdsuite.store.files import atomic_write_rows, fingerprint, read_rows
from kdsuite.store.parts import Parts
from kdsuite.store.spending import counted
from kdsuite.tasks.encoding import Encoded
from kdsuite.tasks.example import UNLABELED, Example, Task
from kdsuite.teacher.base import likeliest

ROWS = "unlabeled.jsonl"
SAID = "the answers to inputs without target"


@kept
def answered(bench: Bench, name: str) -> list[dict[str, Any]]:
    """The teacher's answers to the inputs of a task without targets: id, raw, answer (cleaned, by today's rules),
    confidence, in the order of the split; none where there are no such inputs. RunError when they are not there."""
    examples, kind = splits(bench, name).get(UNLABELED, ()), task(bench, name)
    there = _rows(_stored(bench, name)) if examples else {}
    if any(example.id not in there for example in examples):
        raise RunError(f"the teacher's answers to what is unlabeled in {name} are not there; run `kdsuite cache`")
    return [there[e.id] | {"answer": _cleaned(kind, there[e.id]["raw"], e)} for e in examples]


@kept
def transferred(bench: Bench, name: str) -> list[Example]:
    """These inputs with the teacher's answers as their targets, but for those that are empty or no target to itself."""
    examples = []
    for example, row in zip(splits(bench, name).get(UNLABELED, ()), answered(bench, name), strict=True):
        if answer := row["answer"]:
            at = example.inputs.get("context", "").find(answer)
            examples.append(replace(example, target=answer, references=(answer,), answer_start=at if at >= 0 else None))
    known = {e.id for e in encoded_said(bench, name, TEACHER, examples, SAID)}
    return [example for example in examples if example.id in known]


@kept
def taught(bench: Bench, name: str, role: str) -> list[Encoded]:
    """What is learned from the teacher, in a role's tokens: the training examples, and these."""
    gold, more = encoded(bench, name, role, "train"), transferred(bench, name)
    return [*gold, *encoded_said(bench, name, role, more, SAID)] if more else gold


def answer_unlabeled(bench: Bench, name: str) -> None:
    """Let the teacher answer what has no target, as far as it has not: what stands in other splits is left out, so that
    other sizes of these leave other inputs."""
    if not (examples := splits(bench, name).get(UNLABELED)):
        return
    stored, kind = _stored(bench, name), task(bench, name)
    there = _rows(stored)
    if missing := [example for example in examples if example.id not in there]:
        parts = Parts(stored.path.parent, f"{stored.path.name}-parts", fingerprint([e.id for e in missing]))
        with counted(time_folder(bench, name), made=stored.path):
            rows = there | _asked(bench, name, missing, parts)
            kept_rows = sum(bool(_cleaned(kind, rows[e.id]["raw"], e)) for e in examples)

            def make(folder: Path) -> dict[str, Any]:
                atomic_write_rows(folder / ROWS, rows.values())
                return {"answers": len(examples), "kept": kept_rows}

            stored.build(make)
        parts.clear()
        bench.progress.say(f"{name}: the teacher answered {kept_rows:,} of {len(examples):,} inputs without target")
    bench.forget(answered, transferred, taught)


def time_folder(bench: Bench, name: str) -> Path:
    """Where it is counted how long the teacher was at work for these inputs."""
    place = _stored(bench, name).path
    return place.with_name(f"{place.name}-spent")


def _stored(bench: Bench, name: str) -> Artefact:
    read, settings = fingerprints(bench, name), bench.settings.tasks[name]
    generation = settings.model_dump(include={"max_length", "doc_stride", "max_new_tokens"})
    about = [teacher_identity(bench.settings, name, read), bench.choice.dtype_name, read[UNLABELED], generation]
    folder = bench.layout.cache(name, f"unlabeled-{fingerprint(about)[:16]}")
    return bench.artefact(folder, about, "the teacher is asked again")


def _rows(stored: Artefact) -> dict[str, dict[str, Any]]:
    """What the teacher has answered, by id; nothing where it is damaged."""
    return {row["id"]: row for row in read_rows(stored.path / ROWS)} if stored.read() else {}


def _asked(bench: Bench, name: str, examples: Sequence[Example], parts: Parts) -> dict[str, dict[str, Any]]:
    """What the teacher answers to examples now, as rows by id."""
    kind, tokens, model = task(bench, name), chat(bench, TEACHER), teacher_model(bench, name)
    labels, batch_size = list(kind.labels or ()), bench.settings.models.teacher.batch_size
    data = EvaluationSet.of(kind, tokens, [replace(e, target=labels[0]) for e in examples] if labels else examples)
    label = f"teacher's answers to what is unlabeled, {name}"
    said = asked(bench, label, model, tokens, data, batch_size, parts)
    if labels:
        best = likeliest(labels, [scores for [scores] in said])
    else:  # of its windows the one with the likeliest tokens
        texts = (max(answers, key=itemgetter(1)) for answers in said)
        best = [(raw, math.exp(confidence)) for raw, confidence in texts]
    return {
        example.id: {"id": example.id, "raw": raw, "confidence": confidence, "scores": {}}
        for example, (raw, confidence) in zip(examples, best, strict=True)
    }


def _cleaned(kind: Task, raw: str, example: Example) -> str:
    return raw if kind.labels else kind.clean(raw, example)

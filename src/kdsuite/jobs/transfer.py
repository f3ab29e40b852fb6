"""Inputs without targets: what the teacher answers is learned there by the methods that learn from it."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdsuite.config import TEACHER
from kdsuite.errors import RunError
from kdsuite.evaluate.predict import reader_of
from kdsuite.jobs.bench import Bench, kept
from kdsuite.jobs.data import encoded, encoded_said, fingerprints, lines, splits, task
from kdsuite.jobs.models import chat, teacher_model
from kdsuite.plan import teacher_identity
from kdsuite.runtime.memory import BatchSize
from kdsuite.store.artefact import Artefact
from kdsuite.store.files import atomic_write_text, fingerprint
from kdsuite.store.parts import Parts
from kdsuite.tasks.encoding import Encoded, encode, encode_prompts
from kdsuite.tasks.example import UNLABELED, Example, Task

ROWS = "unlabeled.jsonl"
SAID = "the answers to inputs without target"


@kept
def answered(bench: Bench, name: str) -> list[dict[str, Any]]:
    """The teacher's answers to the inputs of a task without targets: id, raw, answer (cleaned, by today's rules),
    confidence; none where there are no such inputs. RunError when they are not there."""
    examples, kind = {e.id: e for e in splits(bench, name).get(UNLABELED, ())}, task(bench, name)
    if not examples:
        return []
    stored = _stored(bench, name)
    if stored.read() is None:
        raise RunError(f"the teacher's answers to what is unlabeled in {name} are not there; run `kdsuite cache`")
    rows = [json.loads(line) for line in lines((stored.path / ROWS).read_text(encoding="utf-8"))]
    return [row | {"answer": _cleaned(kind, row["raw"], examples[row["id"]])} for row in rows]


@kept
def transferred(bench: Bench, name: str) -> list[Example]:
    """These inputs with the teacher's answers as their targets, but for those that are empty or no target to itself."""
    said, examples = {row["id"]: row["answer"] for row in answered(bench, name)}, []
    for example in splits(bench, name).get(UNLABELED, ()):
        if answer := said.get(example.id):
            at = example.inputs.get("context", "").find(answer)
            examples.append(replace(example, target=answer, references=(answer,), answer_start=at if at >= 0 else None))
    known = {e.id for e in encoded_said(bench, name, TEACHER, examples, SAID)}
    return [example for example in examples if example.id in known]


@kept
def taught(bench: Bench, name: str, role: str) -> list[Encoded]:
    """What is learned from the teacher, in a role's tokens: the training examples, and these."""
    gold, more = encoded(bench, name, role, "train"), transferred(bench, name)
    return [*gold, *encoded_said(bench, name, role, more, SAID)] if more else gold


def answer_unlabeled(bench: Bench, name: str, batch: BatchSize) -> None:
    """Let the teacher answer what has no target, unless that is done."""
    if examples := splits(bench, name).get(UNLABELED):
        _stored(bench, name).get_or_build(lambda folder: _build(bench, name, examples, batch, folder))
        bench.forget(answered, transferred, taught)


def _stored(bench: Bench, name: str) -> Artefact:
    read, settings = fingerprints(bench, name), bench.settings.tasks[name]
    generation = settings.model_dump(include={"max_length", "doc_stride", "max_new_tokens"})
    about = [teacher_identity(bench.settings, name, read), bench.choice.dtype_name, read[UNLABELED], generation]
    folder = bench.layout.cache(name, f"unlabeled-{fingerprint(about)[:16]}")
    return bench.artefact(folder, about, "the teacher is asked again")


def _build(bench: Bench, name: str, examples: Sequence[Example], batch: BatchSize, folder: Path) -> dict[str, Any]:
    kind, tokens = task(bench, name), chat(bench, TEACHER)
    reader = reader_of(teacher_model(bench, name), tokens)
    labels, new_tokens = list(kind.labels or ()), kind.settings.max_new_tokens
    key = fingerprint([example.id for example in examples])
    parts = Parts(folder.parent, f"{_stored(bench, name).path.name}-parts", key)
    asked = [replace(e, target=labels[0]) for e in examples] if labels else examples
    scored = encode(kind, tokens, asked) if labels else []
    windows = [] if labels else encode_prompts(kind, tokens, examples)
    prompts = [prompt for some in windows for prompt in some]

    def ask(some: Sequence[int]) -> Sequence[Any]:
        with bench.choice.precision():
            if labels:
                return reader.label_scores([scored[i] for i in some], len(labels))
            return reader.generate([prompts[i] for i in some], new_tokens)

    def build(size: int) -> dict[int, Any]:
        items = [list(range(at, min(at + size, len(scored)))) for at in range(0, len(scored), size)]
        return parts.work(items or reader.prompt_batches(prompts, new_tokens, size), ask, work.advance)

    label = f"teacher's answers to what is unlabeled, {name}"
    with (
        bench.progress.work(label, len(scored) or len(prompts), "examples", done=len(parts.done)) as work,
        reader.reading(scored),
    ):
        said = batch.fit(build, bench.choice.device, bench.progress.say)
    rows, at = [], 0
    for example, count in zip(examples, [1] * len(scored) or map(len, windows), strict=True):
        mine, at = [said[i] for i in range(at, at + count)], at + count
        if labels:
            best = max(range(len(labels)), key=mine[0].__getitem__)
            raw, confidence = labels[best], _share(mine[0], best)
        else:
            raw, confidence = max(mine, key=lambda one: one[1])
            confidence = math.exp(confidence)
        rows.append({"id": example.id, "raw": raw, "confidence": confidence, "scores": {}})
    atomic_write_text(folder / ROWS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    parts.clear()
    kept_rows = sum(bool(_cleaned(kind, row["raw"], e)) for row, e in zip(rows, examples, strict=True))
    bench.progress.say(f"{name}: the teacher answered {kept_rows:,} of {len(rows):,} inputs without target")
    return {"answers": len(rows), "kept": kept_rows}


def _cleaned(kind: Task, raw: str, example: Example) -> str:
    return raw if kind.labels else kind.clean(raw, example)


def _share(scores: Sequence[float], best: int) -> float:
    """Of the likeliest label, the probability among the labels."""
    return 1.0 / sum(math.exp(score - scores[best]) for score in scores)

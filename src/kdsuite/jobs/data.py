"""The examples of a bench, as they are and as a role's tokenizer reads them; and what identifies them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdsuite.config import TEACHER
from kdsuite.evaluate.predict import EvaluationSet
from kdsuite.jobs.bench import Bench, kept
from kdsuite.jobs.models import chat, source
from kdsuite.plan import RunSpec, run_fingerprint
from kdsuite.runtime.process import garbage_kept
from kdsuite.store.artefact import Artefact
from kdsuite.store.files import atomic_write_text, fingerprint
from kdsuite.tasks.encoding import Encoded, encode
from kdsuite.tasks.example import Example, Task, task_of
from kdsuite.tasks.overlap import overlaps, told
from kdsuite.tasks.splits import Splits, make_splits, source_fingerprint

ENCODED_AT_ONCE = 1000  # examples that are counted together
PROMPTS = 8  # per split: what the fingerprint of a run covers of them


@kept
def task(bench: Bench, name: str) -> Task:
    """A task as its examples are asked: with those that are shown solved before each."""
    made = task_of(name, bench.settings.tasks[name])
    made.shots = splits(bench, name).get("shots", ())
    return made


@kept
def splits(bench: Bench, name: str) -> Splits:
    """The examples of a task, from `processed_data/<task>` or, if that is not theirs, made anew."""
    settings = bench.settings.tasks[name]
    sizes = settings.identity()
    teacher = settings.teacher_training.model_dump(include={"enabled", "train_size"})
    key = fingerprint([source_fingerprint(settings), sizes, teacher])
    stored = Artefact(bench.layout.processed(name), key, bench.progress.say, "the examples are made anew")

    def make(folder: Path) -> dict[str, Any]:
        made = make_splits(task_of(name, settings))
        for split, examples in made.items():
            atomic_write_text(folder / f"{split}.jsonl", "".join(e.to_json() + "\n" for e in examples))
        sizes, found = {split: len(examples) for split, examples in made.items()}, overlaps(made)
        for line in told(found):
            bench.progress.say(f"{name}: {line}")
        return {"source": settings.source, "revision": settings.revision, "sizes": sizes, "in_training_text": found}

    with bench.locks.hold(f"data-{name}"):
        names = stored.get_or_build(make)["sizes"]
        return {
            split: [Example.from_json(line) for line in lines(bench.layout.split(name, split).read_text("utf-8"))]
            for split in names
        }


def lines(text: str) -> list[str]:
    """JSON lines; `splitlines` would also cut at separators that may stand inside a string."""
    return text.split("\n")[:-1]


@kept
def fingerprints(bench: Bench, name: str) -> dict[str, str]:
    """Fingerprints of what the runs of a task read: `data`, and `teacher` and each student with their prompts."""
    roles = (TEACHER, *bench.settings.students)
    return {"data": source_fingerprint(bench.settings.tasks[name])} | {
        role: fingerprint([source(bench, role).fingerprint, _prompts(bench, name, role)]) for role in roles
    }


def _prompts(bench: Bench, name: str, role: str) -> list[Any]:
    """How a role reads the first examples of each split, and what its answers are and end with."""
    tokens, kind = chat(bench, role), task(bench, name)
    examples = [e for _, split in sorted(splits(bench, name).items()) for e in split[:PROMPTS]]
    labels = [tokens.answer(text).ids for text in (kind.labels or {}).values()]
    return [tokens.prompt_ids([kind.messages(e) for e in examples]), labels, tokens.ending_ids, tokens.end_ids]


def identity(bench: Bench, spec: RunSpec) -> str:
    """The fingerprint of a run on this bench."""
    return run_fingerprint(bench.settings, spec, fingerprints(bench, spec.task), bench.choice.numerics)


@kept
def encoded(bench: Bench, name: str, role: str, split: str) -> list[Encoded]:
    """Training form of a split in a role's tokens."""
    return _encode(bench, name, role, splits(bench, name)[split], split)


def encoded_answers(bench: Bench, name: str, role: str, answers: Mapping[str, str]) -> list[Encoded]:
    """Training form of those of `train` that have an answer of the teacher, with that as target."""
    examples = []
    for example in splits(bench, name)["train"]:
        if (answer := answers.get(example.id)) is not None:
            start = example.inputs.get("context", "").find(answer)
            at = start if start >= 0 else example.answer_start
            examples.append(replace(example, target=answer, answer_start=at))
    return _encode(bench, name, role, examples, "the teacher's answers")


def _encode(bench: Bench, name: str, role: str, examples: Sequence[Example], what: str) -> list[Encoded]:
    about = task(bench, name), chat(bench, role)
    with _encoding(bench, name, role, what, examples) as pieces:
        return [e for some in pieces for e in encode(*about, some)]


@kept
def evaluation_set(bench: Bench, name: str, role: str, split: str) -> EvaluationSet:
    about, examples = (task(bench, name), chat(bench, role)), splits(bench, name)[split]
    with _encoding(bench, name, role, split, examples) as pieces:
        return EvaluationSet.joined([EvaluationSet.of(*about, some) for some in pieces])


@contextmanager
def _encoding(
    bench: Bench, name: str, role: str, what: str, examples: Sequence[Example]
) -> Iterator[Iterator[Sequence[Example]]]:
    """Examples in pieces, and how far it is."""
    label = f"encoding {what} of {name} for {role}"
    with garbage_kept(), bench.progress.work(label, len(examples), "examples") as work:
        yield work.pieces(examples, ENCODED_AT_ONCE)

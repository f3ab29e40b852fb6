"""The examples of a bench, as they are and as a role's tokenizer reads them; and what identifies them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from heapq import nlargest
from pathlib import Path
from typing import Any, TypeVar

from kdsuite.evaluate.predict import EvaluationSet
from kdsuite.jobs.bench import Bench, kept
from kdsuite.jobs.models import chat, server_found, source
from kdsuite.methods.base import Request
from kdsuite.runtime.process import garbage_kept
from kdsuite.store.files import atomic_write_text, fingerprint, read_rows
from kdsuite.tasks.encoding import ChatTokenizer, Encoded, encode, encode_rationales, encode_said, explained_prompts
from kdsuite.tasks.example import UNLABELED, Example, Task, task_of
from kdsuite.tasks.overlap import overlaps, told
from kdsuite.tasks.splits import Splits, fraction_sizes, make_splits, source_fingerprint, unlabeled_fingerprint

T = TypeVar("T")

ENCODED_AT_ONCE = 1000  # examples that are counted together
LONGEST = 16  # texts of a split by which it is known early whether max_length is enough
PROMPTS = 8  # per split: what the fingerprint of a run covers of them


@kept
def task(bench: Bench, name: str) -> Task:
    """A task as its examples are asked: with those that are shown solved before each."""
    made = task_of(name, bench.settings.tasks[name])
    made.shots = splits(bench, name).get("shots", ())
    return made


@kept
def splits(bench: Bench, name: str) -> Splits:
    """The examples of a task, from `processed_data/<task>` or, if that is not theirs, made anew. DataError for what
    cannot be split so."""
    settings = bench.settings.tasks[name]
    sizes = settings.identity()
    teacher = settings.teacher_training.model_dump(include={"enabled", "train_size"})
    about = [source_fingerprint(settings), sizes, teacher]
    if settings.transfers:
        about.append(unlabeled_fingerprint(settings))
    stored = bench.artefact(bench.layout.processed(name), about, "the examples are made anew")

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
        read = {split: [*map(Example.from_json, read_rows(stored.path / f"{split}.jsonl"))] for split in names}
    fraction_sizes(task_of(name, settings), read["train"])  # too small ones are refused
    return read


@kept
def fingerprints(bench: Bench, name: str) -> dict[str, str]:
    """Fingerprints of what the runs of a task read: `data`, and `teacher` and each student with how it reads the
    first examples of each split, and what its answers are and end with."""
    weights = {role: source(bench, role).fingerprint for role in bench.settings.roles}  # or that is told
    kind, settings = task(bench, name), bench.settings.tasks[name]
    read = {split: examples for split, examples in sorted(splits(bench, name).items()) if split != UNLABELED}
    examples = [e for examples in read.values() for e in examples[:PROMPTS]]
    found = {"data": source_fingerprint(settings)}
    for role in weights:
        tokens = chat(bench, role)
        prompts = tokens.prompt_ids([kind.messages(e) for e in examples])
        labels = [tokens.answer(text).ids for text in (kind.labels or {}).values()]
        read = [prompts, labels, tokens.ending_ids, tokens.end_ids]
        found[role] = fingerprint([weights[role], read])
    if bench.settings.models.served:
        found["served"] = str(server_found(bench))
    if settings.transfers:
        found[UNLABELED] = unlabeled_fingerprint(settings)
    return found


@kept
def encoded(bench: Bench, name: str, role: str, split: str) -> list[Encoded]:
    """Training form of a split in a role's tokens."""
    return [e for some in _made(encode, bench, name, role, splits(bench, name)[split], split) for e in some]


def encoded_said(bench: Bench, name: str, role: str, examples: Sequence[Example], what: str) -> list[Encoded]:
    """Training form, in a role's tokens, of examples whose targets the teacher said; what is left out is told."""
    found = [e for some in _made(encode_said, bench, name, role, examples, what) for e in some]
    if left := len(examples) - len(found):
        told = f"{name}: {left:,} of {len(examples):,} of {what} are not learned by {role}"
        bench.progress.say(f"{told}: its tokenizer does not spell them, or max_length is too small")
    return found


def encoded_answers(bench: Bench, name: str, role: str, answers: Mapping[str, str]) -> list[Encoded]:
    """Training form of those examples that have an answer of the teacher, with that as target, where it can be one."""
    examples, made = [], splits(bench, name)
    for example in [*made["train"], *made.get(UNLABELED, ())]:
        if (answer := answers.get(example.id)) is not None:
            start = example.inputs.get("context", "").find(answer)
            at = start if start >= 0 else example.answer_start
            examples.append(replace(example, target=answer, answer_start=at))
    return encoded_said(bench, name, role, examples, "the teacher's answers")


def prompts_to_explain(
    bench: Bench, name: str, role: str, examples: Sequence[Example], request: Request
) -> list[list[int]]:
    """Prompts that ask for the reasons of a task's answers, in a role's tokens."""

    def make(kind: Task, tokens: ChatTokenizer, some: Sequence[Example]) -> list[list[int]]:
        return explained_prompts(kind.explaining(request.text), tokens, some, request.max_new_tokens)

    return [prompt for some in _made(make, bench, name, role, examples, "requests to explain") for prompt in some]


def encoded_rationales(
    bench: Bench,
    name: str,
    role: str,
    examples: Sequence[Example],
    request: Request,
    said: Mapping[str, tuple[str, bool]],
) -> list[Encoded]:
    """Training form of the teacher's reasons, by id, each with whether it is whole, in a role's tokens."""

    def make(kind: Task, tokens: ChatTokenizer, some: Sequence[Example]) -> list[Encoded]:
        return encode_rationales(kind.explaining(request.text), tokens, some, said, request.max_new_tokens)

    return [e for some in _made(make, bench, name, role, examples, "the teacher's reasons") for e in some]


@kept
def evaluation_set(bench: Bench, name: str, role: str, split: str) -> EvaluationSet:
    return EvaluationSet.joined(_made(EvaluationSet.of, bench, name, role, splits(bench, name)[split], split))


def refuse_unreadable(bench: Bench, name: str, roles: Sequence[str]) -> None:
    """DataError where a role's tokens cannot spell a label, or are too many in the longest texts of a task: what a run
    would say when it comes to them, perhaps after hours."""
    kind, found = task(bench, name), splits(bench, name)
    uses = {"train": encode, "teacher_train": encode, "dev": EvaluationSet.of, "validation": EvaluationSet.of}
    for split, make in uses.items():
        some = nlargest(LONGEST, found.get(split, ()), key=_characters)
        for role in roles:
            make(kind, chat(bench, role), some)


def _characters(example: Example) -> int:
    """Of all that is never cut: a passage is."""
    return len(example.target) + sum(len(text) for name, text in example.inputs.items() if name != "context")


def _made(
    make: Callable[..., T], bench: Bench, name: str, role: str, examples: Sequence[Example], what: str
) -> list[T]:
    """What `make` makes of examples in pieces; how far it is, is told."""
    kind, tokens = task(bench, name), chat(bench, role)
    label = f"encoding {what} of {name} for {role}"
    with garbage_kept(), bench.progress.work(label, len(examples), "examples") as work:
        return [make(kind, tokens, some) for some in work.pieces(examples, ENCODED_AT_ONCE)]

"""A task as its models read it, for a person who wants to know why numbers are odd: `kdsuite task`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from kdsuite.config import TEACHER, Settings, changed
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.models import chat
from kdsuite.runtime.device import DeviceChoice
from kdsuite.runtime.progress import Progress
from kdsuite.tasks.encoding import ChatTokenizer, encode, label_answers, room_beside
from kdsuite.tasks.example import Example, Task, task_of
from kdsuite.tasks.overlap import overlaps, told
from kdsuite.tasks.splits import Splits, fraction_sizes, make_splits

SHOWN = 3  # conversations
MEASURED = 2000  # training examples whose tokens are counted
BETWEEN, LEARNED = "│", "⟦{}⟧"  # of tokens; of what is supervised


def look(settings: Settings, names: Sequence[str], choice: DeviceChoice, marked: str = LEARNED) -> Iterator[str]:
    """Lines on tasks: splits, labels, repetitions and leaks; then, by model, lengths and the first conversations in
    tokens, with what is supervised `marked`. Nothing is written.

    DataError and SettingsError for what is wrong with a task; ModelError for a tokenizer that cannot be had.
    """
    quick = changed(settings, {"models.offline.pretraining_steps": 1})  # of offline models only the tokenizer is read
    with TemporaryDirectory() as folder:
        bench = Bench(quick, Path(folder), choice, Progress.silent())
        for name in names:
            task = task_of(name, settings.tasks[name])
            splits = make_splits(task)
            task.shots = splits.get("shots", ())
            yield from _about(task, splits)
            models = {TEACHER: settings.models.teacher, **{s: settings.models.students[s] for s in settings.students}}
            for role, model in models.items():
                yield from _as_read(task, splits["train"], chat(bench, role), f"{role}, {model.name}", marked)


def _about(task: Task, splits: Splits) -> Iterator[str]:
    settings, train = task.settings, splits["train"]
    yield f"{task.name} ({settings.preset or settings.kind}), {settings.source}"
    own = "" if task.load("validation") else " (validation is carved out of train, by group)"
    yield f"  splits: {', '.join(f'{split} {len(examples):,}' for split, examples in splits.items())}{own}"
    if len(sizes := fraction_sizes(task, train)) > 1:
        yield f"  fractions of train: {', '.join(f'{fraction:g} {count:,}' for fraction, count in sizes.items())}"
    if task.labels:
        yield f"  labels in train: {_shares(Counter(e.target for e in train), len(train))}"
        if absent := [label for label in task.labels if all(e.target != label for e in train)]:
            yield f"  note: no training example is {' or '.join(map(repr, absent))}"
    targets: dict[tuple[str, ...], set[str]] = {}
    for example in train:
        targets.setdefault(tuple(example.inputs.values()), set()).add(example.target)
    if repeated := len(train) - len(targets):
        torn = sum(len(said) > 1 for said in targets.values())
        yield f"  note: {repeated:,} training examples have the inputs of another, {torn:,} inputs several targets"
    for line in told(overlaps(splits)):
        yield f"  note: {line}"


def _shares(counts: Mapping[str, int], of: int) -> str:
    return ", ".join(f"{name} {count / of:.0%}" for name, count in sorted(counts.items(), key=lambda c: -c[1]))


def _as_read(task: Task, examples: Sequence[Example], tokens: ChatTokenizer, who: str, marked: str) -> Iterator[str]:
    some, settings = examples[:MEASURED], task.settings
    answers = label_answers(task, tokens)
    prompts = tokens.prompt_ids([task.messages(e) for e in some])
    behind = [answers or {e.target: tokens.answer(e.target)} for e in some]
    lengths = [len(prompt) + len(own[e.target].ids) for e, prompt, own in zip(some, prompts, behind, strict=True)]
    rooms = [room_beside(own, settings.max_length) for own in behind]
    fits = [len(prompt) <= room for prompt, room in zip(prompts, rooms, strict=True)]
    fitting, over = ([e for e, fit in zip(some, fits, strict=True) if fit is wanted] for wanted in (True, False))
    cut = all("context" in e.inputs for e in over)
    how = "windows around the answer are learned" if cut else "the run would refuse them"
    yield (
        f"  {who}: {median(lengths):.0f} tokens with the target, the longest of "
        f"{len(some):,} {max(lengths)}, of max_length {settings.max_length}"
        + (f"; {len(over):,} are longer: {how}" if over else "")
    )
    for shown in encode(task, tokens, fitting[:SHOWN]):
        text = _spelled(tokens, shown.prompt) + marked.format(_spelled(tokens, shown.targets[shown.gold_slice]))
        yield f"    {shown.id}"
        yield from (f"      {line}" for line in text.split("\n"))
    if len(answers) > 1:
        others = ", ".join(marked.format(_spelled(tokens, answer.ids)) for answer in answers.values())
        yield f"    of these the likeliest is its prediction: {others}"


def _spelled(tokens: ChatTokenizer, ids: Sequence[int]) -> str:
    """The text of tokens with a line between them; a line's end is shown, and ends the line."""
    parts = []
    for id in ids:
        said = tokens.token_bytes[id]
        text = tokens.tokenizer.convert_ids_to_tokens(id) if said is None else said.decode(errors="backslashreplace")
        shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
        parts.append(shown.replace("\n", "↵\n"))
    return BETWEEN.join(parts)

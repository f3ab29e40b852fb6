"""A configuration for a person's own data, from a few answers: `kdsuite init`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from kdsuite.config import OFFLINE_STUDENT, TaskSettings, load, name_from, nearest
from kdsuite.errors import DataError, SettingsError
from kdsuite.tasks.sources import Row, rows

Ask = Callable[[str, str], str]  # a question and what is proposed → the answer
Answer = Callable[[str, str | None, str | None, str], str]  # a question, what was said, is proposed; the option
MOST_LABELS = 20
TARGETS = ("label", "target", "answers", "answer", "completion", "output", "response", "category", "class")
INPUTS = ("text", "question", "prompt", "input", "sentence")
CHATS = ("messages", "conversations")
KINDS = ("classification", "short_answer", "generation")
TEMPLATE = """\
# Written by `kdsuite init`. What is left out has the default given in docs/configuration.md.
#
#   kdsuite task --config {file}     how the models read it
#   kdsuite plan --config {file}     how long, how much memory, what it could show
#   kdsuite run --config {file}      all of it

device: {device} # auto (MPS, CUDA, CPU), mps, cuda, cpu
seeds: [42, 123, 456, 789, 1011] # one run per seed; fewer than three cannot show anything
methods: [B0, KD1, KD2, KD3]

tasks:
  {name}:
    kind: {kind} # classification: labels are scored; short_answer, generation: answers are generated
    source: {source} # a file, a pattern of files, a folder, a hub id
    # {reported}
    {columns}
    max_length: 512 # tokens of prompt and target; `kdsuite task` says how many are longer
    training: {{epochs: 3, batch_size: 16, learning_rate: {rate}}} # students, the same for every method

models:
  teacher: {{name: {teacher}}} # hub id, or a save_pretrained folder
  students:
    S1: {{name: {student}}}
  lora: {{enabled: {lora}}} # adapters instead of all weights
"""


@dataclass(frozen=True)
class Wishes:
    """What is known beforehand; what is None is asked, or proposed."""

    data: str | None = None
    kind: str | None = None
    input: Sequence[str] = ()
    target: str | None = None
    teacher: str | None = None
    student: str | None = None
    device: str | None = None


def write(path: Path, wishes: Wishes, ask: Ask | None) -> str:
    """Write a configuration and say what to do with it; `ask` is None where nobody can be asked.

    SettingsError for a file that is there already or cannot be written, or an answer that is missing or none; DataError
    for data that cannot be read.
    """
    if path.exists():
        raise SettingsError(f"{path} is there already; give another name")

    def answer(question: str, said: str | None, proposed: str | None, option: str) -> str:
        if said is not None:
            return said
        if ask is not None:
            return ask(question, proposed or "")
        if proposed is None:
            raise SettingsError(f"{question}? Give {option}, as there is no terminal to ask at")
        return proposed

    source = answer(
        "Data: a file (CSV, TSV, JSON, JSON lines, Parquet), a folder of them, a hub id", wishes.data, None, "--data"
    )
    kind, columns, reported = _looked_at(source, wishes, answer)
    teacher = answer("Teacher", wishes.teacher, "Qwen/Qwen2.5-1.5B-Instruct", "--teacher")
    student = answer("Student", wishes.student, "Qwen/Qwen2.5-0.5B-Instruct", "--student")
    device = answer("Device (auto, mps, cuda, cpu)", wishes.device, "auto", "--device")
    if not re.fullmatch(r"auto|mps|cpu|cuda(:\d+)?", device):
        raise SettingsError(f"--device: unknown device {device!r}; take auto, mps, cuda, cuda:1 or cpu")
    small = student == OFFLINE_STUDENT
    text = TEMPLATE.format(
        file=path,
        device=device,
        name=_key(name_from(Path(source).stem) or "mine"),
        kind=kind,
        source=_quoted(source),
        reported=reported,
        columns=columns,
        rate="3.0e-3" if small else "2.0e-4",
        teacher=_quoted(teacher),
        student=_quoted(student),
        lora=str(not small).lower(),
    )
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({error.strerror}); make its folder, or give another") from None
    try:
        load(path, env_file=None)
    except SettingsError:
        path.unlink()
        raise
    return f"wrote {path}; next: kdsuite task --config {path}"


def _looked_at(source: str, wishes: Wishes, answer: Answer) -> tuple[str, str, str]:
    """Of the data at `source` the kind, the lines of columns and labels, and what is said of the reported split."""
    section = TaskSettings(source=source)
    read, held_out = rows(section, "train"), rows(section, "validation")
    reported = f"reported split: {len(held_out):,} rows of its own" if held_out else (
        "no reported split found: one is carved out of train, by group; splits: {validation: FILE} names one"
    )  # fmt: skip
    if not read:
        raise DataError(f"{source}: no row in it")
    there = list(dict.fromkeys(name for row in read for name in row.cells))
    chat = next((name for name in CHATS if name in there), None)
    if chat and not (wishes.input or wishes.target) and wishes.kind in (None, "generation"):
        return "generation", f"columns: {{messages: {chat}}} # the assistant's last turn is learned", reported
    names = ", ".join(map(_quoted, there))
    proposed = next((name for name in TARGETS if name in there), None)
    target = answer(f"Column of what is to be learned, of {names}", wishes.target, proposed, "--target")
    _refuse_absent(source, there, target)
    kind = answer(f"Kind of task ({', '.join(KINDS)})", wishes.kind, _kind(read, there, target), "--kind")
    if kind not in KINDS:
        raise SettingsError(f"--kind: unknown kind {kind!r}{nearest(kind, KINDS)}")
    others = [name for name in there if name != target]
    proposed = next((name for name in INPUTS if name in others), others[0] if len(others) == 1 else None)
    said = wishes.input or answer(
        f"Columns of the input, by comma, of {', '.join(map(_quoted, others))}", None, proposed, "--input"
    ).split(",")
    inputs = [name.strip() for name in said]
    _refuse_absent(source, there, *inputs)
    named: dict[str, str] = {}  # by words of their own, which a prompt can hold
    for i, name in enumerate(inputs):
        word = re.sub(r"\W+", "_", name).strip("_").lower()
        word = word if word.isidentifier() else f"input{i}"
        named[word if word not in named else f"{word}_{i}"] = name
    of = inputs[0] if len(inputs) == 1 and inputs[0].isidentifier() else named
    lines = [f"columns: {{input: {_quoted(of)}, target: {_quoted(target)}}}"]
    if kind == "classification":
        labels = sorted({row.text(target).strip() for row in [*read, *held_out]})
        if len(labels) < 2:
            raise DataError(f"{source}: column {target!r} says {labels[0]!r} everywhere; labels are two or more")
        lines.append(f"labels: {_quoted(labels)}")
    prompt = " ".join(f"{{{{ {name} }}}}" for name in (named if of is named else inputs))
    lines.append(f"# prompt: {_quoted(prompt + ' …')} # instead of the kind's own, which `kdsuite task` shows")
    return kind, "\n    ".join(lines), reported


def _refuse_absent(source: str, there: Sequence[str], *names: str) -> None:
    for name in names:
        if name not in there:
            raise DataError(f"{source}: no column {name!r}{nearest(name, there)}")


def _kind(read: Sequence[Row], there: Sequence[str], target: str) -> str:
    """What the columns look like."""
    if "context" in there or target == "answers":
        return "short_answer"
    few = len({str(row.cells.get(target)) for row in read}) <= min(MOST_LABELS, len(read) // 5)
    return "classification" if few else "generation"


def _key(name: str) -> str:
    """As YAML has it: `2024` or `no` alone would be a number or a truth value."""
    return name if yaml.safe_load(name) == name else _quoted(name)


def _quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)

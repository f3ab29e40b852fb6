"""A configuration for a person's own data, from a few answers: `kdsuite init`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdsuite.config import OFFLINE_STUDENT, TaskSettings, nearest
from kdsuite.config.files import load
from kdsuite.errors import DataError, SettingsError
from kdsuite.tasks.sources import Row, files, rows, table

Ask = Callable[[str, str], str]  # a question and what is proposed → the answer
MOST_LABELS = 20
TARGETS = ("label", "target", "answers", "answer", "completion", "output", "response", "category", "class")
KINDS = ("classification", "short_answer", "generation")
TEMPLATE = """\
# {title}: its own data, a teacher, a student. What is left out has the default given in docs/configuration.md.
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
    columns: {{input: {input}, target: {target}}}{labels}
    # prompt: {prompt}
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

    SettingsError for a file that is there already, or an answer that is missing; DataError for data that cannot be
    read.
    """
    if path.exists():
        raise SettingsError(f"{path} is there already; give another name")

    def answer(question: str, said: str | None, proposed: str | None, flag: str) -> str:
        if said is not None:
            return said
        if ask is not None:
            return ask(question, proposed or "")
        if proposed is None:
            raise SettingsError(f"{question}? Give {flag}, as there is no terminal to ask at")
        return proposed

    source = answer(
        "Data: a file (CSV, TSV, JSON, JSON lines, Parquet) or a folder of them", wishes.data, None, "--data"
    )
    read = _rows(source)
    columns = list(read[0].cells)
    kind = answer(f"Kind of task ({', '.join(KINDS)})", wishes.kind, _kind(read), "--kind")
    if kind not in KINDS:
        raise SettingsError(f"--kind: unknown kind {kind!r}{nearest(kind, KINDS)}")
    proposed = next((name for name in TARGETS if name in columns), columns[-1])
    target = answer(f"Column of what is to be learned, of {', '.join(columns)}", wishes.target, proposed, "--target")
    rest = next((name for name in ("text", "question", "prompt", "input", "sentence") if name in columns), None)
    rest = rest or next((name for name in columns if name != target), columns[0])
    inputs = list(wishes.input) or answer("Column(s) of the input, by comma", None, rest, "--input").split(",")
    inputs = [name.strip() for name in inputs]
    for name in (target, *inputs):
        if name not in columns:
            raise DataError(f"{source}: no column {name!r}{nearest(name, columns)}")
    teacher = answer("Teacher", wishes.teacher, "Qwen/Qwen2.5-1.5B-Instruct", "--teacher")
    student = answer("Student", wishes.student, "Qwen/Qwen2.5-0.5B-Instruct", "--student")
    small = student == OFFLINE_STUDENT
    said = json.dumps(
        inputs[0] if len(inputs) == 1 and inputs[0].isidentifier() else _named(inputs), ensure_ascii=False
    )
    path.write_text(
        TEMPLATE.format(
            title=path.stem,
            file=path,
            device=wishes.device or "auto",
            name=re.sub(r"[^A-Za-z0-9]+", "-", Path(source).stem).strip("-") or "mine",
            kind=kind,
            source=json.dumps(source, ensure_ascii=False),
            input=said,
            target=json.dumps(target, ensure_ascii=False),
            labels=_labels(read, target) if kind == "classification" else "",
            prompt=json.dumps(" ".join(f"{{{{ {name} }}}}" for name in _named(inputs)) + " …", ensure_ascii=False),
            rate="3.0e-3" if small else "2.0e-4",
            teacher=json.dumps(teacher),
            student=json.dumps(student),
            lora=str(not small).lower(),
        ),
        encoding="utf-8",
    )
    try:
        load(path, env_file=None)
    except SettingsError:
        path.unlink()
        raise
    return f"wrote {path}; next: kdsuite task --config {path}"


def _rows(source: str) -> list[Row]:
    section = TaskSettings(source=source)
    found = files(section, "train")
    read = [row for path in found[:1] for row in table(path)] if found else rows(section, "train")
    if not read:
        raise DataError(f"{source}: no row in it")
    return read


def _kind(read: Sequence[Row]) -> str:
    """What the columns look like."""
    columns = read[0].cells
    if "context" in columns or "answers" in columns:
        return "short_answer"
    said = next((name for name in TARGETS if name in columns), None)
    few = said is not None and len({str(row.cells.get(said)) for row in read}) <= min(MOST_LABELS, len(read) // 5)
    return "classification" if few else "generation"


def _labels(read: Sequence[Row], target: str) -> str:
    """The line of the labels, as the data have them."""
    counts = Counter(row.text(target).strip() for row in read)
    return f"\n    labels: {json.dumps(sorted(counts), ensure_ascii=False)}"


def _named(columns: Sequence[str]) -> dict[str, Any]:
    """Names for the prompt: what is no name there is made one."""
    return {re.sub(r"\W+", "_", name).strip("_").lower() or f"input{i}": name for i, name in enumerate(columns)}

"""The tasks that are known by name. Nothing else in the package names them.

SST-2: is a film review's sentence positive or negative? (Socher et al. 2013; GLUE, Wang et al. 2019) The two
label words are scored, never generated, so that no prediction is unparsable. Official rows end in a blank before
the tab: texts are stripped. Training holds the phrases of its sentences too, the reported split whole sentences only.

SQuAD v1.1: answer a question with a span of the passage (Rajpurkar et al. 2016, arXiv:1606.05250). Answers are
generated and scored by the official normalisation, exact match and F1, over all references. The official splits are
by article, and so is dev where titles are known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from kdsuite.config import GENERATED, Place, TaskSettings, nearest
from kdsuite.errors import DataError
from kdsuite.tasks import sources
from kdsuite.tasks.cleaning import clean_answer
from kdsuite.tasks.example import Example, Message, Split, Task, canonical, read_text
from kdsuite.tasks.metrics import binary_f1, percent, squad_exact_match, squad_f1

LABELS = ("negative", "positive")  # GLUE's 0 and 1


class Sst2Settings(TaskSettings):
    train_file: Place = Field(default="train.tsv", description="GLUE TSV with sentence and label; default train.tsv")
    validation_file: Place = Field(default="dev.tsv", description="GLUE TSV of the reported split; default dev.tsv")
    quality_floor: Annotated[float, Field(ge=0, le=100)] = Field(
        default=60.0, description="KD2 is refused below this teacher accuracy, percent; default 60"
    )
    labels_text: dict[str, str] = Field(
        default={},
        description="how labels are spelled in answers, as {positive: Positive}; predictions and metrics keep their "
        "names; default: as they are named",
    )

    @field_validator("labels_text")
    @classmethod
    def _spelled_apart(cls, texts: dict[str, str]) -> dict[str, str]:
        for label, text in texts.items():
            if label not in LABELS:
                raise ValueError(f"unknown label {label!r}{nearest(label, LABELS)}")
            if not text or text != text.strip():
                raise ValueError(f"label {label!r} needs a text without blanks around it")
        spelled = [texts.get(label, label) for label in LABELS]
        if len(set(spelled)) < len(spelled):
            raise ValueError(f"two labels have the same text {spelled[0]!r}")
        return texts


class Sst2(Task):
    name = "sst2"
    title = "SST-2"
    hub_id = "stanfordnlp/sst2"
    licence = "SST-2 (GLUE): no licence is stated; for research"
    citation = "SST-2 (Socher et al. 2013)"
    sizes = Split(67_349, 138, 8, 351), Split(872, 189, 8, 327)
    fragments = True
    Settings = Sst2Settings
    metric = "accuracy"
    secondary_metric = "f1"
    labels = LABELS

    def load(self, settings: TaskSettings, split: str) -> list[Example]:
        if settings.source == GENERATED:
            rows = sources.generated_rows("film_opinions", settings, split)
            read = [(_review(split, i, row["sentence"], row["label"]), row["said"]) for i, row in enumerate(rows)]
            return [replace(review, target=said) for review, said in read]
        if Path(settings.source).is_dir():
            return _reviews_of_tsv(self.file(settings, split), split)
        rows = sources.hub_rows(settings, split, hub_config="sst2" if "glue" in settings.source else None)
        return [_review(split, i, row["sentence"], LABELS[row["label"]]) for i, row in enumerate(rows)]

    def messages(self, example: Example, context: str | None = None) -> list[Message]:
        question = "Is the sentiment of this review positive or negative? Answer with one word."
        return [{"role": "user", "content": f"Review: {example.inputs['sentence']}\n{question}"}]

    def label_texts(self, settings: TaskSettings) -> dict[str, str]:
        texts = settings.labels_text if isinstance(settings, Sst2Settings) else {}
        return {label: canonical(texts.get(label, label)) for label in LABELS}

    def score(self, prediction: str, references: Sequence[str]) -> dict[str, float]:
        return {"accuracy": float(prediction in references)}

    def aggregate(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        gold = [r[0] for r in references]
        accuracy = percent([float(p == g) for p, g in zip(predictions, gold, strict=True)])
        f1 = 100.0 * binary_f1([p == LABELS[1] for p in predictions], [g == LABELS[1] for g in gold])
        return {"accuracy": accuracy, "f1": f1, "n": len(gold)}


def _review(split: str, index: int, sentence: str, label: str) -> Example:
    text = canonical(sentence.strip())
    return Example(f"sst2-{split}-{index}", {"sentence": text}, label, (label,), " ".join(text.casefold().split()))


def _reviews_of_tsv(path: Path, split: str) -> list[Example]:
    lines = read_text(path).split("\n")
    columns = lines[0].split("\t")
    for name in ("sentence", "label"):
        if name not in columns:
            raise DataError(
                f"{path}, line 1: no column {name!r} (found {', '.join(columns)}); GLUE's SST-2 files have it"
            )
    at, label_at = columns.index("sentence"), columns.index("label")
    examples = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) != len(columns):
            raise DataError(f"{path}, line {number}: {len(cells)} columns instead of {len(columns)}; mend the row")
        if cells[label_at].strip() not in ("0", "1"):
            raise DataError(f"{path}, line {number}: label {cells[label_at]!r} is not 0 or 1; mend the row")
        if not cells[at].strip():
            raise DataError(f"{path}, line {number}: the sentence is empty; mend the row")
        examples.append(_review(split, number - 2, cells[at], LABELS[int(cells[label_at])]))
    return examples


class SquadSettings(TaskSettings):
    train_file: Place = Field(default="train-v1.1.json", description="SQuAD v1.1 JSON; default train-v1.1.json")
    validation_file: Place = Field(default="dev-v1.1.json", description="SQuAD v1.1 JSON; default dev-v1.1.json")
    quality_floor: Annotated[float, Field(ge=0, le=100)] = Field(
        default=30.0, description="KD2 is refused below this F1 of the teacher's cleaned answers, percent; default 30"
    )


class Squad(Task):
    name = "squad"
    title = "SQuAD"
    hub_id = "rajpurkar/squad"
    licence = "SQuAD v1.1: CC BY-SA 4.0"
    citation = "SQuAD v1.1 (Rajpurkar et al. 2016)"
    sizes = Split(87_599, 853, 20, 4_200), Split(10_570, 914, 19, 4_260)
    Settings = SquadSettings
    metric = "f1"
    secondary_metric = "exact_match"

    def load(self, settings: TaskSettings, split: str) -> list[Example]:
        if settings.source == GENERATED:
            rows = sources.generated_rows("passages", settings, split)
            read = [
                (_question(f"squad-{split}-{i}", r["context"], r["question"], [(r["answer"], r["answer_start"])]), r)
                for i, r in enumerate(rows)
            ]
            return [replace(question, target=r["said"], answer_start=r["said_start"]) for question, r in read]
        if Path(settings.source).is_dir():
            return _questions_of_json(self.file(settings, split))
        examples = []
        for row in sources.hub_rows(settings, split):
            answers = list(zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True))
            examples.append(_question(row["id"], row["context"], row["question"], answers, row.get("title")))
        return examples

    def messages(self, example: Example, context: str | None = None) -> list[Message]:
        passage = example.inputs["context"] if context is None else context
        asked = f"Question: {example.inputs['question']}\n\nAnswer with a short span copied from the context."
        return [{"role": "user", "content": f"Context: {passage}\n\n{asked}"}]

    def clean(self, raw: str, example: Example) -> str:
        return clean_answer(raw, example.inputs["context"], example.inputs["question"])

    def score(self, prediction: str, references: Sequence[str]) -> dict[str, float]:
        return {
            "exact_match": max(squad_exact_match(prediction, r) for r in references),
            "f1": max(squad_f1(prediction, r) for r in references),
        }


def _question(
    id: str, context: str, question: str, answers: Sequence[tuple[str, int]], title: str | None = None
) -> Example:
    if not answers:
        raise DataError(f"question {id}: no answer; SQuAD v1.1 has one for every question")
    text, start = answers[0]
    if not text.strip():
        raise DataError(f"question {id}: the answer is empty; mend the file")
    if context[start : start + len(text)] != text:
        found = context.find(text)
        if found < 0:
            raise DataError(f"question {id}: the answer {text!r} is not in its context; mend the file")
        raise DataError(f"question {id}: the answer {text!r} is not at {start} but at {found}; mend answer_start")
    inputs, references = {"context": context, "question": question.strip()}, tuple(t for t, _ in answers)
    group, lead = hashlib.sha256(context.encode()).hexdigest()[:16], len(text) - len(text.lstrip())
    return Example(id, inputs, canonical(text.strip()), references, group, start + lead, title or None)


def _questions_of_json(path: Path) -> list[Example]:
    try:
        articles = json.loads(read_text(path))["data"]
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}); download the file again") from None
    except (KeyError, TypeError):
        raise DataError(f"{path}: no list 'data'; SQuAD v1.1 files have it") from None
    examples = []
    for number, article in enumerate(articles):
        if "paragraphs" not in article:
            raise DataError(f"{path}: article {number} has no 'paragraphs'; SQuAD v1.1 files have it")
        asked = [(paragraph, question) for paragraph in article["paragraphs"] for question in paragraph.get("qas", [])]
        for paragraph, question in asked:
            id = question.get("id", "without id")
            try:
                answers = [(a["text"], a["answer_start"]) for a in question["answers"]]
                examples.append(
                    _question(id, paragraph["context"], question["question"], answers, article.get("title"))
                )
            except KeyError as error:
                raise DataError(f"{path}: question {id} has no {error}; SQuAD v1.1 files have it") from None
            except DataError as error:
                raise DataError(f"{path}: {error}") from None
    return examples


PRESETS: tuple[type[Task], ...] = (Sst2, Squad)

"""SQuAD v1.1: answer a question with a span of the passage (Rajpurkar et al. 2016, arXiv:1606.05250).

Answers are generated and scored by the official normalisation, exact match and F1, over all references.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kdsuite.config import GENERATED, TaskSettings
from kdsuite.errors import DataError
from kdsuite.extras.offline import corpora as generated
from kdsuite.tasks import sources
from kdsuite.tasks.example import Example, Message, Task, canonical, read_text
from kdsuite.tasks.metrics import percent, squad_exact_match, squad_f1


class Squad(Task):
    name = "squad"
    hub_id = "rajpurkar/squad"
    licence = "SQuAD v1.1: CC BY-SA 4.0"
    metric = "f1"
    secondary_metric = "exact_match"

    def load(self, settings: TaskSettings, split: str) -> list[Example]:
        if settings.source == GENERATED:
            rows = sources.generated_rows(generated.passages, settings, split)
            return [
                _example(
                    f"squad-{split}-{i}", r["context"], r["question"], [(r["answer"], r["answer_start"])]
                )
                for i, r in enumerate(rows)
            ]
        folder = Path(settings.source)
        if folder.is_dir():
            return _from_json(
                folder / (settings.train_file if split == "train" else settings.validation_file)
            )
        rows = sources.hub_rows(settings, split)
        return [
            _example(
                r["id"],
                r["context"],
                r["question"],
                list(zip(r["answers"]["text"], r["answers"]["answer_start"], strict=True)),
            )
            for r in rows
        ]

    def messages(self, example: Example, context: str | None = None) -> list[Message]:
        passage = example.inputs["context"] if context is None else context
        return [
            {
                "role": "user",
                "content": f"Context: {passage}\n\nQuestion: {example.inputs['question']}\n\n"
                "Answer with a short span copied from the context.",
            }
        ]

    def score(self, prediction: str, references: Sequence[str]) -> dict[str, float]:
        return {
            "exact_match": max(squad_exact_match(prediction, r) for r in references),
            "f1": max(squad_f1(prediction, r) for r in references),
        }

    def aggregate(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        scores = [self.score(p, r) for p, r in zip(predictions, references, strict=True)]
        return {
            "f1": percent([s["f1"] for s in scores]),
            "exact_match": percent([s["exact_match"] for s in scores]),
            "n": len(scores),
        }


def _example(id: str, context: str, question: str, answers: Sequence[tuple[str, int]]) -> Example:
    if not answers:
        raise DataError(f"question {id}: no answer; SQuAD v1.1 has one for every question")
    text, start = answers[0]
    if not text.strip():
        raise DataError(f"question {id}: the answer is empty; mend the file")
    if context[start : start + len(text)] != text:
        found = context.find(text)
        if found < 0:
            raise DataError(f"question {id}: the answer {text!r} is not in its context; mend the file")
        raise DataError(
            f"question {id}: the answer {text!r} is not at {start} but at {found}; mend answer_start"
        )
    lead = len(text) - len(text.lstrip())
    return Example(
        id,
        {"context": context, "question": question.strip()},
        canonical(text.strip()),
        tuple(t for t, _ in answers),
        hashlib.sha256(context.encode()).hexdigest()[:16],
        start + lead,
    )


def _from_json(path: Path) -> list[Example]:
    try:
        articles = json.loads(read_text(path))["data"]
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); download the file again"
        ) from None
    except (KeyError, TypeError):
        raise DataError(f"{path}: no list 'data'; SQuAD v1.1 files have it") from None
    examples = []
    for paragraph, question in _questions(articles, path):
        id = question.get("id", "without id")
        try:
            answers = [(a["text"], a["answer_start"]) for a in question["answers"]]
            examples.append(_example(id, paragraph["context"], question["question"], answers))
        except KeyError as error:
            raise DataError(f"{path}: question {id} has no {error}; SQuAD v1.1 files have it") from None
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    return examples


def _questions(articles: list[dict[str, Any]], path: Path) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    for number, article in enumerate(articles):
        if "paragraphs" not in article:
            raise DataError(f"{path}: article {number} has no 'paragraphs'; SQuAD v1.1 files have it")
        for paragraph in article["paragraphs"]:
            for question in paragraph.get("qas", []):
                yield paragraph, question

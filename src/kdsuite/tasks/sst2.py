"""SST-2: is a film review's sentence positive or negative? (Socher et al. 2013; GLUE, Wang et al. 2019)

The two label words are scored, never generated, so that no prediction is unparsable. Official rows end in a
blank before the tab: texts are stripped. Sentences that repeat share a group, so that a dev split cannot hold
a sentence that is also trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdsuite.config import GENERATED, SST2_LABELS, Sst2Settings, TaskSettings
from kdsuite.errors import DataError
from kdsuite.extras.offline import corpora as generated
from kdsuite.tasks import sources
from kdsuite.tasks.example import Example, Message, Task, canonical, read_text
from kdsuite.tasks.metrics import binary_f1, percent

LABELS = SST2_LABELS


class Sst2(Task):
    name = "sst2"
    hub_id = "stanfordnlp/sst2"
    licence = "SST-2 (GLUE): no licence is stated; for research"
    metric = "accuracy"
    secondary_metric = "f1"
    labels = LABELS

    def load(self, settings: TaskSettings, split: str) -> list[Example]:
        if settings.source == GENERATED:
            return _generated(settings, split)
        folder = Path(settings.source)
        if folder.is_dir():
            return _from_tsv(
                folder / (settings.train_file if split == "train" else settings.validation_file), split
            )
        rows = sources.hub_rows(settings, split, hub_config="sst2" if "glue" in settings.source else None)
        return [_example(split, i, row["sentence"], LABELS[row["label"]]) for i, row in enumerate(rows)]

    def messages(self, example: Example, context: str | None = None) -> list[Message]:
        sentence = example.inputs["sentence"] if context is None else context
        return [
            {
                "role": "user",
                "content": f"Review: {sentence}\n"
                "Is the sentiment of this review positive or negative? Answer with one word.",
            }
        ]

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


def _example(split: str, index: int, sentence: str, label: str) -> Example:
    text = canonical(sentence.strip())
    return Example(f"sst2-{split}-{index}", {"sentence": text}, label, (label,), text.casefold())


def _generated(settings: TaskSettings, split: str) -> list[Example]:
    rows = sources.generated_rows(generated.film_opinions, settings, split)
    return [_example(split, i, row["sentence"], row["label"]) for i, row in enumerate(rows)]


def _from_tsv(path: Path, split: str) -> list[Example]:
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
            raise DataError(
                f"{path}, line {number}: {len(cells)} columns instead of {len(columns)}; mend the row"
            )
        if cells[label_at].strip() not in ("0", "1"):
            raise DataError(f"{path}, line {number}: label {cells[label_at]!r} is not 0 or 1; mend the row")
        if not cells[at].strip():
            raise DataError(f"{path}, line {number}: the sentence is empty; mend the row")
        examples.append(_example(split, number - 2, cells[at], LABELS[int(cells[label_at])]))
    return examples

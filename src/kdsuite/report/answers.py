"""What was answered: which labels are taken for which, and how good each is; of texts how long and how many empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdsuite.evaluate.selection import Record
from kdsuite.report.analysis import Cell, TaskAnalysis
from kdsuite.report.load import BASELINE
from kdsuite.tasks.metrics import held_against

MOST_COLUMNS, MOST_CONFUSIONS = 12, 10  # a wider matrix cannot be read: its most frequent confusions are listed


def shown(task: TaskAnalysis) -> list[Cell]:
    """The teacher's cell, then each student's B0 and the method with the highest mean, better than B0 or not."""
    cells = [cell for cell in task.cells if cell.runs]
    found = [cell for cell in cells if cell.student is None]
    for student in task.students:
        mine = [cell for cell in cells if cell.student == student and cell.trained]
        others = [cell for cell in mine if cell.method != BASELINE]
        found += [cell for cell in mine if cell.method == BASELINE]
        found += [max(others, key=lambda cell: cell.mean)] if others else []
    return found


def confusion(cell: Cell, labels: Sequence[str]) -> NDArray[np.int64]:
    """[labels, labels]: how often the gold label of the row was answered by that of the column, over all seeds.

    Of several references the one that was answered, else the first, is gold.
    """
    place, counts = {label: at for at, label in enumerate(labels)}, np.zeros((len(labels), len(labels)), np.int64)
    for run in cell.predictions:
        for references, said in zip(run.references, run.texts, strict=True):
            counts[place[held_against(said, references)], place[said]] += 1
    return counts


def per_label(counts: NDArray[np.int64], labels: Sequence[str], runs: int) -> list[Record]:
    """Precision, recall and F1 of each label in percent, and its examples per run (support).

    NaN where nothing is divided by nothing: the precision of a label never answered, the recall of one without any.
    """
    right = counts.diagonal()
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = 100 * right / counts.sum(axis=0), 100 * right / counts.sum(axis=1)
        f1 = 200 * right / (counts.sum(axis=0) + counts.sum(axis=1))
    columns = zip(labels, precision, recall, f1, counts.sum(axis=1) // runs, strict=True)
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for label, p, r, f, n in columns
    ]


def confusions(counts: NDArray[np.int64], labels: Sequence[str]) -> list[Record]:
    """The most frequent wrong answers: gold label, answered label, how often, and their share of the gold label's."""
    wrong = counts * (1 - np.eye(len(labels), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = ((*map(int, np.unravel_index(at, wrong.shape)),) for at in order if wrong.flat[at])
    return [
        {"gold": labels[g], "said": labels[s], "count": int(counts[g, s]), "share": counts[g, s] / counts[g].sum()}
        for g, s in pairs
    ]


def texts(cell: Cell) -> Record:
    """Of the answers of all seeds: median words, of the first references too, and in percent how many are empty and how
    many are the most frequent answer."""
    said = [text.strip() for run in cell.predictions for text in run.texts]
    gold = [references[0] for run in cell.predictions for references in run.references]
    return {
        "words": float(np.median([len(text.split()) for text in said])),
        "reference_words": float(np.median([len(text.split()) for text in gold])),
        "empty": 100 * said.count("") / len(said),
        "same": 100 * Counter(said).most_common(1)[0][1] / len(said),
    }

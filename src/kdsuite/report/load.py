"""A results folder as plain data. Whatever is missing, failed or not a number is kept as such, and noted.

The plan says what was asked for. A record that it does not list, or that carries another fingerprint, belongs
to other settings: it is left out, and the report says so. Predictions are read when a number needs them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdsuite.config.report import BASELINE as BASELINE
from kdsuite.errors import DataError
from kdsuite.evaluate.selection import Record, Run, planned_run
from kdsuite.store.files import content_fingerprint, listed, read_json, read_rows
from kdsuite.store.layout import CACHES, HISTORY, MANIFEST, PREDICTIONS, QUALITY, RECORD, SUPERSEDED, Layout


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one run said about each example of the reported split, in the file's order.

    `scores` are 0–1 [n]; `confidence` [n] is the probability of the predicted label where labels were scored;
    `cleaned` is what cleaning made of `texts`, which are themselves what is scored.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    cleaned: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    scores: dict[str, NDArray[np.float64]]
    confidence: NDArray[np.float64] | None
    labels: int


@dataclass(frozen=True)
class Results:
    """Everything that the report is made of. `notes` are one-line remarks on what is missing or odd.

    `looks` are those that reports of this folder recorded, by task and student.
    """

    root: Path
    plan: Record
    runs: tuple[Run, ...]
    benchmarks: tuple[Record, ...]
    looks: dict[str, dict[str, list[Record]]]
    notes: tuple[str, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.configuration.task for run in self.runs))

    def runs_of(self, task: str, fraction: float = 1.0) -> list[Run]:
        """The runs of a task on this fraction of its training examples."""
        return [run for run in self.runs if (run.configuration.task, run.configuration.fraction) == (task, fraction)]


def load(root: Path) -> Results:
    """Read `raw_runs`; DataError if there is neither a plan nor a run."""
    layout, notes = Layout(root), list[str]()
    records, plan = _records(layout.runs, notes), _plan(layout.plan, notes)
    if not plan and not records:
        raise DataError(
            f"{root}: no results here (raw_runs/ holds neither plan.json nor runs); run `kdsuite run` first"
        )
    wanted, methods, runs = plan.get("runs") or list(records.values()), plan.get("methods") or {}, []
    for item in wanted:
        run_id, record = item["run_id"], records.get(item["run_id"])
        symbols = methods.get(item["spec"]["method"], {}).get("symbols")
        runs.append(planned_run(item, record, layout.runs / run_id, symbols))
        if record and not runs[-1].record:
            notes.append(f"{run_id}: the record on disk is of other settings and is left out")
    if strangers := sorted(set(records) - {run.run_id for run in runs}):
        notes.append(f"{len(strangers)} runs on disk are not in the plan and are left out: {', '.join(strangers)}")
    planned = {item["run_id"]: item.get("fingerprint") for item in wanted}
    benchmarks, looks = tuple(_benchmarks(layout, planned, notes)), _looks(layout.looks, notes)
    return Results(root, plan, tuple(runs), benchmarks, looks, tuple(notes))


def _records(raw: Path, notes: list[str]) -> dict[str, Record]:
    """Run records by run id; superseded ones are left out."""
    records = {}
    for path in sorted(raw.glob(f"*/{RECORD}")):
        name = path.parent.name
        if SUPERSEDED in name:
            continue
        try:
            record = read_json(path)
            records[name] = record | {"spec": dict(record["spec"])}
        except FileNotFoundError:  # another process begins it anew
            continue
        except (ValueError, KeyError, TypeError):
            notes.append(f"{name}: run.json cannot be read; the run counts as not run")
    return records


def _plan(path: Path, notes: list[str]) -> Record:
    try:
        return {**read_json(path)}
    except FileNotFoundError:
        problem = "is missing: what was asked for is unknown, only recorded runs are shown"
    except (ValueError, TypeError) as error:  # the latter: of another kind
        problem = f"cannot be read ({str(error).removeprefix(f'{path}: ')}): only recorded runs are shown"
    notes.append(f"raw_runs/plan.json {problem}")
    return {}


def _looks(path: Path, notes: list[str]) -> dict[str, dict[str, list[Record]]]:
    try:
        return {
            task: {
                student: [{"seeds": int(look["seeds"]), "runs": sorted(look["runs"])} for look in looks]
                for student, looks in students.items()
            }
            for task, students in (read_json(path) if path.exists() else {}).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        notes.append(f"summary/{path.name} cannot be read: earlier looks at these results are not counted")
        return {}


def _benchmarks(layout: Layout, planned: dict[str, str | None], notes: list[str]) -> Iterator[Record]:
    """The rows of all benchmarks, a task's own before those of other models.

    Not those of models that are no longer the plan's: rows bear names like S1, which other models had before.
    """
    for path in sorted(listed(layout.benchmarks, "*.json"), key=lambda path: path.stem):
        try:
            measured = dict(read_json(path))
            rows = [dict(row) for row in measured["rows"]]
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError):
            notes.append(f"benchmarks/{path.name} cannot be read and is left out")
            continue
        data = read_manifest(layout.results, str(measured.get("task"))).get("key")
        runs = measured.get("runs", {})
        if data and measured.get("data", data) != data:
            notes.append(f"benchmarks/{path.name} was measured on other examples and is left out")
        elif any(planned.get(run_id) != fingerprint for run_id, fingerprint in runs.items()):
            notes.append(f"benchmarks/{path.name} was measured with other models or settings and is left out")
        else:
            yield from rows


def read_predictions(run: Run, ids: tuple[str, ...] | None = None) -> Predictions:
    """The run's predictions.jsonl in the order of `ids`, which they must be of, each once; without, in the file's.

    DataError says what is wrong with it.
    """
    path = run.folder / PREDICTIONS
    try:
        written = (run.record.get("made") or {}).get(f"raw_runs/{run.run_id}/{path.name}")
        if written is not None and content_fingerprint(path) not in (written, None):
            raise DataError("predictions.jsonl was altered since it was written")
        rows = read_rows(path)
        if not rows:
            raise ValueError("no predictions")
        if ids is not None:
            found = {row["id"]: row for row in rows}
            missing, unknown, repeated = set(ids) - found.keys(), found.keys() - set(ids), len(rows) - len(found)
            if missing or unknown or repeated:
                raise DataError(
                    f"predictions.jsonl does not cover the reported split: {len(missing)} of {len(ids)} ids are "
                    f"missing, {len(unknown)} unknown, {repeated} repeated"
                )
            rows = [found[name] for name in ids]
        confidence = None
        if "label_logprobs" in rows[0]:  # softmax over the labels' sequence log-probabilities, of the likeliest
            x = np.array([list(row["label_logprobs"].values()) for row in rows], float)
            confidence = 1 / np.exp(x - x.max(axis=1, keepdims=True)).sum(axis=1)
        return Predictions(
            ids=tuple(row["id"] for row in rows),
            texts=tuple(row["prediction"] for row in rows),
            cleaned=tuple(row["prediction"] if row.get("cleaned") is None else row["cleaned"] for row in rows),
            references=tuple(tuple(row["references"]) for row in rows),
            scores={name: np.array([row["scores"][name] for row in rows], float) for name in rows[0]["scores"]},
            confidence=confidence,
            labels=len(rows[0].get("label_logprobs", ())),
        )
    except FileNotFoundError:
        raise DataError("predictions.jsonl is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"predictions.jsonl is not as documented ({error!r})") from None


def read_examples(root: Path, task: str) -> dict[str, Record]:
    """The reported split's examples by id, in its order; empty if not on disk, DataError if damaged."""
    path = Layout(root).processed(task) / "validation.jsonl"
    try:
        return {row["id"]: row for row in read_rows(path)}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); run `kdsuite prepare` again") from None


def read_history(run: Run) -> pd.DataFrame:
    """The rows of history.csv, with blanks and what is no number as NaN; empty if there is none that can be read."""
    try:
        rows = pd.read_csv(run.folder / HISTORY)
    except (FileNotFoundError, ValueError):  # the latter: of no rows, of uneven ones, of other bytes than UTF-8
        rows = pd.DataFrame()
    return pd.DataFrame({name: pd.to_numeric(rows[name], errors="coerce") for name in rows})


def read_manifest(root: Path, task: str) -> Record:
    """Source, revision, fingerprint and sizes of a task's prepared data; empty if it is not on disk."""
    return _facts(Layout(root).processed(task) / MANIFEST)


def teacher_quality(root: Path, task: str) -> list[Record]:
    """The quality reports beside the teacher's cached outputs, each with its cache's name."""
    paths = sorted((root / CACHES / task).glob(f"*/{QUALITY}"))
    return [{"cache": path.parent.name} | _facts(path) for path in paths]


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested dicts as dotted names and short texts."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from flatten(item, f"{name}.{index}")
    else:
        yield name, "—" if value is None else str(value)


def _facts(path: Path) -> Record:
    """A file that is only shown: what cannot be read says so; empty if there is none."""
    try:
        return dict(read_json(path))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError):
        return {"problem": f"{path.name} cannot be read"}

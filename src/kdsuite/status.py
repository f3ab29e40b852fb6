"""How far a results folder is: planned runs by state, what failed, and the time that the rest may take."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from kdsuite.errors import DataError, KdsuiteError
from kdsuite.runtime.duration import duration
from kdsuite.store.files import read_json
from kdsuite.store.layout import Layout
from kdsuite.store.records import Registry


def describe(results: Path) -> list[str]:
    """Lines for the reader. KdsuiteError if nothing was planned in `results`, DataError for a broken plan."""
    path = Layout(results).plan
    try:
        planned = read_json(path)["runs"]
    except FileNotFoundError:
        raise KdsuiteError(f"{results}: nothing was run here yet; start with `kdsuite run`") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: not a plan; `kdsuite run` writes it anew") from None
    notes: list[str] = []
    registry = Registry(results, notes.append)
    counts = registry.counts((run["run_id"], run["fingerprint"]) for run in planned)
    open_states = [f"{count} {state}" for state, count in counts.items() if count and state != "completed"]
    head = ", ".join([f"{counts['completed']} of {len(planned)} runs completed", *open_states])
    if counts["completed"] < len(planned):
        head += f"; about {duration(_seconds_left(planned, registry))} left"
    wanted = {run["run_id"]: run["fingerprint"] for run in planned}
    failed = [
        f"failed: {record['run_id']}: {record.get('reason')}"
        for record in registry.records()
        if record["status"] == "failed" and record.get("fingerprint") == wanted.get(record["run_id"])
    ]
    return [f"{results}: {head}", *failed, *notes]


def _seconds_left(planned: list[dict[str, Any]], registry: Registry) -> float | None:
    """The open runs at the pace of the completed ones of their task, method and fraction, else of any."""
    seconds: dict[tuple[str, str, float], list[float]] = {}
    open_runs = []
    for run in planned:
        kind = run["spec"]["task"], run["spec"]["method"], run["spec"].get("fraction", 1.0)
        if registry.state(run["run_id"], run["fingerprint"]) == "completed":
            timing = (registry.read(run["run_id"]) or {}).get("timing") or {}
            spent = [timing.get("train_seconds"), timing.get("evaluate_seconds")]
            seconds.setdefault(kind, []).append(sum(value or 0.0 for value in spent))
        else:
            open_runs.append(kind)
    everything = [value for values in seconds.values() for value in values]
    if not everything:
        return None
    return sum(fmean(seconds.get(kind, everything)) for kind in open_runs)

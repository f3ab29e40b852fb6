"""Writes results folders with known effects, by the documented formats, without training anything.

Every example has a difficulty that all methods share, every run a seed effect; a method's skill is the share of examples
it gets right on average. Known by construction: who is better, what is missing, what failed.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

LABELS = ("negative", "positive")
METRICS = {"sst2": ("accuracy", "f1"), "squad": ("f1", "exact_match")}
SKILLS = {"teacher": 0.90, "zero-shot": 0.52, "B0": 0.78, "KD1": 0.84, "KD2": 0.78, "KD3": 0.79}


@dataclass
class Study:
    """What to pretend. `skills` are shares right; `lost` maps run ids to failed, missing, nan or unfinished."""

    tasks: tuple[str, ...] = ("sst2", "squad")
    students: tuple[str, ...] = ("S1",)
    seeds: tuple[int, ...] = (42, 123, 456)
    n: int = 300
    skills: Mapping[str, float] = field(default_factory=lambda: SKILLS)
    grid: tuple[tuple[float, float], ...] = ((2.0, 0.3), (2.0, 0.5), (4.0, 0.3), (4.0, 0.5))
    seed_effect: float = 0.01
    lost: Mapping[str, str] = field(default_factory=dict)
    benchmark: bool = True
    seed: int = 0


def write_results(root: Path, study: Study) -> Path:
    """Write `raw_runs/` and `processed_data/` of the study below `root`, and return `root`."""
    random = np.random.default_rng(study.seed)
    planned = []
    for task in study.tasks:
        examples = _examples(task, study.n)
        _write_lines(root / "processed_data" / task / "validation.jsonl", examples)
        _write_json(root / "processed_data" / task / "manifest.json", {"source": "synthetic", "sizes": {"validation": study.n}})
        _write_json(root / "teacher_cache" / task / "0f1e2d3c" / "quality.json", {METRICS[task][0]: 91.0, "n": 200, "kept_share": 1.0})
        difficulty = random.random(study.n)
        for spec in _specs(task, study):
            run_id = _run_id(spec)
            planned.append({"run_id": run_id, "fingerprint": run_id, "spec": spec})
            _write_run(root / "raw_runs" / run_id, run_id, spec, examples, difficulty, study, random)
    settings = {"device": "cpu", "seeds": list(study.seeds), "tasks": {task: {"source": "synthetic"} for task in study.tasks}}
    plan = {"settings": settings, "created": "2026-01-01T00:00:00+00:00", "code_version": "0.1.0", "environment": _environment()}
    _write_json(root / "raw_runs" / "plan.json", plan | {"runs": planned})
    if study.benchmark:
        rows = [row for task in study.tasks for row in _benchmark_rows(task, study)]
        _write_json(root / "raw_runs" / "benchmarks" / "variants.json", {"fingerprint": "b", "rows": rows})
    return root


def _specs(task: str, study: Study) -> Iterable[dict[str, Any]]:
    empty = dict.fromkeys(("student", "seed", "temperature", "alpha", "feature_weight"))
    yield {"method": "teacher", "task": task, **empty}
    for student in study.students:
        yield {"method": "zero-shot", "task": task, **empty, "student": student}
        for seed in study.seeds:
            for method in [m for m in study.skills if m not in ("teacher", "zero-shot")]:
                base = {"method": method, "task": task, **empty, "student": student, "seed": seed}
                grid = study.grid if "KD1" in method else ((None, None),)
                weight = 1.0 if "KD3" in method else None
                yield from (base | {"temperature": t, "alpha": a, "feature_weight": weight} for t, a in grid)


def _run_id(spec: dict[str, Any]) -> str:
    parts = [spec["method"], spec["task"], spec["student"]]
    if spec["temperature"] is not None:
        parts += [f"T{spec['temperature']:g}", f"a{spec['alpha']:g}"]
    parts += [f"l{spec['feature_weight']:g}"] if spec["feature_weight"] is not None else []
    parts += [f"seed{spec['seed']}"] if spec["seed"] is not None else []
    return "_".join(filter(None, parts))


def _examples(task: str, n: int) -> list[dict[str, Any]]:
    if task == "sst2":
        return [
            {"id": f"sst2-validation-{i}", "inputs": {"sentence": f"The plot of film {i} is <b>fine</b> & \"odd\"."},
             "target": LABELS[i % 2], "references": [LABELS[i % 2]], "group": f"film {i}", "answer_start": None}
            for i in range(n)
        ]  # fmt: skip
    return [
        {"id": f"squad-validation-{i}", "inputs": {"context": f"Ada {i // 4} lives in New York, her aunt in Rome.", "question": f"Where does Ada live ({i % 4})?"},
         "target": "New York", "references": ["New York", "in New York"], "group": f"passage {i // 4}", "answer_start": 14}
        for i in range(n)
    ]  # fmt: skip


def _write_run(
    folder: Path, run_id: str, spec: dict[str, Any], examples: list[dict[str, Any]], difficulty: Any, study: Study, random: Any
) -> None:
    skill = study.skills[spec["method"]] + (random.normal(0, study.seed_effect) if spec["seed"] is not None else 0)
    bonus = 0.01 if (spec["temperature"], spec["alpha"]) == study.grid[-1] else 0.0
    right = difficulty + random.normal(0, 0.1, len(examples)) < skill
    fate = study.lost.get(run_id)
    if fate == "missing":
        return
    rows = [_prediction(spec["task"], example, bool(ok), random) for example, ok in zip(examples, right, strict=True)]
    validation = _aggregate(spec["task"], rows)
    record = {
        "run_id": run_id, "fingerprint": run_id, "status": "completed", "reason": None, "spec": spec,
        "metrics": {"dev": {k: v + 100 * bonus for k, v in validation.items()}, "validation": validation},
        "timing": {"train_seconds": 10.0, "evaluate_seconds": 1.0, "steps": 100, "peak_memory_mb": 900.0},
        "model": {"name": "m", "parameters": _parameters(spec["method"]), "disk_mb": _parameters(spec["method"]) * 4e-6},
        "selection": {"epoch": 2, "metric": METRICS[spec["task"]][0], "dev": [60.0, 70.0]} if spec["seed"] else None,
        "environment": _environment(), "code_version": "0.1.0", "started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:01:00+00:00",
    }  # fmt: skip
    if fate == "failed":
        record |= {"status": "failed", "reason": "loss is not finite at step 7", "metrics": {}}
    elif fate == "unfinished":
        record |= {"status": "interrupted", "metrics": {}}
    elif fate == "nan":
        record["metrics"] = {"dev": {METRICS[spec["task"]][0]: math.nan}, "validation": {METRICS[spec["task"]][0]: math.nan}}
    _write_json(folder / "run.json", record)
    if fate is None:
        _write_lines(folder / "predictions.jsonl", rows)
        _write_history(folder / "history.csv", validation[METRICS[spec["task"]][0]])


def _prediction(task: str, example: dict[str, Any], ok: bool, random: Any) -> dict[str, Any]:
    if task == "sst2":
        gold = example["target"]
        said = gold if ok else LABELS[1 - LABELS.index(gold)]
        sure = float(random.uniform(0.1, 3.0))
        logprobs = {label: -0.1 - (0.0 if label == said else sure) for label in LABELS}
        return {"id": example["id"], "prediction": said, "references": example["references"],
                "scores": {"accuracy": float(ok)}, "label_logprobs": logprobs}  # fmt: skip
    said = "New York" if ok else ("York" if random.random() < 0.3 else "Rome")
    f1 = {"New York": 1.0, "York": 2 / 3, "Rome": 0.0}[said]
    return {"id": example["id"], "prediction": said, "references": example["references"],
            "scores": {"exact_match": float(f1 == 1), "f1": f1}, "raw": f"{said}."}  # fmt: skip


def _aggregate(task: str, rows: list[dict[str, Any]]) -> dict[str, float]:
    means = {name: 100 * float(np.mean([row["scores"][name] for row in rows])) for name in rows[0]["scores"]}
    if task == "sst2":
        hits = sum(row["prediction"] == row["references"][0] == LABELS[1] for row in rows)
        total = sum((row["prediction"] == LABELS[1]) + (row["references"][0] == LABELS[1]) for row in rows)
        means["f1"] = 200 * hits / total
    return means | {"n": len(rows)}


def _write_history(path: Path, final: float) -> None:
    columns = "step,epoch,loss,loss_ce,loss_kd,loss_feature,learning_rate,grad_norm,dev_metric,seconds".split(",")
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for step in range(10, 101, 10):
            writer.writerow({"step": step, "epoch": step / 50, "loss": 2.0 / step, "seconds": step / 10})
            if step % 50 == 0:
                writer.writerow({"step": step, "epoch": step / 50, "dev_metric": final - 10 + step / 10})


def _benchmark_rows(task: str, study: Study) -> Iterable[dict[str, Any]]:
    variants = [("teacher", None, "full", 9.0), *((m, "S1", "full", 3.0) for m in study.skills if m != "teacher"), ("KD1", "S1", "int8", 4.0)]
    for method, student, variant, decode in variants:
        for batch in (1, 4):
            parameters = _parameters(method)
            yield {
                "model": student or "teacher", "variant": variant, "device": "cpu", "dtype": "float32", "batch_size": batch,
                "prompt_tokens": 64, "new_tokens": 32, "first_token_ms": 4 * decode, "decode_ms_per_token": decode,
                "p95_ms_per_token": 1.2 * decode, "tokens_per_second": 1000 * batch / decode, "peak_memory_mb": 500.0 + parameters * 4e-6,
                "disk_mb": parameters * (1e-6 if variant == "int8" else 4e-6), "parameters": parameters,
                "task": task, "student": student, "method": method, "metric": METRICS[task][0],
                "metric_value": 100 * study.skills[method],
            }  # fmt: skip


def _parameters(method: str) -> int:
    return 50_000_000 if method == "teacher" else 5_000_000


def _environment() -> dict[str, Any]:
    return {"python": "3.11", "device": "cpu", "device_reason": "asked for", "libraries": {"torch": "2.13.0"}}


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

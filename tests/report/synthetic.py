"""Writes results folders with known effects, by the documented formats, without training anything.

Every example has a difficulty that all methods share, every run a seed effect; a method's skill is the share
of examples it gets right on average. So it is known who is better, what is missing and what failed.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Record = dict[str, Any]

LABELS = ("negative", "positive")
METRICS = {"sst2": ("accuracy", "f1"), "squad": ("f1", "exact_match")}
TITLES = {"sst2": "SST-2", "squad": "SQuAD"}
CITATIONS = {"sst2": "SST-2 (Socher et al. 2013)", "squad": "SQuAD v1.1 (Rajpurkar et al. 2016)"}
PROMPTS = {  # an input's name stands between two private-use characters
    "sst2": "Review: \ue000sentence\ue001\nIs the sentiment of this review positive or negative? Answer with one word.",
    "squad": "Context: \ue000context\ue001\n\nQuestion: \ue000question\ue001\n\n"
    "Answer with a short span copied from the context.",
}
SYMBOLS = {"temperature": "T", "alpha": "α", "feature_weight": "λ"}
METHODS = {
    "B0": "fine-tuning",
    "KD1": "logit distillation",
    "KD2": "sequence-level distillation",
    "KD3": "feature distillation",
    "KD1+KD3": "logit and feature distillation",
    "CKD": "confident <distillation>",  # from outside
}
SKILLS = {"teacher": 0.90, "zero-shot": 0.52, "B0": 0.78, "KD1": 0.84, "KD2": 0.78, "KD3": 0.79}
HISTORY = "step epoch loss loss_ce loss_kd loss_feature learning_rate grad_norm dev_metric seconds".split()


@dataclass
class Study:
    """What to pretend. `skills`: shares right; `lost`: run ids as failed, missing, nan or unfinished."""

    tasks: tuple[str, ...] = ("sst2", "squad")
    students: tuple[str, ...] = ("S1",)
    seeds: tuple[int, ...] = (42, 123, 456)
    n: int = 300
    one_group: bool = False  # all examples of a task are questions of one passage
    skills: Mapping[str, float] = field(default_factory=lambda: SKILLS)
    grid: tuple[tuple[float, float], ...] = ((2.0, 0.3), (2.0, 0.5), (4.0, 0.3), (4.0, 0.5))
    gammas: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # a grid of methods from outside
    seed_effect: float = 0.01
    noise: float = 0.1  # how much two runs disagree beyond their skill
    fractions: Mapping[float, Mapping[str, float]] = field(default_factory=dict)  # skills that are other there
    dev_shift: float = 0.0  # points by which dev is easier than the reported split
    lost: Mapping[str, str] = field(default_factory=dict)
    benchmark: bool = True
    seed: int = 0


def write_results(root: Path, study: Study) -> Path:
    """Write `raw_runs/`, `processed_data/` and `teacher_cache/` of the study below `root`; returns `root`."""
    random = np.random.default_rng(study.seed)
    runs = []
    for task in study.tasks:
        examples = list(_examples(task, study.n))
        if study.one_group:
            examples = [example | {"group": "passage 0"} for example in examples]
        _write_prepared(root, task, examples)
        difficulty = random.random(study.n)
        for spec in _specs(task, study):
            run_id = _run_id(spec)
            runs.append({"run_id": run_id, "fingerprint": f"print of {run_id}", "spec": spec})
            rows = _predictions(spec, examples, difficulty, study, random)
            _write_run(root / "raw_runs" / run_id, runs[-1], rows, study)
    plan = {
        "settings": {"device": "cpu", "seeds": list(study.seeds), "tasks": dict.fromkeys(study.tasks, "made up")},
        "created": "2026-01-01T00:00:00+00:00",
        "code_version": "0.1.0",
        "environment": _environment(),
        "runs": runs,
        "tasks": {task: _about(task) | _sizes(study) for task in study.tasks},
        "methods": {method: _method(method) for method in study.skills if method in METHODS},
    }
    _write_json(root / "raw_runs" / "plan.json", plan)
    if study.benchmark:
        rows = [row for task in study.tasks for row in _benchmark_rows(task, study)]
        _write_json(root / "raw_runs" / "benchmarks" / "all.json", {"fingerprint": "b", "rows": rows})
    return root


def _write_prepared(root: Path, task: str, examples: list[Record]) -> None:
    _write_lines(root / "processed_data" / task / "validation.jsonl", examples)
    leaks = {"validation": {"examples": len(examples), "contained": 3}}
    manifest = {"source": "made up", "sizes": {"validation": len(examples)}, "in_training_text": leaks}
    _write_json(root / "processed_data" / task / "manifest.json", manifest)
    quality = {METRICS[task][0]: 91.0, "n": 200, "kept_share": 1.0}
    _write_json(root / "teacher_cache" / task / "0f1e2d3c" / "quality.json", quality)


def _examples(task: str, n: int) -> Iterator[Record]:
    for i in range(n):
        common: Record = {"id": f"{task}-validation-{i}", "answer_start": None}
        if task == "sst2":
            text = f'Film {i} is <b>fine</b> & "odd" </script> ünïcode.'
            label = LABELS[i % 2]
            yield common | {"inputs": {"sentence": text}, "target": label, "references": [label], "group": text}
        else:
            inputs = {"context": f"Ada {i // 4} lives in New York.", "question": f"Where is Ada ({i % 4})?"}
            answers = {"target": "New York", "references": ["New York", "in New York"]}
            yield common | {"inputs": inputs, "group": f"passage {i // 4}"} | answers


def _about(task: str) -> Record:
    return {
        "title": TITLES[task],
        "metric": METRICS[task][0],
        "secondary_metric": METRICS[task][1],
        "labels": list(LABELS) if task == "sst2" else None,
        "licence": None,
        "citation": CITATIONS[task],
        "prompt": PROMPTS[task],
    }


def _sizes(study: Study) -> Record:
    sizes = [{"fraction": f, "examples": round(400 * f)} for f in (*sorted(study.fractions), 1.0)]
    return {"fractions": sizes} if study.fractions else {}


def _method(method: str) -> Record:
    names = ("temperature", "alpha") if "KD1" in method else ()
    names += ("feature_weight",) if "KD3" in method else ()
    return {"title": METHODS[method], "symbols": {n: SYMBOLS[n] for n in sorted(names)}}


def _specs(task: str, study: Study) -> Iterator[Record]:
    """The whole, then fractions of the training examples."""
    whole = list(_of_whole(task, study))
    yield from whole
    yield from (spec | {"fraction": f} for f in study.fractions for spec in whole if spec["seed"] is not None)


def _of_whole(task: str, study: Study) -> Iterator[Record]:
    empty: Record = {"student": None, "seed": None, "point": {}}
    yield {"method": "teacher", "task": task, **empty}
    for student in study.students:
        yield {"method": "zero-shot", "task": task, **empty, "student": student}
        for seed in study.seeds:
            for method in study.skills:
                if method in ("teacher", "zero-shot"):
                    continue
                about = {"method": method, "task": task, "student": student, "seed": seed}
                weight = {"feature_weight": 1.0} if "KD3" in method else {}
                if method in study.gammas:
                    for gamma in study.gammas[method]:
                        yield about | {"point": {"gamma": gamma}}
                    continue
                for temperature, alpha in study.grid if "KD1" in method else ((None, None),):
                    soft = {} if temperature is None else {"temperature": temperature, "alpha": alpha}
                    yield about | {"point": dict(sorted((soft | weight).items()))}  # as JSON is written


def _run_id(spec: Record) -> str:
    parts = [spec["method"], spec["task"], spec["student"]]
    letters = {"temperature": "T", "alpha": "a", "feature_weight": "l", "gamma": "gamma"}
    parts += [f"{letter}{spec['point'][name]:g}" for name, letter in letters.items() if name in spec["point"]]
    parts += [f"seed{spec['seed']}"] if spec["seed"] is not None else []
    parts += [f"f{spec['fraction']:g}"] if "fraction" in spec else []
    return "_".join(filter(None, parts))


def _predictions(
    spec: Record, examples: list[Record], difficulty: NDArray[np.float64], study: Study, random: Generator
) -> list[Record]:
    shift = random.normal(0, study.seed_effect) if spec["seed"] is not None else 0.0
    skill = study.fractions.get(spec.get("fraction", 1.0), {}).get(spec["method"], study.skills[spec["method"]])
    right = difficulty + random.normal(0, study.noise, len(examples)) < skill + shift
    answer = _label if spec["task"] == "sst2" else _span
    return [answer(example, bool(ok), random) for example, ok in zip(examples, right, strict=True)]


def _label(example: Record, ok: bool, random: Generator) -> Record:
    gold = example["target"]
    said = gold if ok else LABELS[1 - LABELS.index(gold)]
    sure = float(random.uniform(0.1, 3.0))
    logprobs = {label: -0.1 - (0.0 if label == said else sure) for label in LABELS}
    scores = {"accuracy": float(ok)}
    return _prediction(example, said, scores) | {"label_logprobs": logprobs}


def _span(example: Record, ok: bool, random: Generator) -> Record:
    said = "New York" if ok else ("York" if random.random() < 0.3 else "Rome")
    f1 = {"New York": 1.0, "York": 2 / 3, "Rome": 0.0}[said]
    scores = {"exact_match": float(f1 == 1), "f1": f1}
    return _prediction(example, said, scores | {f"cleaned_{k}": v for k, v in scores.items()}) | {"cleaned": said}


def _prediction(example: Record, said: str, scores: dict[str, float]) -> Record:
    return {"id": example["id"], "prediction": said, "references": example["references"], "scores": scores}


def _write_run(folder: Path, planned: Record, rows: list[Record], study: Study) -> None:
    spec, fate = planned["spec"], study.lost.get(planned["run_id"])
    if fate == "missing":
        return
    metric, scores = METRICS[spec["task"]][0], _aggregate(spec["task"], rows)
    favourite = (spec["point"].get("temperature"), spec["point"].get("alpha")) == study.grid[-1]
    dev = {k: v + (5 * favourite + study.dev_shift) * (k != "n") for k, v in scores.items()}
    record = planned | {
        "status": "completed",
        "reason": None,
        "metrics": {"dev": dev, "validation": scores},
        "timing": {
            "train_seconds": 10.0,
            "evaluate_seconds": 2.0,
            "steps": 100,
            "examples_per_second": 50.0,
            "supervised_tokens_per_second": 100.0,
            "peak_memory_mb": 900.0,
        },
        "teacher": {"name": "t", "seconds": 8.0} if "KD" in spec["method"] else None,
        "model": {"name": "m", "parameters": _parameters(spec["method"]), "disk_mb": 20.0},
        "selection": {"epoch": 2, "metric": metric, "dev": [60.0, 70.0]} if spec["seed"] else None,
        "environment": _environment(),
        "code_version": "0.1.0",
    }
    if fate == "failed":
        record |= {"status": "failed", "reason": "loss is not finite at step 7", "metrics": {}}
    elif fate == "unfinished":
        record |= {"status": "interrupted", "metrics": {}}
    elif fate == "nan":
        record["metrics"] = {"dev": {metric: math.nan}, "validation": {metric: math.nan}}
    _write_json(folder / "run.json", record)
    if fate is None:
        _write_lines(folder / "predictions.jsonl", rows)
        _write_history(folder / "history.csv", scores[metric])


def _aggregate(task: str, rows: list[Record]) -> dict[str, float]:
    means = {name: 100 * float(np.mean([row["scores"][name] for row in rows])) for name in rows[0]["scores"]}
    if task == "sst2":
        said = [row["prediction"] == LABELS[1] for row in rows]
        gold = [row["references"][0] == LABELS[1] for row in rows]
        hits = sum(s and g for s, g in zip(said, gold, strict=True))
        means["f1"] = 200 * hits / max(1, sum(said) + sum(gold))
    return means | {"n": len(rows)}


def _write_history(path: Path, final: float) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, HISTORY)
        writer.writeheader()
        for step in range(10, 101, 10):
            writer.writerow({"step": step, "epoch": step / 50, "loss": 2.0 / step, "seconds": step / 10})
            if step % 50 == 0:
                writer.writerow({"step": step, "epoch": step / 50, "dev_metric": final - 10 + step / 10})


def _benchmark_rows(task: str, study: Study) -> Iterator[Record]:
    variants: list[tuple[str, str, str | None, float]] = [("teacher", "teacher", None, 9.0)]
    trained = [method for method in study.skills if method != "teacher"]
    variants += [(method, "S1", None, 3.0 + rank / 20) for rank, method in enumerate(trained)]
    variants += [("KD1", "S1", "int8", 4.0), ("other", "my-model", None, 5.0)]
    for method, student, bits, decode in variants:
        untold = method if method not in ("teacher", "other") else None
        name = " ".join(filter(None, (student, untold, bits)))
        parameters = _parameters(method)
        for batch in (1, 4):
            yield {
                "model": student,
                "variant": name,
                "task": task,
                "student": student,
                "method": method,
                "quantization": bits,
                "device": "cpu",
                "dtype": "float32",
                "batch_size": batch,
                "prompt_tokens": 64,
                "new_tokens": 32,
                "first_token_ms": 4 * decode,
                "decode_ms_per_token": decode,
                "p95_ms_per_token": 1.2 * decode,
                "tokens_per_second": 1000 * batch / decode,
                "peak_memory_mb": 500.0 + parameters * 4e-6,
                "disk_mb": parameters * (1e-6 if bits else 4e-6),
                "parameters": parameters,
                "metric": METRICS[task][0],
                "metric_value": 100 * study.skills.get(method, 0.6),
                "noise_percent": 2.0,
            }


def _parameters(method: str) -> int:
    return 50_000_000 if method == "teacher" else 5_000_000


def _environment() -> Record:
    return {"python": "3.11", "device": "cpu", "device_reason": "asked for", "libraries": {"torch": "2.13.0"}}


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def _write_lines(path: Path, rows: list[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

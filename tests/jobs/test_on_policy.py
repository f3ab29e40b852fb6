"""GKD from configuration to record, on every kind of task; and what it shares with the other methods' cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdsuite import pipeline
from kdsuite.config import Settings
from kdsuite.runtime.progress import Progress

KINDS = {
    "classification": {"labels": ["a", "b"], "source": "rows.jsonl"},
    "short_answer": {"source": "rows.jsonl"},
    "generation": {"source": "rows.jsonl"},
}


@pytest.mark.parametrize("student", ["student", "teacher"])  # another tokenizer, the same one
def test_every_kind_of_task_is_learned_on_policy(tmp_path: Path, models, monkeypatch, student: str) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"text": f"text {i}", "label": "ab"[i % 2], "question": f"what {i}?", "answer": f"word {i}",
         "prompt": f"say {i}", "completion": f"word {i}"}
        for i in range(40)
    ]  # fmt: skip
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"epochs": 1, "batch_size": 8}
    settings = Settings.model_validate(
        {
            "threads": 1,
            "dtype": "float32",
            "seeds": [1],
            "methods": ["B0", "KD1", "GKD"],
            "tasks": {
                kind: {"kind": kind, "max_new_tokens": 4, "training": training, **own} for kind, own in KINDS.items()
            },
            "models": {
                "teacher": {"name": str(models["teacher"])},
                "students": {"S1": {"name": str(models[student])}},
                "lora": {"enabled": False},
            },
            "kd1": {"temperatures": [1], "alphas": [0.0], "top_k": 16},
            "gkd": {"lambdas": [0, 1], "divergence": "forward_kl"},
        }
    )
    outcome = pipeline.run(settings, tmp_path / "r", ("prepare", "cache", "train"), progress=Progress.silent())
    assert outcome.failed == []

    def losses(run_id: str) -> str:
        text = (tmp_path / "r" / "raw_runs" / run_id / "history.csv").read_text()
        return "\n".join(",".join(line.split(",")[:4]) for line in text.splitlines())

    for kind in KINDS:
        gold, own = (losses(f"GKD_{kind}_S1_p{share}_seed1") for share in (0, 1))
        assert gold == losses(f"KD1_{kind}_S1_T1_a0_seed1"), "λ = 0 is logit distillation without the gold answer"
        assert (own == gold) == (kind == "classification"), "where labels are scored there is nothing to write"

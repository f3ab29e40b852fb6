"""KD1 and KD2 from a real llama.cpp server, killed and started again in the middle."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdsuite import pipeline
from kdsuite.config import Settings
from kdsuite.jobs import teaching
from kdsuite.jobs.bench import Bench
from kdsuite.runtime import device
from kdsuite.runtime.progress import Progress
from kdsuite.store.records import Registry
from kdsuite.teacher import client
from kdsuite.teacher.client import Client

TASK = {
    "train_size": 12, "dev_size": 4, "validation_size": 4, "max_length": 400, "quality_floor": 0,
    "max_new_tokens": 4, "training": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3},
}  # fmt: skip


def make(models: dict[str, Path], teacher: dict[str, Any]) -> Settings:
    return Settings.model_validate(
        {
            "threads": 1,
            "dtype": "float32",
            "seeds": [42],
            "methods": ["KD1", "KD2"],
            "tasks": {"squad": TASK},
            "models": {
                "teacher": teacher,
                "students": {"S1": {"name": str(models["student"])}},
                "lora": {"enabled": False},
            },
            "kd1": {"temperatures": [2.0], "alphas": [0.5], "top_k": 16},
        }
    )


def run(settings: Settings, results: Path, *stages: str) -> pipeline.Outcome:
    return pipeline.run(settings, results, stages, progress=Progress(stream=io.StringIO(), live=False))


def cache(settings: Settings, results: Path) -> Any:
    bench = Bench(settings, results, device.choose("cpu", "float32", 1), Progress.silent())
    return teaching.teacher_cache(bench, "squad"), teaching.taught(bench, "squad", "teacher")


@pytest.mark.slow
def test_kd1_and_kd2_learn_from_a_server_that_was_killed_what_they_learn_from_the_model(
    tmp_path: Path, models: dict[str, Path], served: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.02)
    server, exchange, asked = served(models["teacher"]), Client._exchange, list[Any]()
    name = server.ask("/tokenize", content="a") and client.httpx2.get(server.url + "/v1/models").json()["data"][0]["id"]
    there = make(models, {"url": server.url, "model": name, "tokenizer": str(models["teacher"]), "concurrency": 2})
    here = make(models, {"name": str(models["teacher"])})

    def counted(self: Client, path: str, body: Any) -> Any:
        reply = exchange(self, path, body)
        if body and body.get("n_probs") == 16:
            asked.append((tuple(body["prompt"]), body["logit_bias"][0][0]))
            if len(asked) == 40:
                server.kill()
        return reply

    monkeypatch.setattr(Client, "_exchange", counted)
    assert "is not reached" in run(there, tmp_path / "there", "cache").failed[0][1]
    server.start()
    assert run(there, tmp_path / "there", "cache", "train").failed == []
    assert run(here, tmp_path / "here", "cache", "train").failed == []
    one, examples = cache(there, tmp_path / "there")
    other, _ = cache(here, tmp_path / "here")
    for example in examples:
        a, b = one[example.id]["topk_logprobs"], other[example.id]["topk_logprobs"]
        np.testing.assert_allclose(a, b, atol=1e-3)
    # of what was on its way, or at a position of an example that was not done, some is asked again
    assert len(asked) - len(set(asked)) <= 4 * max(len(e.targets) for e in examples)
    for run_id in ("KD1_squad_S1_T2_a0.5_seed42", "KD2_squad_S1_seed42", "teacher_squad"):
        records = [Registry(tmp_path / folder).read(run_id) or {} for folder in ("there", "here")]
        assert records[0]["metrics"] == records[1]["metrics"]

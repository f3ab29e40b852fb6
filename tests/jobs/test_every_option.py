"""Every installed method under every option that changes its loss, for some steps, on every kind of task, with a
student of another tokenizer and with one of the teacher's: the loss is a number, the student learns,
and where it is its teacher there is nothing that they differ in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from kdsuite import pipeline
from kdsuite.config import Settings
from kdsuite.config.plugins import METHODS, plugins
from kdsuite.jobs import teaching
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.models import chat, for_training
from kdsuite.jobs.training import gather
from kdsuite.methods.base import method
from kdsuite.methods.kd1 import DivergenceKind
from kdsuite.methods.losses import UNPROJECTED
from kdsuite.methods.terms import Distiller
from kdsuite.plan import RunSpec
from kdsuite.runtime import device
from kdsuite.runtime.progress import Progress
from kdsuite.teacher import local
from kdsuite.train.loop import train

NAMES = sorted(name for name, one in plugins(METHODS).items() if type(one).__module__.startswith("kdsuite."))
KD1 = {"temperatures": [2.0], "alphas": [0.5], "top_k": 16}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    *(("KD1", {"kd1": {"divergence": kind}}) for kind in get_args(DivergenceKind)),
    *(("KD1", {"kd1": {"cross_tokenizer": how}}) for how in ("uld", "hybrid")),
    *(("KD1", {"kd1": {"standardise": True, "divergence": kind}}) for kind in ("forward_kl", "taid")),
    *(("KD1", {"kd1": {"targets": kind}}) for kind in ("sampled", "topk_sampled", "auto")),
    *(("KD2", {"kd2": {"filter": which, "min_confidence": 0.34}}) for which in ("agrees_with_gold", "confident")),
    *(("KD3", {"kd3": {"loss": loss}}) for loss in ("mse", "gram", "procrustes")),
    *(("GKD", {"gkd": {"lambdas": [share]}}) for share in (0.0, 1.0)),
    ("GKD", {"gkd": {"lambdas": [1.0], "first_tokens": 0.5, "divergence": "reverse_kl", "cross_tokenizer": "hybrid"}}),
]
CACHED: list[dict[str, Any]] = [  # what is kept of the teacher differs; the last is for all other options
    {"standardise": True}, *({"targets": kind} for kind in ("sampled", "topk_sampled", "auto")), {}
]  # fmt: skip
KINDS = {"classification": {"labels": ["a", "b", "c"]}, "short_answer": {}, "generation": {"metrics": ["exact_match"]}}


def make(folder: Path, models: dict[str, Path], **sections: dict[str, Any]) -> Settings:
    task = {
        "source": str(folder / "rows.jsonl"),
        "train_size": 8,
        "dev_size": 4,
        "max_new_tokens": 4,
        "quality_floor": 0,
    }
    training = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1, "warmup_ratio": 0}
    tree = {
        "threads": 1,
        "dtype": "float32",
        "seeds": [1],
        "methods": NAMES,
        "tasks": {kind: task | {"kind": kind, "training": training} | own for kind, own in KINDS.items()},
        "models": {
            "teacher": {"name": str(models["teacher"])},
            "students": {"S1": {"name": str(models["student"])}, "S2": {"name": str(models["teacher"])}},
            "lora": {"enabled": False},
        },
        "kd1": KD1 | sections.get("kd1", {}),
    }
    return Settings.model_validate(tree | {key: own for key, own in sections.items() if key != "kd1"})


def bench(settings: Settings, results: Path) -> Bench:
    choice = device.choose(settings.device, settings.dtype, settings.threads)
    return Bench(settings, results, choice, Progress.silent())


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> tuple[Path, list[Bench]]:
    """Caches of three tasks, with all that some option needs; the teacher's texts are said for it."""
    folder = tmp_path_factory.mktemp("options")
    rows = [
        {"text": f"text {i}", "label": "abc"[i % 3], "question": f"what {i}?", "answer": f"word {i % 2}",
         "prompt": f"say {i}", "completion": f"word {i % 2}"}
        for i in range(24)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "generate", lambda model, chat, prompts, *_: [("word 1", -0.1)] * len(prompts))
        patch.setattr(local, "written", lambda model, chat, prompts, *_: [("for a reason", -0.1, True)] * len(prompts))
        for kd1 in CACHED:
            settings = make(folder, models, kd1=kd1)
            assert not pipeline.run(settings, folder / "r", ("prepare", "cache"), progress=Progress.silent()).failed
    return folder, [bench(make(folder, models, kd1=kd1), folder / "r") for kd1 in CACHED]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sections"), OPTIONS, ids=str)
def test_it_learns_on_every_kind_of_task_in_both_pairs(taught, models, name: str, sections: dict[str, Any]) -> None:
    folder, benches = taught
    settings = make(folder, models, **sections)
    own = sections.get("kd1", {}).items()
    known, here = (
        next(b for kd1, b in zip(CACHED, benches, strict=True) if kd1.items() <= own),
        bench(settings, folder / "r"),
    )
    here.kept = known.kept  # encodings, models: none of them depends on an option
    here.forget(teaching.lessons, teaching.lesson_examples)
    for kind in KINDS:
        for student in settings.students:
            [point] = method(name).points(settings)
            material, loss = gather(here, RunSpec(name, kind, student, 1, point))
            with for_training(here, student, False) as model:
                before = [p.detach().clone() for p in model.parameters()]
                distiller = Distiller(model, len(chat(here, student).token_bytes), loss())
                record = train(distiller, material, here.choice)
                assert record.steps == 2 - (len(material.examples) == 1)
                assert all(math.isfinite(value) for row in record.history for value in row.values())
                moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
                assert any(moved), (kind, student)
                first = record.history[0]
                differ = [first[part] for part in ("loss_kd", "loss_feature") if part in first]
                if sections.get("kd3", {}).get("loss", "cosine") not in UNPROJECTED:  # a projection begins at random
                    differ = [first["loss_kd"]] if "loss_kd" in first else []
                drawn = known.settings.kd1.targets != "topk_tail" and kind != "classification"
                none = 0.03 if drawn else 1e-4  # an estimate, less a constant
                assert all((abs(value) < none) == (student == "S2") for value in differ), (kind, student, differ)
    known.kept |= here.kept

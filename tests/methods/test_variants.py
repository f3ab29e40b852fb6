"""A method under other settings, beside the method itself: the same runs as if these were everybody's settings."""

from __future__ import annotations

import json
import pickle
import re
from importlib import import_module
from pathlib import Path

import pytest

from kdsuite import pipeline
from kdsuite.config import Settings, changed
from kdsuite.methods.base import method
from kdsuite.plan import expand
from kdsuite.runtime.progress import Progress

ULD = {"methods": ["B0", "KD1", "KD1-uld"], "variants": {"KD1-uld": {"kd1": {"cross_tokenizer": "uld"}}}}


def test_a_variant_is_its_method_with_its_own_settings(one_task: Settings) -> None:
    settings = changed(one_task, ULD)
    alone = changed(one_task, {"kd1.cross_tokenizer": "uld"})
    base, variant = method("KD1"), method("KD1-uld")
    assert variant.identity(settings) == base.identity(alone) != base.identity(settings)
    assert (variant.needs, variant.symbols, variant.lesson) == (base.needs, base.symbols, base.lesson)
    assert variant.title == "logit distillation (uld)"
    assert variant is method("KD1-uld")  # what is remembered by method is found again
    ids = [spec.run_id for spec in expand(settings) if spec.trained]
    assert ids == ["B0_mine_little_seed42", "KD1_mine_little_T2_a0.5_seed42", "KD1-uld_mine_little_T2_a0.5_seed42"]
    assert pickle.loads(pickle.dumps(settings)) == settings  # as workers get it


def test_a_variant_has_a_grid_of_its_own(one_task: Settings) -> None:
    settings = changed(
        one_task, ULD | {"variants": {"KD1-uld": {"kd1": {"temperatures": [1.0], "alphas": [0.1, 0.9]}}}}
    )
    assert method("KD1-uld").points(settings) == [{"temperature": 1, "alpha": a} for a in (0.1, 0.9)]
    assert method("KD1").points(settings) == [{"temperature": 2, "alpha": 0.5}]


def test_of_methods_with_dashes_the_longest_name_is_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = import_module("kdsuite.config.plugins")
    monkeypatch.setattr(plugins, "plugins", lambda group: {"my": object(), "my-way": object()})
    found = [plugins.base_method(name) for name in ("my", "my-way", "my-way-2", "my-2", "your-way")]
    assert found == ["my", "my-way", "my-way", "my", None]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": ["B0", "KD1-uld"], "variants": {}}, "'KD1-uld' is neither installed nor under `variants`"),
        ({"variants": {"KD1-a": {"kd1": {"cross_tokenizr": "uld"}}}}, "'variants.KD1-a.kd1.cross_tokenizr'; did you"),
        ({"variants": {"KD1-a": {"kd1": {"cross_tokenizer": "x"}}}}, "variants.KD1-a.kd1.cross_tokenizer: Input"),
        ({"variants": {"KD1-a": {"kd1": {"temperatures": [4], "cross_tokenizer": "uld"}}}}, "uld at temperature 4"),
        ({"variants": {"KD1-a": {"kd2": {"filter": "all"}}}}, "variants.KD1-a.kd2: KD1 has only kd1"),
        ({"variants": {"KD1-a": {}}}, "variants.KD1-a sets nothing"),
        ({"variants": {"B0-a": {"kd1": {"top_k": 3}}}}, "B0 has no settings"),
        ({"variants": {"uld": {"kd1": {"top_k": 3}}}}, "variants.uld: a variant is named after its method"),
        ({"variants": {"KD1": {"kd1": {"top_k": 3}}}}, "variants.KD1: a variant is named after its method"),
        ({"variants": {"KD1-a/b": {"kd1": {"top_k": 3}}}}, "'KD1-a/b' cannot be the name of a method"),
        ({"variants": {"KD1-a": {"kd1": 3}}}, "valid dictionary"),
    ],
)
def test_what_is_no_variant_is_told_with_its_place(one_task: Settings, change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        changed(one_task, ULD | change)


@pytest.mark.slow
def test_its_runs_are_those_of_its_settings_byte_for_byte_and_stand_beside_the_methods_own(
    one_task: Settings, tmp_path: Path
) -> None:
    """Over two tokenizers, where answers are free (labels are scored exactly); the teacher is asked once for both."""

    def predictions(settings: Settings, name: str, run: str) -> bytes:
        stages = ("prepare", "cache", "train", *(["report"] if name == "both" else []))
        assert pipeline.run(settings, tmp_path / name, stages, progress=Progress.silent()).failed == []
        return (tmp_path / name / "raw_runs" / run / "predictions.jsonl").read_bytes()

    sizes = one_task.tasks["mine"].model_dump(include={"train_size", "dev_size", "validation_size", "training"})
    one_task = changed(
        one_task, {"tasks": {"mine": {"preset": "squad", "max_new_tokens": 4, "quality_floor": 0, **sizes}}}
    )
    settings = changed(one_task, ULD | {"report.comparisons": [["KD1-uld", "KD1"]]})
    point = "mine_little_T2_a0.5_seed42"
    alone = changed(one_task, {"kd1.cross_tokenizer": "uld"})
    ours = predictions(settings, "both", f"KD1-uld_{point}")
    assert ours == predictions(alone, "alone", f"KD1_{point}")
    assert ours != predictions(settings, "both", f"KD1_{point}")
    assert len(list((tmp_path / "both" / "teacher_cache" / "mine").iterdir())) == 1
    plan = json.loads((tmp_path / "both" / "raw_runs" / "plan.json").read_text())
    assert plan["methods"]["KD1-uld"]["title"] == "logit distillation (uld)"
    table = (tmp_path / "both" / "summary" / "table_4_3_significance.csv").read_text()
    assert "KD1-uld" in table
    assert "logit distillation (uld)" in (tmp_path / "both" / "report.html").read_text()

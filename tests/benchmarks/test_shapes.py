"""The benchmarks' examples are laid out as the suite's own encoder does it, and are of the lengths they say."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("shapes")


def test_examples_are_laid_out_as_the_encoder_does_it(shapes) -> None:
    [example] = shapes.examples("SST-2", 1)
    prompt = example.segments.count(0)
    assert example.input_ids[prompt:] == [5, 6, 7]
    assert example.position_ids[prompt:] == [prompt, prompt + 1, prompt]
    assert example.segments[prompt:] == [1, 1, 2]
    assert example.sources == [prompt - 1, prompt, prompt + 1, prompt - 1, prompt + 2]
    assert example.targets == [5, 6, shapes.END, 7, shapes.END]
    plain = shapes.as_plain(example)
    target = [5, 6, shapes.END] if example.gold == 0 else [7, shapes.END]
    assert plain["input_ids"] == example.input_ids[:prompt] + target
    assert plain["labels"] == [-100] * prompt + target


def test_lengths_follow_the_deciles(shapes) -> None:
    for task, deciles in shapes.PROMPTS.items():
        lengths = [e.segments.count(0) for e in shapes.examples(task, 2_000)]
        assert np.percentile(lengths, range(10, 100, 10)) == pytest.approx(deciles[1:-1], rel=0.05)


def test_every_sampled_answer_is_of_the_same_number_of_tokens(shapes) -> None:
    training = importlib.import_module("training")
    some = shapes.examples("SQuAD", 3, shapes.TINY)
    case = training.Case("SQuAD", shapes.TINY, 3, 1, shapes.TINY)
    written = training.rollouts(case, shapes.model(shapes.TINY), some)
    learned = written.learned(shapes.model(shapes.TINY), some, seed=0, step=0)
    assert [e.prompt for e in learned] == [e.prompt for e in some]
    assert [len(e.targets) for e in learned] == [training.NEW] * 3
    assert written.of(learned).ids.shape == (3 * training.NEW, training.KEPT)


def test_a_shapes_body_is_what_its_model_has_in_its_layers(shapes) -> None:
    model = shapes.model(shapes.TINY)
    linear = [p.numel() for name, p in model.named_parameters() if "layers" in name and p.dim() == 2]
    assert sum(linear) == shapes.TINY.body

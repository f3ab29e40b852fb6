from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from kdsuite.benchmark.latency import random_prompts, timed_generation


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_the_tokens_are_those_of_greedy_generation(models: Path, name: str):
    model = loaded(models / name)
    prompts = random_prompts(model, 3, 7)
    expected = model.generate(prompts, max_new_tokens=6, min_new_tokens=6, do_sample=False, eos_token_id=-1)
    assert torch.equal(timed_generation(model, prompts, 6).tokens, expected[:, 7:])


def test_a_model_that_would_stop_at_once_still_emits_every_token(models: Path):
    model = loaded(models / "student")
    prompts = random_prompts(model, 1, 7)
    model.generation_config.eos_token_id = int(timed_generation(model, prompts, 1).tokens)
    assert model.generate(prompts, max_new_tokens=6, do_sample=False).shape[1] == 8
    timing = timed_generation(model, prompts, 6)
    assert timing.tokens.shape == (1, 6)
    assert len(timing.steps) == 5


def test_models_of_one_vocabulary_read_the_same_prompts(models: Path):
    teacher, student = loaded(models / "teacher"), loaded(models / "student")
    assert torch.equal(random_prompts(teacher, 2, 50), random_prompts(student, 2, 50))

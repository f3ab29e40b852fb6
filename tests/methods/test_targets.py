"""Teacher outputs reach the right student position, whatever the order, the epoch and the batch."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdsuite.config import task_section
from kdsuite.methods.alignment import align, map_vocabulary
from kdsuite.methods.base import Kept
from kdsuite.methods.targets import SoftTargets, TeacherTargets
from kdsuite.tasks.batching import LengthGroupedSampler, collate
from kdsuite.tasks.encoding import encode
from kdsuite.tasks.example import task_of
from kdsuite.teacher.base import Together
from kdsuite.teacher.cached import CachedTeacher, build_cache
from kdsuite.teacher.local import LocalTeacher, OutputSettings, ask

TASKS = {"sst2": task_of("sst2", task_section("sst2")), "squad": task_of("squad", task_section("squad"))}


def cached(folder: Path, task: str, model, chat, examples) -> CachedTeacher:
    keep = OutputSettings(16, "float32", (2.0,), (2,), len(TASKS[task].labels or ()))
    key = {"outputs": vars(keep) | {"temperatures": [2.0]}}
    return build_cache(folder, key, examples, lambda batch: ask(model, chat, batch, keep), 4)


@pytest.fixture
def squad(tmp_path, squad_settings, qwen_model, qwen_chat, llama_chat):
    task = TASKS["squad"]
    examples = task_of(task.name, squad_settings).load("train")[:20]
    cache = cached(
        tmp_path, "squad", qwen_model, qwen_chat, encode(task_of(task.name, squad_settings), qwen_chat, examples)
    )
    return cache, encode(task_of(task.name, squad_settings), llama_chat, examples)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_method_reads_as_many_tokens_as_it_asked_for_however_many_others_keep(
    tmp_path: Path, squad_settings, qwen_model, qwen_chat, llama_chat, dtype: str
) -> None:
    """So that what is learned from depends on the method's own settings, not on those of the methods beside it."""
    task = task_of("squad", squad_settings)
    texts = task.load("train")[:6]
    examples, students = encode(task, qwen_chat, texts), encode(task, llama_chat, texts)

    def read(top_k: int, kept_as: str, *own: Kept) -> SoftTargets:
        keep = OutputSettings(top_k, kept_as, (3.0,), standardised=True)
        key, folder = {"outputs": vars(keep) | {"temperatures": [3.0]}}, tmp_path / f"{top_k}-{kept_as}-{len(own)}"
        cache = build_cache(folder, key, examples, lambda batch: ask(qwen_model, qwen_chat, batch, keep), 4)
        return TeacherTargets(cache, map_vocabulary(qwen_chat, llama_chat), 3.0, (), "topk_tail", *own).of(students)

    alone, beside = read(4, dtype), read(16, "float32", Kept(4, dtype))
    for field in fields(SoftTargets):
        expected, found = getattr(alone, field.name), getattr(beside, field.name)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-3 if dtype == "float16" else 1e-5)
    assert beside.ids is not None and beside.ids.shape[-1] == 4
    assert beside.log_probs is not None and alone.log_probs is not None
    assert torch.equal(beside.log_probs, alone.log_probs)
    whole = read(16, "float32")
    assert whole.log_tail is not None and beside.log_tail is not None and (whole.log_tail < beside.log_tail).all()


def test_found_by_id_under_shuffling_across_epochs_and_evaluation_in_between(squad, qwen_chat, llama_chat) -> None:
    cache, students = squad
    targets = TeacherTargets(cache, map_vocabulary(qwen_chat, llama_chat), 2.0, (2,))
    alone = {e.id: targets.of([e]) for e in students}
    sampler = LengthGroupedSampler([len(e) for e in students], 6, seed=42)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        order = []
        for indices in sampler:
            batch = [students[i] for i in indices]
            soft = targets.of(batch)
            assert soft.ids is not None and soft.hidden is not None
            torch.testing.assert_close(soft.ids, torch.cat([alone[e.id].ids for e in batch]))
            torch.testing.assert_close(soft.log_probs, torch.cat([alone[e.id].log_probs for e in batch]))
            torch.testing.assert_close(soft.hidden[0], torch.cat([alone[e.id].hidden[0] for e in batch]))
            order += [e.id for e in batch]
            targets.of(students[:2])  # somebody else reads in between
        assert sorted(order) == sorted(alone)
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]


def test_an_aligned_position_predicts_the_same_bytes_in_both_models(squad, qwen_chat, llama_chat) -> None:
    cache, students = squad
    targets = TeacherTargets(cache, map_vocabulary(qwen_chat, llama_chat), None, ())
    batch = collate(students, llama_chat.pad_id)
    soft = targets.of(students)
    expected = [
        example.spans[example.gold_slice][own]
        for example in students
        for own, _ in align(
            [(int(a), int(b)) for a, b in cache[example.id]["spans"]], example.spans[example.gold_slice]
        )
    ]
    flat = [span for example in students for span in example.spans]
    assert [flat[int(p)] for p in soft.positions] == expected
    assert len(soft.positions) <= len(batch.targets)
    assert soft.ids is None and soft.hidden is None


def test_class_scores_are_in_the_order_of_the_batch(tmp_path, sst2_settings, qwen_model, qwen_chat, llama_chat) -> None:
    task = TASKS["sst2"]
    examples = task_of(task.name, sst2_settings).load("train")[:8]
    cache = cached(
        tmp_path, "sst2", qwen_model, qwen_chat, encode(task_of(task.name, sst2_settings), qwen_chat, examples)
    )
    students = encode(task_of(task.name, sst2_settings), llama_chat, examples)[::-1]
    soft = TeacherTargets(cache, map_vocabulary(qwen_chat, llama_chat), 2.0, ()).of(students)
    assert soft.class_scores is not None
    expected = np.stack([cache[e.id]["class_scores"] for e in students])
    np.testing.assert_array_equal(soft.class_scores.numpy(), expected)


def test_an_example_that_was_never_cached_is_an_error_not_a_guess(squad, qwen_chat, llama_chat) -> None:
    cache, students = squad
    targets = TeacherTargets(cache, map_vocabulary(qwen_chat, llama_chat), 2.0, ())
    with pytest.raises(KeyError, match="stranger"):
        targets.of([replace(students[0], id="stranger")])


def test_hidden_states_computed_online_are_those_of_the_cache(
    squad, squad_settings, qwen_model, qwen_chat, llama_chat
) -> None:
    cache, students = squad
    task = TASKS["squad"]
    examples = encode(
        task_of(task.name, squad_settings), qwen_chat, task_of(task.name, squad_settings).load("train")[:20]
    )
    online = LocalTeacher(qwen_model, qwen_chat, OutputSettings(layers=(2,)), known={e.id: e for e in examples})
    vocabulary = map_vocabulary(qwen_chat, llama_chat)
    one = TeacherTargets(cache, vocabulary, None, (2,)).of(students[3:9])
    other = TeacherTargets(online, vocabulary, None, (2,)).of(students[3:9])
    assert one.hidden is not None and other.hidden is not None
    torch.testing.assert_close(other.hidden[0], one.hidden[0], atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(other.positions, one.positions)
    both = TeacherTargets(Together(online, cache), vocabulary, 2.0, (2,)).of(students[3:9])
    assert both.ids is not None and both.hidden is not None

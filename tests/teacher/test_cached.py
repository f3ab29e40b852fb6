"""Teacher outputs are found by id, rebuilt when altered, and say what the teacher says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kdsuite.config import task_section
from kdsuite.errors import RunError
from kdsuite.store.layout import MANIFEST
from kdsuite.tasks.encoding import encode
from kdsuite.tasks.example import task_of
from kdsuite.teacher import shards
from kdsuite.teacher.cached import CachedTeacher, build_cache, is_complete
from kdsuite.teacher.local import OutputSettings, ask

TASKS = {"sst2": task_of("sst2", task_section("sst2")), "squad": task_of("squad", task_section("squad"))}

KEEP = OutputSettings(top_k=16, dtype="float32", temperatures=(2.0, 4.0), layers=(1, 3), labels=0)


class Teacher:
    """A real tiny teacher that counts what it is asked."""

    def __init__(self, model, chat):
        self.model, self.chat, self.asked = model, chat, 0

    def __call__(self, examples):
        self.asked += len(examples)
        return ask(self.model, self.chat, examples, KEEP)


@pytest.fixture
def teacher(qwen_model, qwen_chat) -> Teacher:
    return Teacher(qwen_model, qwen_chat)


@pytest.fixture
def examples(qwen_chat, squad_settings):
    task = TASKS["squad"]
    return encode(task_of(task.name, squad_settings), qwen_chat, task_of(task.name, squad_settings).load("validation"))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD", 6)


def build(folder: Path, examples, teacher) -> CachedTeacher:
    return build_cache(folder, {"k": 1}, examples, teacher, batch_size=4)


def test_records_are_found_by_id_whatever_the_order_and_the_batch(tmp_path, examples, teacher) -> None:
    cache = build(tmp_path, examples, teacher)
    assert len(cache) == len(examples)
    for example in examples[::-1]:
        [alone] = ask(teacher.model, teacher.chat, [example], KEEP)
        record = cache[example.id]
        assert record["spans"].tolist() == [list(span) for span in example.spans]
        for name in ("topk_logprobs", "logsumexp", "hidden_1", "hidden_3"):
            np.testing.assert_allclose(record[name], alone[name], atol=2e-3)


def test_what_is_kept_is_what_the_model_says(tmp_path, examples, teacher) -> None:
    record = build(tmp_path, examples, teacher)[examples[3].id]
    ids = torch.tensor([examples[3].input_ids])
    with torch.no_grad():
        output = teacher.model(input_ids=ids, output_hidden_states=True)
    logits = output.logits[0, examples[3].sources].float()
    top, top_ids = logits.log_softmax(-1).topk(16)
    np.testing.assert_allclose(record["topk_logprobs"], top, atol=1e-4)
    assert (record["topk_ids"] == top_ids.numpy()).mean() > 0.95  # ties may be ordered otherwise
    for column, temperature in enumerate((1.0, 2.0, 4.0)):
        np.testing.assert_allclose(record["logsumexp"][:, column], (logits / temperature).logsumexp(-1), atol=1e-4)
    np.testing.assert_allclose(
        record["hidden_3"].astype(np.float32), output.hidden_states[3][0, examples[3].sources], atol=2e-3
    )


def test_a_complete_cache_asks_nothing_again(tmp_path, examples, teacher) -> None:
    build(tmp_path, examples, teacher)
    asked = teacher.asked
    build(tmp_path, examples, teacher)
    assert teacher.asked == asked == len(examples)


def test_an_interrupted_build_goes_on_behind_the_last_whole_shard(tmp_path, examples, teacher) -> None:
    class Interrupted(Exception):
        pass

    def failing(batch):
        if teacher.asked >= 12:
            raise Interrupted
        return teacher(batch)

    with pytest.raises(Interrupted):
        build(tmp_path, examples, failing)
    assert not is_complete(tmp_path, {"k": 1})
    before = teacher.asked
    build(tmp_path, examples, teacher)
    assert teacher.asked - before == len(examples) - 12
    assert is_complete(tmp_path, {"k": 1})


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_shard_is_noticed_and_only_it_is_rebuilt(tmp_path, examples, teacher, damage) -> None:
    expected = build(tmp_path, examples, teacher)[examples[8].id]["topk_logprobs"].copy()
    shard = tmp_path / "part-00001.safetensors"
    data = bytearray(shard.read_bytes())
    if damage == "truncate":
        shard.write_bytes(data[:-100])
    elif damage == "flip":
        data[-50] ^= 0x40
        shard.write_bytes(data)
    else:
        shard.unlink()
    assert not is_complete(tmp_path, {"k": 1})
    before = teacher.asked
    cache = build(tmp_path, examples, teacher)
    assert teacher.asked - before == 6
    np.testing.assert_array_equal(cache[examples[8].id]["topk_logprobs"], expected)


def test_what_is_drawn_depends_on_an_examples_id_alone(tmp_path, examples, qwen_model, qwen_chat) -> None:
    """Not on its batch, nor on when its shard is built."""
    keep = OutputSettings(top_k=16, temperatures=(2.0,), draws=("sampled", "topk_sampled"))

    def drawing(batch):
        return ask(qwen_model, qwen_chat, batch, keep)

    cache = build(tmp_path, examples, drawing)
    records = [cache[example.id] for example in examples]
    (tmp_path / "part-00001.safetensors").unlink()
    again = build(tmp_path, examples, drawing)
    for example, record in zip(examples, records, strict=True):
        [alone] = drawing([example])
        for kind in keep.draws:
            np.testing.assert_array_equal(again[example.id][f"{kind}_ids"], record[f"{kind}_ids"])
            np.testing.assert_array_equal(alone[f"{kind}_ids"], record[f"{kind}_ids"])
            ids, log_probs = (record[f"{kind}_{what}"] for what in ("ids", "logprobs"))
            assert ids.shape == log_probs.shape == (len(example.targets), 2, {"sampled": 16, "topk_sampled": 8}[kind])
        likeliest = record["topk_ids"][:, None, :8, None]
        assert not (record["topk_sampled_ids"][:, :, None] == likeliest).any()


def test_another_key_is_a_miss(tmp_path, examples, teacher) -> None:
    build(tmp_path, examples, teacher)
    assert not is_complete(tmp_path, {"k": 2})


def test_a_manifest_that_is_not_json_is_a_miss(tmp_path, examples, teacher) -> None:
    build(tmp_path, examples, teacher)
    (tmp_path / MANIFEST).write_text("{")
    assert not is_complete(tmp_path, {"k": 1})
    build(tmp_path, examples, teacher)
    assert is_complete(tmp_path, {"k": 1})


def test_outputs_that_are_not_finite_are_refused(tmp_path, examples, teacher) -> None:
    def broken(batch):
        records = teacher(batch)
        records[0]["topk_logprobs"][0, 0] = np.nan
        return records

    with pytest.raises(RunError, match="topk_logprobs are not finite"):
        build(tmp_path, examples, broken)
    assert not is_complete(tmp_path, {"k": 1})


def test_class_scores_are_kept_for_tasks_with_labels(tmp_path, qwen_model, qwen_chat, sst2_settings) -> None:
    task = TASKS["sst2"]
    keep = OutputSettings(top_k=4, dtype="float16", temperatures=(), layers=(), labels=2)
    reviews = encode(task_of(task.name, sst2_settings), qwen_chat, task_of(task.name, sst2_settings).load("validation"))
    cache = build_cache(tmp_path, {}, reviews, lambda batch: ask(qwen_model, qwen_chat, batch, keep), 4)
    record = cache[reviews[5].id]
    assert record["class_scores"].shape == (2,)
    assert record["topk_logprobs"].dtype == np.float16
    assert len(record["topk_ids"]) == len(reviews[5].targets[reviews[5].gold_slice])

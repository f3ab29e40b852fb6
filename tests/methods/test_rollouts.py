"""On-policy distillation: what the student writes, what the teacher says of it, and that nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from kdsuite.config import Settings, TrainingSettings, task_section
from kdsuite.errors import SettingsError
from kdsuite.methods.alignment import map_vocabulary
from kdsuite.methods.base import LIVE, OnPolicy
from kdsuite.methods.rollouts import Rollouts
from kdsuite.methods.targets import TeacherTargets
from kdsuite.methods.terms import Distiller, Divergence
from kdsuite.models import generation
from kdsuite.models.forward import supervised_logits
from kdsuite.models.generation import generate, sample
from kdsuite.plan import expand, refuse_gaps
from kdsuite.runtime import device
from kdsuite.runtime.environment import capture
from kdsuite.runtime.process import seed_everything
from kdsuite.tasks.batching import collate
from kdsuite.tasks.encoding import ChatTokenizer, Encoded, encode
from kdsuite.tasks.example import task_of
from kdsuite.teacher.base import HERE
from kdsuite.teacher.local import LocalTeacher, OutputSettings
from kdsuite.train.checkpoint import Checkpoints
from kdsuite.train.loop import Material, train

TASK = task_of("squad", task_section("squad", {"train_size": 40, "dev_size": 10, "validation_size": 20}))
MORE = 8  # new tokens


@pytest.fixture(scope="module")
def pair(qwen_model, qwen_chat, llama_model, llama_chat):
    """Teacher and student of two tokenizers, the same of one, by name."""
    return {
        "two": (qwen_model, qwen_chat, llama_model, llama_chat),
        "one": (qwen_model, qwen_chat, copy.deepcopy(qwen_model), qwen_chat),
    }


def rollouts(pair: Any, share: float, **how: float) -> tuple[Rollouts, list[Encoded]]:
    teacher, asking, _, chat = pair
    examples = TASK.load("train")[:22]
    asked = {e.id: e for e in encode(TASK, asking, examples)}
    keep = OutputSettings(top_k=min(64, len(asking.token_bytes)))
    live = LocalTeacher(teacher, asking, keep, known=asked)
    gold = TeacherTargets(live, map_vocabulary(asking, chat), 1.0, ())
    made = Rollouts(OnPolicy(share, **how), gold, live, chat, asking, asked, MORE)
    return made, encode(TASK, chat, examples)


def learn(
    pair: Any, targets: Any, examples: list[Encoded], checkpoints: Checkpoints | None = None, stop: int = 0,
    say: Callable[[str], None] = lambda line: None,
):  # fmt: skip
    _, _, model, chat = pair
    student = copy.deepcopy(model).requires_grad_(True)
    distiller = Distiller(student, len(chat.token_bytes), {"kd": Divergence(1.0, 1.0, "reverse_kl")})
    seed_everything(42)
    steps = 0

    def advance(step: int, of: int) -> None:
        nonlocal steps
        steps = step
        if stop and step == stop:
            raise InterruptedError

    fields = TrainingSettings(epochs=2, batch_size=8, learning_rate=1e-3, logging_steps=1, checkpoint_minutes=1e-9)
    choice = device.choose("cpu", "float32", 1)
    material = Material(examples, chat.pad_id, fields, 42, targets)
    record = train(distiller, material, choice, advance=advance, checkpoints=checkpoints, say=say)
    return torch.cat([p.detach().flatten() for p in student.parameters()]), record


@pytest.mark.parametrize("tokenizers", ["one", "two"])
def test_a_share_of_0_is_distillation_with_the_teacher_online_bit_for_bit(pair, tokenizers: str) -> None:
    made, examples = rollouts(pair[tokenizers], 0.0)
    ours, record = learn(pair[tokenizers], made, examples)
    theirs, other = learn(pair[tokenizers], made.gold, examples)
    assert torch.equal(ours, theirs)
    assert [row["loss"] for row in record.history] == [row["loss"] for row in other.history]


@pytest.mark.parametrize("tokenizers", ["one", "two"])
def test_a_share_of_1_learns_something_else_on_as_many_examples(pair, tokenizers: str) -> None:
    made, examples = rollouts(pair[tokenizers], 1.0)
    ours, record = learn(pair[tokenizers], made, examples)
    theirs, other = learn(pair[tokenizers], made.gold, examples)
    assert not torch.equal(ours, theirs)
    assert (record.steps, record.examples) == (other.steps, other.examples)


def test_where_labels_are_scored_no_teacher_has_to_read_what_is_written(settings_tree) -> None:
    settings = Settings.model_validate(settings_tree | {"methods": ["GKD"]})
    refuse_gaps(settings, expand(settings, tasks=["sst2"]), HERE - {LIVE})
    with pytest.raises(SettingsError, match="GKD on squad needs the teacher's live"):
        refuse_gaps(settings, expand(settings, tasks=["squad"]), HERE - {LIVE})


def test_half_of_the_batches_are_the_students(pair) -> None:
    made, examples = rollouts(pair["one"], 0.5)
    written = [made.learned(pair["one"][2], examples, 42, step) != examples for step in range(60)]
    assert 18 <= sum(written) <= 42  # 99.9 % of binomial(60, ½)


@pytest.mark.parametrize("tokenizers", ["one", "two"])
def test_the_teacher_reads_what_the_student_wrote_at_the_bytes_it_wrote_it(pair, tokenizers: str) -> None:
    made, examples = rollouts(pair[tokenizers], 1.0)
    chat: ChatTokenizer = pair[tokenizers][3]
    learned = made.learned(pair[tokenizers][2], examples, 42, 0)
    changed = [(new, old) for new, old in zip(learned, examples, strict=True) if new != old]
    assert len(changed) > len(examples) / 2
    for new, old in changed:
        said, read = made._texts[new.id], new.spans[new.gold_slice]
        assert new.prompt == old.prompt and new.input_ids[len(new.prompt) :] == new.targets[:-1]
        text = (chat.bytes_of([t for t in new.targets if t not in chat.final_ids]) or b"")[len(chat.gap) :]
        theirs = [t for t in said.targets if t not in made.asking.final_ids]
        assert (made.asking.bytes_of(theirs) or b"").strip() == text.strip()
        assert all(a[1] == b[0] for a, b in zip(read, read[1:], strict=False)) and read[-1][1] == len(text)
    soft = made.of(learned)
    assert len(soft.positions) > 0 and soft.log_probs is not None and bool(soft.log_probs.isfinite().all())


def test_a_teacher_of_the_same_tokens_reads_the_blank_that_its_own_template_writes(llama_model, llama_chat) -> None:
    """As Llama 2 behind `[/INST]`, to a student whose template ends prompts with a line break."""
    tokenizer = copy.deepcopy(llama_chat.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    asking = ChatTokenizer(tokenizer)
    assert (asking.gap, llama_chat.gap) == (b" ", b"")
    made, [example, *_] = rollouts((llama_model, asking, llama_model, llama_chat), 1.0)
    learned = made._written(example, llama_chat.answer("Oslo").ids)
    assert learned.targets == llama_chat.answer("Oslo").ids
    assert made._texts[example.id].targets == asking.answer("Oslo").ids


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_its_own_answers(pair) -> None:
    made, examples = rollouts(pair["one"], 1.0)
    _, _, model, chat = pair["one"]
    learned = made.learned(model, examples, 42, 3)
    batch = collate(learned, chat.pad_id)
    distiller = Distiller(model, len(chat.token_bytes), {"kd": Divergence(1.0, 1.0, "reverse_kl")})
    with torch.no_grad():
        [value] = distiller(batch, made.of(learned)).values()
    assert float(value) / len(learned) == pytest.approx(0.0, abs=1e-4)


def test_the_random_numbers_of_a_training_do_not_depend_on_what_is_written_in_it(pair) -> None:
    made, examples = rollouts(pair["two"], 1.0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = made.learned(pair["two"][2], examples, 42, 7)
    assert torch.equal(torch.get_rng_state(), before)
    assert made.learned(pair["two"][2], examples, 42, 7) == one
    assert made.learned(pair["two"][2], examples, 42, 8) != one
    assert made.learned(pair["two"][2], examples, 43, 7) != one


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_training_that_was_stopped_between_rollouts_goes_on_exactly(pair, tmp_path, stop: int) -> None:
    made, examples = rollouts(pair["two"], 0.5)
    whole, record = learn(pair["two"], made, examples)
    checkpoints = Checkpoints(tmp_path, 1e-9, capture(device.choose("cpu", "float32", 1)))
    with pytest.raises(InterruptedError):
        learn(pair["two"], rollouts(pair["two"], 0.5)[0], examples, checkpoints, stop)
    resumed, again = learn(pair["two"], rollouts(pair["two"], 0.5)[0], examples, checkpoints)
    assert torch.equal(whole, resumed)
    assert [row["loss"] for row in again.history] == [row["loss"] for row in record.history]


def test_where_memory_runs_out_the_student_writes_to_fewer_at_a_time(pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def bounded(model: Any, prompts: Any, families: Any, *about: Any, **options: Any) -> Any:
        if sum(len(family.members) for family in families) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return decode(model, prompts, families, *about, **options)

    made, examples = rollouts(pair["two"], 1.0)
    decode = generation.decode
    monkeypatch.setattr(generation, "decode", bounded)
    _, record = learn(pair["two"], made, examples, say=(said := []).append)
    assert (record.steps, record.examples, record.micro_batch_size) == (6, 44, None)
    assert said == [f"out of memory on cpu; going on with batches of {size}" for size in (4, 2)]


def test_samples_follow_the_models_own_distribution(qwen_model, qwen_chat) -> None:
    """First tokens of 4,000 samples against the probabilities that the model gives them: χ² of the likeliest ten."""
    [example] = encode(TASK, qwen_chat, TASK.load("train")[:1])
    said = sample(qwen_model, qwen_chat, [example.prompt] * 4000, 1, 1.0, seed=3)
    batch = collate([example], qwen_chat.pad_id)
    with torch.no_grad():
        logits, _ = supervised_logits(qwen_model, batch, torch.tensor([0]), len(qwen_chat.token_bytes))
    probabilities, ids = logits[0].softmax(-1).topk(10)
    counts = torch.tensor([sum(tokens == [id] for tokens in said) for id in ids.tolist()])
    expected = 4000 * probabilities
    assert float(((counts - expected) ** 2 / (expected * (1 - probabilities))).sum()) < 37.7  # 99.99 % of χ²(11)


def test_next_to_no_temperature_is_what_greedy_answers_say(llama_model, llama_chat) -> None:
    prompts = [e.prompt for e in encode(TASK, llama_chat, TASK.load("train")[:6])]
    said = sample(llama_model, llama_chat, prompts, MORE, 1e-4, seed=1)
    greedy = [text for text, _ in generate(llama_model, llama_chat, prompts, MORE, 6)]
    assert [llama_chat.decode(llama_chat.cut(ids)).startswith(text) for ids, text in zip(said, greedy, strict=True)]
    assert max(map(len, said)) <= MORE


def test_only_the_first_tokens_are_written_if_they_are_asked_for(pair) -> None:
    made, examples = rollouts(pair["two"], 1.0, first_tokens=0.25)
    learned = made.learned(pair["two"][2], examples, 42, 0)
    assert all(len(new.targets) <= 2 for new, old in zip(learned, examples, strict=True) if new != old)


def test_what_is_no_text_is_not_learned_from(pair) -> None:
    made, [example, *_] = rollouts(pair["two"], 1.0)
    chat: ChatTokenizer = pair["two"][3]
    half = chat.tokenizer.convert_tokens_to_ids("<0xE2>")  # the first byte of three
    assert made._written(example, [half]) == example
    assert made._written(example, [chat.end_id]) == example  # an empty answer
    assert made._written(replace(example), [half, chat.end_id]) == example

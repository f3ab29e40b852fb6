"""Real language models say here what plain transformers says of them, prompt for prompt.

Skipped unless $KDSUITE_REAL_MODELS names a folder with one save_pretrained folder per model. Twice as long as needed:
the reference reads every prompt alone.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from kdsuite.config import ModelSettings, task_section
from kdsuite.evaluate.predict import label_scores
from kdsuite.models.forward import compact
from kdsuite.models.generation import STOP, generate
from kdsuite.models.loading import load_chat, load_model, source_of
from kdsuite.tasks.encoding import encode, encode_prompts
from kdsuite.tasks.example import task_of

TASKS = {"sst2": task_of("sst2", task_section("sst2")), "squad": task_of("squad", task_section("squad"))}

FOLDER = os.environ.get("KDSUITE_REAL_MODELS")
MODELS = sorted(p.name for p in Path(FOLDER).iterdir() if (p / "config.json").exists()) if FOLDER else []
SENTENCES, QUESTIONS, NEW_TOKENS = 100, 50, 16
NOISE = 0.12  # nats per token: what bfloat16 rounds away between one batch and another in a model of 1.5 billion

pytestmark = [pytest.mark.skipif(not MODELS, reason="no real models here"), pytest.mark.timeout(7200)]


@pytest.fixture(scope="module", params=MODELS or ["none"])
def loaded(request):
    source = source_of(ModelSettings(name=str(Path(FOLDER or "") / request.param)), {})
    ours = load_model(source, torch.device("cpu"), torch.bfloat16)
    plain = AutoModelForCausalLM.from_pretrained(source.where, dtype=torch.bfloat16).eval()
    plain.get_output_embeddings().register_forward_pre_hook(compact)  # the same numbers, hundreds of times faster
    return ours, plain, load_chat(source)


def read(model, chat, texts: list[tuple[list[int], list[int]]]) -> list[float]:
    """Log-probability of each answer behind its prompt, by plain transformers: one padded batch."""
    longest = max(len(prompt) + len(answer) for prompt, answer in texts) - 1
    rows = [prompt + answer[:-1] for prompt, answer in texts]
    ids = torch.tensor([row + [chat.end_id] * (longest - len(row)) for row in rows])
    logits = model(input_ids=ids).logits[:, :, : len(chat.token_bytes)]
    return [
        one[len(prompt) - 1 : len(prompt) - 1 + len(answer)]
        .float()
        .log_softmax(-1)[range(len(answer)), answer]
        .sum()
        .item()
        for one, (prompt, answer) in zip(logits, texts, strict=True)
    ]


@torch.inference_mode()
def test_label_scores_are_those_of_every_label_read_alone(loaded, real: Path) -> None:
    """But for rounding, whose size is that of plain transformers' own answers alone and in a batch."""
    ours, plain, chat = loaded
    task, settings = TASKS["sst2"], task_section("sst2", source=str(real / "sst2"))
    encoded = encode(task_of(task.name, settings), chat, task_of(task.name, settings).load("validation")[:SENTENCES])
    scores = label_scores(ours, chat, encoded, 2, 16)
    alone, batched = [], []
    for example in encoded:
        prompt = example.input_ids[: example.segments.count(0)]
        answers = [
            [t for t, c in zip(example.targets, example.choices, strict=True) if c == choice] for choice in (0, 1)
        ]
        alone.append([read(plain, chat, [(prompt, answer)])[0] for answer in answers])
        batched.append(read(plain, chat, [(prompt, answer) for answer in answers] + [(prompt * 2, answers[0])])[:2])
    reference, noise = torch.tensor(alone), (torch.tensor(alone) - torch.tensor(batched)).abs()
    off = (scores - reference).abs()
    agree = ((scores[:, 1] > scores[:, 0]) == (reference[:, 1] > reference[:, 0])).sum().item()
    print(
        f"\n{plain.config.model_type}: label scores off by {off.mean():.3f} nats ({off.max():.3f} at most), plain "
        f"ones in a batch by {noise.mean():.3f} ({noise.max():.3f}); {agree} of {len(encoded)} labels agree"
    )
    assert off.mean() <= 2 * noise.mean() + 0.01
    assert off.max() <= 3 * noise.max() + 0.03
    assert agree >= 0.9 * len(encoded)


@torch.inference_mode()
def test_answers_are_those_of_every_prompt_asked_alone(loaded, real: Path) -> None:
    """Where they differ, two tokens were equally likely but for rounding."""
    ours, plain, chat = loaded
    task, settings = TASKS["squad"], task_section("squad", source=str(real / "squad"), max_new_tokens=NEW_TOKENS)
    examples = task_of(task.name, settings).load("validation")[:QUESTIONS]
    prompts = [w for windows in encode_prompts(task_of(task.name, settings), chat, examples) for w in windows][
        :QUESTIONS
    ]
    said = generate(ours, chat, prompts, NEW_TOKENS, 8)
    equal, unexplained = 0, []
    for prompt, (text, _) in zip(prompts, said, strict=True):
        new = plain.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW_TOKENS, do_sample=False, repetition_penalty=1.0, eos_token_id=sorted(chat.final_ids),
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        tokens = chat.cut(new.sequences[0, len(prompt) :].tolist())
        alone = STOP.split(chat.decode(tokens))[0]
        if alone == text:
            equal += 1
            continue
        margins = [(s[0].float().topk(2).values[0] - s[0].float().topk(2).values[1]).item() for s in new.logits]
        if min(margins[: len(tokens) + 1]) > 2 * NOISE * math.sqrt(len(tokens) + 1):
            unexplained.append((alone, text))
    print(f"\n{plain.config.model_type}: {equal} of {len(prompts)} answers are equal")
    assert not unexplained
    assert equal >= 0.8 * len(prompts)


@torch.inference_mode()
def test_a_base_model_reads_its_first_token(loaded, real: Path) -> None:
    """With what its tokenizer puts before every text; without it Gemma's perplexity is several times as high."""
    _, plain, chat = loaded
    task, settings = TASKS["squad"], task_section("squad", source=str(real / "squad"))
    added = chat.tokenizer("a")["input_ids"][:1]
    if chat.bytes_of(added) is not None:
        pytest.skip("this tokenizer adds nothing")
    prompts = chat.prompt_ids([task.messages(e) for e in task_of(task.name, settings).load("validation")[:200:10]])

    def perplexity(texts: list[list[int]]) -> float:
        losses = [plain(input_ids=torch.tensor([t]), labels=torch.tensor([t])).loss.item() for t in texts]
        return math.exp(sum(losses) / len(losses))

    with_it, without = perplexity(prompts), perplexity([p[1:] for p in prompts])
    print(f"\n{plain.config.model_type}: perplexity {with_it:.1f}, without its first token {without:.1f}")
    assert all(p[:1] == added and p[1:2] != added for p in prompts)
    assert with_it < without / 2

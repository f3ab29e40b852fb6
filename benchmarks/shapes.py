"""What the training benchmarks train on: models of real shapes with random weights, examples of real lengths.

Time and memory depend on shapes, not on what the ids are, so ids are random. Lengths follow the deciles of the
official training sets in TinyLlama's tokens with its chat template: SST-2 (66,849 sentences) and SQuAD v1.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from kdsuite.extras.offline.tokenizers import sentencepiece_tokenizer
from kdsuite.tasks.encoding import ChatTokenizer, Encoded

VOCABULARY = 32_000
END = 2  # end of turn
PROMPTS = {
    "SST-2": (36, 38, 39, 41, 42, 45, 47, 51, 56, 64, 106),
    "SQuAD": (76, 135, 163, 182, 198, 215, 234, 255, 286, 335, 383),
}  # tokens, at 0, 10, … 100 % of the examples
ANSWERS = (2, 3, 4, 4, 5, 5, 6, 7, 8, 11, 20)  # SQuAD's targets with the end of turn; the longest per cent is cut
LABELS = ((5, 6), (7,))  # as TinyLlama spells them: `positive` in two tokens, `negative` in one


@dataclass(frozen=True)
class Shape:
    """A Llama: `width` of the hidden states, `inner` of the gated feed-forward part, `shared` key-value heads."""

    name: str
    width: int
    layers: int
    inner: int
    heads: int
    shared: int
    vocabulary: int = VOCABULARY

    @property
    def body(self) -> int:
        """Parameters of all layers, which every token goes through (embeddings and head are not among them)."""
        keys = self.width * self.shared // self.heads
        return self.layers * (2 * self.width**2 + 2 * self.width * keys + 3 * self.width * self.inner)


TINY = Shape("tiny", 32, 2, 64, 2, 2, 500)
SMALL = Shape("20M", 256, 6, 704, 4, 4)
STUDENT = Shape("126M", 768, 11, 2048, 12, 12)
TEACHER = Shape("415M", 1280, 16, 3712, 20, 20)
TINYLLAMA = Shape("1.1B, 2 of 22 layers", 2048, 2, 5632, 32, 4, VOCABULARY * 2 // 22)  # everything in proportion
TINYLLAMA_WHOLE = Shape("TinyLlama-1.1B", 2048, 22, 5632, 32, 4)
QWEN_WHOLE = Shape("Qwen2.5-3B", 2048, 36, 11_008, 16, 2, 151_936)


def model(shape: Shape, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A model with random weights, drawn where it is to be, ready to be trained."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.shared,
        tie_word_embeddings=False,
        eos_token_id=END,
        pad_token_id=END,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def some_chat() -> ChatTokenizer:
    """A tokenizer of a few words and all bytes, for what any will do."""
    return ChatTokenizer(sentencepiece_tokenizer([f"word {a}{b}" for a in "abcdefgh" for b in "abcdefgh"], 320))


def examples(task: str, count: int, shape: Shape = SMALL, seed: int = 0) -> list[Encoded]:
    """`count` encoded examples of a task's lengths: both labels after the prompt (SST-2), or one answer (SQuAD)."""
    rng = np.random.default_rng(seed)
    lengths = _lengths(rng, PROMPTS[task], count)
    answers = _lengths(rng, ANSWERS, count)
    made = []
    for i, (length, answer) in enumerate(zip(lengths, answers, strict=True)):
        prompt = rng.integers(3, shape.vocabulary, length).tolist()
        own = rng.integers(3, shape.vocabulary, answer - 1).tolist()
        targets, gold = (LABELS, int(rng.integers(2))) if task == "SST-2" else ((tuple(own),), 0)
        made.append(_lay_out(str(i), prompt, targets, gold))
    return made


def _lengths(rng: np.random.Generator, deciles: tuple[int, ...], count: int) -> list[int]:
    return np.interp(rng.uniform(0, 100, count), range(0, 101, 10), deciles).astype(int).tolist()


def _lay_out(id: str, prompt: list[int], targets: tuple[tuple[int, ...], ...], gold: int) -> Encoded:
    """As `kdsuite.tasks.encoding` lays an example out; a byte per token."""
    ids, positions, segments = list(prompt), list(range(len(prompt))), [0] * len(prompt)
    sources: list[int] = []
    supervised: list[int] = []
    choices: list[int] = []
    spans: list[tuple[int, int]] = []
    for choice, target in enumerate(targets):
        sources += [len(prompt) - 1, *range(len(ids), len(ids) + len(target))]
        supervised += [*target, END]
        choices += [choice] * (len(target) + 1)
        spans += [*((i, i + 1) for i in range(len(target))), (len(target), len(target))]
        ids += target
        positions += range(len(prompt), len(prompt) + len(target))
        segments += [choice + 1] * len(target)
    return Encoded(id, ids, positions, segments, sources, supervised, choices, spans, gold)


def as_plain(example: Encoded) -> dict[str, list[int]]:
    """The same example as other libraries take it: prompt, target and end of turn; labels, −100 for the prompt."""
    prompt = example.input_ids[: example.segments.count(0)]
    target = example.targets[example.gold_slice]
    return {"input_ids": [*prompt, *target], "labels": [-100] * len(prompt) + target}

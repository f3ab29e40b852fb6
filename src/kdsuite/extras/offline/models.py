"""Two tiny causal language models made on the spot from generated text: a teacher and a student.

They differ as the default pair of the thesis does: the teacher has the Qwen2 architecture, a byte-level BPE
tokenizer and ChatML turns; the student is a smaller Llama with a SentencePiece-style tokenizer of another
vocabulary and Zephyr turns. Both are pretrained for a moment on `pretraining_text`, which holds no question,
instruction or label, so that fine-tuning starts from a language model. Both are `save_pretrained` folders.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config

from kdsuite.config import OfflineModelsSettings, presets, task_section
from kdsuite.extras.offline.corpora import pretraining_text
from kdsuite.extras.offline.tokenizers import byte_level_tokenizer, sentencepiece_tokenizer
from kdsuite.runtime.progress import Progress
from kdsuite.store.artefact import Artefact
from kdsuite.tasks.batching import LengthGroupedSampler
from kdsuite.tasks.example import task_of

VERSION = 5  # raise it when the models made from the same settings change
VOCABULARY = 1600
DOCUMENTS = 8000
TEXTS = 2000  # documents for the tokenizers
CONVERSATIONS = 500  # per task, for the tokenizers only
BATCH = 32
IGNORED = -100
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Muon's quintic iteration
Labelled = tuple[list[int], list[int]]  # token ids, and the same where they are learned, else IGNORED


@dataclass(frozen=True)
class Recipe:
    """What an offline model is made of; `steps` is relative to the settings' pretraining steps."""

    role: str
    architecture: Callable[..., LlamaConfig | Qwen2Config]
    tokenizer: Callable[[Iterable[str], int], PreTrainedTokenizerFast]
    turns: str  # of a conversation, as the chat template lays them out, without special tokens
    width: int
    layers: int
    heads: int
    steps: float


TEACHER = Recipe("teacher", Qwen2Config, byte_level_tokenizer, "user\n{}\nassistant\n{}", 128, 2, 4, steps=0.6)
STUDENT = Recipe(
    "student", LlamaConfig, sentencepiece_tokenizer, "<|user|>\n{}\n<|assistant|>\n{}", 64, 2, 4, steps=1.0
)


def tiny_model(
    architecture: Callable[..., LlamaConfig | Qwen2Config],
    tokenizer: PreTrainedTokenizerFast,
    width: int,
    layers: int,
    heads: int,
) -> PreTrainedModel:
    """A model of this size for `tokenizer`, with random weights from torch's generator."""
    config = architecture(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.06,  # about 1/(2√width); models this narrow start slowly from the customary 0.02
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config)


tiny_qwen2, tiny_llama = partial(tiny_model, Qwen2Config), partial(tiny_model, LlamaConfig)


def begin_alike(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let a word behind a blank begin as the same word without one, moved by what is the same for all words.

    Otherwise a model has to learn of each word that the answer in a line of its own is the word in the text.
    """
    vocabulary, embeddings = tokenizer.get_vocab(), model.get_input_embeddings()
    vectors: Any = embeddings.weight  # [V, width]
    with torch.no_grad():
        moved = model.config.initializer_range * torch.randn(vectors.shape[1])
        for token, index in vocabulary.items():
            if token[0] in "▁Ġ" and token[1:] in vocabulary:
                vectors[index] = vectors[vocabulary[token[1:]]] + moved


def encode_documents(tokenizer: PreTrainedTokenizerFast, documents: Sequence[str]) -> list[Labelled]:
    """Token ids of documents and their labels.

    Only what can be foreseen is learned (the lines below headings): the rest is random, and its loss would
    drown the signal. Other labels are -100.
    """
    encoded = tokenizer(list(documents), add_special_tokens=False, return_offsets_mapping=True)
    examples = []
    for document, ids, offsets in zip(documents, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        lines = document.splitlines(keepends=True)
        # for each character, whether it stands in a line below a heading
        known = [i > 0 and not line.endswith(":\n") for i, line in enumerate(lines) for _ in line]
        labels = [token if known[end - 1] else IGNORED for token, (_, end) in zip(ids, offsets, strict=True)]
        examples.append((ids, labels))
    return examples


def token_batches(examples: Sequence[Labelled], steps: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`steps` batches of documents of similar length: ids and labels [B, S]; epochs differ in order."""
    sampler = LengthGroupedSampler([len(ids) for ids, _ in examples], BATCH, seed)
    for indices in islice(_epochs(sampler), steps):
        ids, labels = ([torch.tensor(examples[i][part]) for i in indices] for part in (0, 1))
        yield (pad_sequence(ids, batch_first=True), pad_sequence(labels, batch_first=True, padding_value=IGNORED))


def _epochs(sampler: LengthGroupedSampler) -> Iterator[list[int]]:
    for epoch in count():
        sampler.set_epoch(epoch)
        yield from sampler


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum for matrices (Jordan et al. 2024), without weight decay, in float32.

    `torch.optim.Muon` orthogonalises in bfloat16, which most CPUs emulate: there it takes eleven times as long, and
    nearly all of a tiny model's training step.
    """

    def __init__(self, matrices: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for matrix in group["params"]:
                kept = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                kept.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(matrix.grad.lerp(kept, group["momentum"]))
                rows, columns = matrix.shape
                matrix.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)))


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Roughly the nearest matrix [m, n] whose singular values are all alike, between 0.5 and 1.5."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def pretrain(
    model: PreTrainedModel,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    steps: int,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Train all weights on next tokens wherever there is a label; in place.

    Matrices learn by Muon (orthogonalised momentum, Jordan et al. 2024), which teaches models this small to
    look things up in half the steps that AdamW needs; embeddings and norms learn by AdamW. The learning rate
    rises for a moment and decays by a cosine.
    """
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named.items() if p.ndim != 2 or "embed" in name]
    optimizers = [Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.01, betas=(0.9, 0.98), weight_decay=0.01)]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _rate(step, steps)) for o in optimizers]
    head: Any = model.get_output_embeddings()
    model.train()
    for input_ids, labels in batches:
        supervised = labels[:, 1:] != IGNORED
        states = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1][supervised]
        loss = F.cross_entropy(head(states), labels[:, 1:][supervised])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        advance()
    model.eval()


def _rate(step: int, steps: int, warmup: float = 0.03) -> float:
    """Share of the peak learning rate at a step: a short rise, then a cosine down to 5 %."""
    done = (step + 1) / max(steps, 1)
    if done <= warmup:
        return done / warmup
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup))))


def build_offline_models(folder: Path, settings: OfflineModelsSettings, progress: Progress) -> tuple[Path, Path]:
    """The folders of the teacher and of the student below `folder`; built unless they are there already."""
    for recipe in (TEACHER, STUDENT):
        model = Artefact(folder / recipe.role, [VERSION, settings.model_dump()], progress.say)
        model.get_or_build(lambda empty, recipe=recipe: _build(empty, recipe, settings, progress))
    return folder / TEACHER.role, folder / STUDENT.role


def _build(folder: Path, recipe: Recipe, settings: OfflineModelsSettings, progress: Progress) -> None:
    """Train a tokenizer, pretrain a model for it and save both in `folder`.

    The tokenizer also sees prompts and targets of the preset tasks, so that the words of instructions become tokens.
    """
    steps = round(recipe.steps * settings.pretraining_steps)
    documents = pretraining_text(DOCUMENTS, settings.seed)
    sample = {"train_size": CONVERSATIONS, "sample_seed": settings.seed}
    conversations = [
        recipe.turns.format(task.messages(example)[0]["content"], example.target)
        for section in (task_section(name, sample) for name in presets())
        if section.corpus
        for task in [task_of("", section)]
        for example in task.load("train")
    ]
    tokenizer = recipe.tokenizer([*documents[:TEXTS], *conversations], VOCABULARY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = tiny_model(recipe.architecture, tokenizer, recipe.width, recipe.layers, recipe.heads)
        begin_alike(model, tokenizer)
    batches = token_batches(encode_documents(tokenizer, documents), steps, settings.seed)
    with progress.work(f"pretraining the offline {recipe.role}", steps) as work:
        pretrain(model, batches, steps, work.advance)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

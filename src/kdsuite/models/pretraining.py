"""The offline models, made on the spot: tokenizers, random weights, a minute of language modelling.

Two things make tiny models learn to look things up in seconds rather than minutes: weights drawn three times
wider than the usual 0.02, and Muon for the matrices (Jordan et al. 2024) with AdamW for the embeddings.
In passages only what can be known is learned (a restated heading and its value); the loss on the random facts
themselves would drown it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kdsuite.config import OfflineModelsSettings, SquadSettings, Sst2Settings
from kdsuite.models.offline import byte_level_tokenizer, sentencepiece_tokenizer, tiny_llama, tiny_qwen2
from kdsuite.runtime.files import atomic_folder, fingerprint
from kdsuite.runtime.progress import Progress
from kdsuite.runtime.seeding import seed_everything
from kdsuite.tasks.batching import LengthGroupedSampler
from kdsuite.tasks.generated import pretraining_text
from kdsuite.tasks.registry import TASKS

TEXTS = 6000
TOKENIZER_TEXTS = 2000
BATCH = 16
WIDER = 3.0  # times the architectures' initializer_range of 0.02
TEACHER_VOCABULARY, STUDENT_VOCABULARY = 1000, 1100
RECIPE = 1  # raise it when something here changes, so that old models are not taken for new ones


def build_offline_models(folder: Path, settings: OfflineModelsSettings, progress: Progress) -> tuple[Path, Path]:
    """The folders of the teacher (Qwen2) and the student (Llama), made unless they are there."""
    mark = fingerprint([RECIPE, settings.model_dump()])[:8]
    teacher, student = folder / f"teacher-{mark}", folder / f"student-{mark}"
    if teacher.is_dir() and student.is_dir():
        return teacher, student
    seed_everything(settings.seed)
    texts = pretraining_text(TEXTS, settings.seed)
    spelled = texts[:TOKENIZER_TEXTS] + _prompts()
    if not teacher.is_dir():
        tokenizer = byte_level_tokenizer(spelled, TEACHER_VOCABULARY)
        model = tiny_qwen2(tokenizer, width=96, layers=2, heads=4)
        _pretrain_and_save(model, tokenizer, texts, settings, teacher, "offline teacher", progress)
    if not student.is_dir():
        tokenizer = sentencepiece_tokenizer(spelled, STUDENT_VOCABULARY)
        model = tiny_llama(tokenizer, width=64, layers=2, heads=4)
        _pretrain_and_save(model, tokenizer, texts, settings, student, "offline student", progress)
    return teacher, student


def _prompts() -> list[str]:
    """How the tasks ask, so that the tokenizers spell their instructions in few tokens."""
    settings = {
        "sst2": Sst2Settings(train_size=100, dev_size=100, validation_size=100),
        "squad": SquadSettings(train_size=100, dev_size=100, validation_size=100),
    }
    return [
        f"user\n{message['content']}\nassistant\n{example.target}\n"
        for name, sizes in settings.items()
        for example in TASKS[name].load(sizes, "train")
        for message in TASKS[name].messages(example)
    ]


def _pretrain_and_save(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    settings: OfflineModelsSettings,
    folder: Path,
    label: str,
    progress: Progress,
) -> None:
    documents = [_document(tokenizer, text) for text in texts]
    with progress.work(f"pretraining the {label}", settings.pretraining_steps) as work:
        pretrain(model, documents, settings.pretraining_steps, settings.seed, work.advance)
    with atomic_folder(folder) as temporary:
        model.eval().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


Document = tuple[list[int], list[bool]]


def _document(tokenizer: Any, text: str) -> Document:
    """Token ids of a text, and which of them are to be predicted: all but a passage's own facts."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    known_from = text.find("\n") + 1 if "\n" in text else 0
    learned = [end > known_from for _, end in encoded["offset_mapping"]]
    return encoded["input_ids"], learned


def pretrain(model: Any, documents: Sequence[Document], steps: int, seed: int, advance: Any = lambda: None) -> None:
    """Language modelling for a number of steps, in place; only learned tokens go through the LM head."""
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.ndim == 2):
            weight.mul_(WIDER)
    optimizers = _optimizers(model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _rate(step, steps)) for o in optimizers]
    sampler = LengthGroupedSampler([len(ids) for ids, _ in documents], BATCH, seed)
    model.train()
    done = 0
    while done < steps:
        sampler.set_epoch(done)
        for batch in sampler:
            loss = _loss(model, [documents[i] for i in batch])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            advance()
            done += 1
            if done == steps:
                break


def _optimizers(model: Any) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "head" not in name]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0),
        torch.optim.AdamW(others, lr=0.01, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _rate(step: int, steps: int) -> float:
    """A short rise, then half a cosine down to 5 %."""
    rise = max(1, round(0.03 * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.05 + 0.475 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _loss(model: Any, documents: Sequence[Document]) -> torch.Tensor:
    length = max(len(ids) for ids, _ in documents)
    ids = torch.zeros(len(documents), length, dtype=torch.long)
    learned = torch.zeros(len(documents), length, dtype=torch.bool)
    for row, (tokens, mask) in enumerate(documents):
        ids[row, : len(tokens)], learned[row, : len(tokens)] = torch.tensor(tokens), torch.tensor(mask)
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    return F.cross_entropy(model.lm_head(states[learned[:, 1:]]), ids[:, 1:][learned[:, 1:]])

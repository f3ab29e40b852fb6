"""Every model is tried before any work, so that what cannot work is said in seconds and not after an hour."""

from __future__ import annotations

import math
from typing import Any

import torch
import transformers

from kdsuite.errors import ModelError
from kdsuite.evaluate.predict import label_scores
from kdsuite.jobs.workshop import TEACHER, Workshop
from kdsuite.methods.registry import METHODS
from kdsuite.models import check
from kdsuite.models.forward import Traits, traits_of
from kdsuite.runtime.memory import OUT_OF_MEMORY, is_out_of_memory
from kdsuite.store.files import atomic_write_record, fingerprint, read_json
from kdsuite.tasks.encoding import encode

ASKED = 16  # examples by which it is told how much probability a prompt leaves to the label words


def try_models(shop: Workshop) -> None:
    """Try the students, then the teacher, unless that was done with these very models and settings.

    ModelError for the first that cannot be used. Where memory runs out, the teacher's fallback is taken; runs of a
    student that is too large say so themselves, and the others go on.
    """
    for role in (*shop.settings.trained_students, TEACHER):
        try:
            _try_once(shop, role)
        except OUT_OF_MEMORY as error:
            if not is_out_of_memory(error):
                raise
            if role == TEACHER and shop.can_fall_back():
                shop.fall_back(str(error))
                _try_once(shop, role)
            else:
                shop.progress.say(f"{role}: out of memory on {shop.choice.device} in a trial on a few tokens")
        if role != TEACHER:
            shop.let_go_of_models()


def _try_once(shop: Workshop, role: str) -> None:
    path, key = shop.results / "models" / "trials" / f"{role}.json", _key(shop, role)
    refuse_unless_fits(shop, role)
    with shop.locks.hold(f"trial-{role}"):
        if _kept(path) != key:
            shop.progress.say(f"{role}: trying {shop.source(role).name}")
            try_model(shop, role)
            atomic_write_record(path, {"key": key})


def _key(shop: Workshop, role: str) -> str:
    """Identifies a trial: the model, where and how it is computed, and what is asked of it."""
    settings = shop.settings
    return fingerprint(
        [
            shop.source(role).fingerprint,
            [str(shop.choice.device), shop.choice.dtype_name, torch.__version__, transformers.__version__],
            [settings.models.lora.model_dump(), is_trained(shop, role), _features(shop)],
        ]
    )


def _kept(path: Any) -> str | None:
    try:
        return read_json(path)["key"]
    except (FileNotFoundError, ValueError, KeyError):
        return None


def is_trained(shop: Workshop, role: str) -> bool:
    """Whether any run trains this model."""
    tasks = [shop.settings.tasks[name] for name in shop.settings.tasks.names]
    return role != TEACHER or any(task.teacher_training.enabled for task in tasks)


def _features(shop: Workshop) -> bool:
    return any(METHODS[name].features for name in shop.settings.methods)


def refuse_unless_fits(shop: Workshop, role: str) -> None:
    """ModelError where texts of the configured lengths, or this tokenizer's ids, are too much for a model."""
    lengths = {
        f"tasks.{name}.max_length": shop.settings.tasks[name].max_length for name in shop.settings.tasks.names
    }
    check.refuse_unless_fits(shop.config(role), shop.chat(role), shop.source(role).name, lengths)


def try_model(shop: Workshop, role: str) -> Traits:
    """Load a model, which tries it out, and train a step on a few tokens if it will be trained."""
    name, traits = shop.source(role).name, traits_of(shop.base(role))
    if _features(shop) and not traits.layers:
        raise ModelError(
            f"the hidden states of {name!r} cannot be read layer by layer, which KD3 needs; "
            "leave it out of `methods`, or take another model"
        )
    if is_trained(shop, role):
        with shop.for_training(role, checkpointing=False) as model:
            check.try_training(model, name)
    return traits


def label_mass(shop: Workshop, role: str, task: str) -> tuple[float, str]:
    """How much probability a prompt leaves to the label words, as spelled, on average; and what the model would
    rather begin with on most prompts."""
    kind, chat, settings = shop.task(task), shop.chat(role), shop.settings.tasks[task]
    encoded = encode(kind, chat, kind.load(settings, "validation")[:ASKED], settings)
    model = shop.base(role)
    scores = label_scores(model, chat, encoded, len(kind.labels or ()), 1, lambda count: None)
    first: list[int] = []
    with torch.inference_mode():
        for example in encoded:
            prompt = example.input_ids[: example.segments.count(0)]
            logits = model(input_ids=torch.tensor([prompt], device=model.device), logits_to_keep=1).logits
            first.append(int(logits[0, -1, : len(chat.token_bytes)].argmax()))
    favourite = max(set(first), key=first.count)
    return math.fsum(scores.exp().sum(-1).tolist()) / len(encoded), chat.tokenizer.decode([favourite])

"""Models and tokenizers from a hub id or a folder; adapters; the teacher's fallback.

Only safetensors are read, and no code that comes with a model is run. `save_trained` writes what was trained:
an adapter if there is one, else the whole model, always with its tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from kdsuite.config import LoraSettings, ModelSettings, TeacherSettings
from kdsuite.errors import KdsuiteError, SettingsError
from kdsuite.runtime.files import fingerprint, folder_fingerprint
from kdsuite.runtime.secrets import without_token
from kdsuite.tasks.encoding import ChatTokenizer

ADAPTER_CONFIG = "adapter_config.json"
Loaded = TypeVar("Loaded")


class ModelError(SettingsError):
    """A model that cannot be had: missing, gated, not safetensors, or too large for the memory."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: `where` is a folder or a hub id, `name` what it is called in records."""

    name: str
    where: str
    revision: str | None = None

    @property
    def is_folder(self) -> bool:
        return Path(self.where).is_dir()

    @property
    def fingerprint(self) -> str:
        """Identifies the weights and the tokenizer: a folder's content, or the hub id and revision."""
        return (
            folder_fingerprint(Path(self.where))
            if self.is_folder
            else fingerprint([self.where, self.revision])
        )


def source_of(settings: ModelSettings, offline: dict[str, Path]) -> ModelSource:
    """The source that a setting names; `offline` maps the names of the offline models to their folders."""
    name = settings.name
    if name in offline:
        return ModelSource(name, str(offline[name]))
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    where = str(Path(name).expanduser()) if looks_local else name
    if looks_local and not Path(where).is_dir():
        raise ModelError(f"no model folder {where}; give a save_pretrained folder or a hub id")
    return ModelSource(Path(where).name if Path(where).is_dir() else name, where, settings.revision)


def load_chat(source: ModelSource) -> ChatTokenizer:
    """The tokenizer with its chat template. ModelError if it cannot be had."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.where, revision=source.revision or "main")
    except (OSError, ValueError) as error:
        raise _cannot_load(source, "tokenizer", error) from None
    return ChatTokenizer(tokenizer)


def load_config(source: ModelSource) -> Any:
    """The architecture's configuration, without weights. ModelError if it cannot be had."""
    try:
        return AutoConfig.from_pretrained(source.where, revision=source.revision or "main")
    except (OSError, ValueError) as error:
        raise _cannot_load(source, "configuration", error) from None


def load_model(source: ModelSource, device: torch.device, dtype: torch.dtype) -> Any:
    """A causal language model, frozen and in evaluation mode. ModelError if it cannot be had."""
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            source.where,
            revision=source.revision or "main",
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="sdpa",
        )
        model = model.to(device)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _cannot_load(source, "model", error, "not enough memory") from None
    except (OSError, ValueError, SafetensorError) as error:  # the last: truncated weights
        raise _cannot_load(source, "model", error) from None
    return model.eval().requires_grad_(False)


def load_trained(source: ModelSource, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """A model as `save_trained` left it in `folder`; `source` is the base an adapter belongs to."""
    if not (folder / ADAPTER_CONFIG).exists():
        return load_model(ModelSource(source.name, str(folder)), device, dtype)
    base = load_model(source, device, dtype)
    return PeftModel.from_pretrained(base, str(folder), use_safetensors=True).eval()


def trainable(model: Any, lora: LoraSettings) -> Any:
    """The model made ready for training: with adapters on all linear layers but the head, or all of it."""
    if not lora.enabled:
        return model.requires_grad_(True)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def save_trained(model: Any, chat: ChatTokenizer, folder: Path) -> None:
    """Write the adapter (or the whole model) and the tokenizer into an existing folder."""
    model.save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)


def with_fallback(
    settings: TeacherSettings, attempt: Callable[[ModelSettings], Loaded], say: Callable[[str], None]
) -> Loaded:
    """`attempt` with the teacher; where it cannot be had and a fallback is configured, with that."""
    try:
        return attempt(settings)
    except ModelError as error:
        if settings.fallback is None:
            raise
        say(f"{error}; going on with the fallback teacher {settings.fallback}")
        return attempt(ModelSettings(name=settings.fallback))


def _cannot_load(
    source: ModelSource, what: str, error: BaseException, why: str | None = None
) -> KdsuiteError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = why or (lines[0] if lines else type(error).__name__)
    text = " ".join(lines).lower()
    if "gated" in text or "401" in text or "403" in text:
        advice = "ask for access on its hub page and put HF_TOKEN into .env"
    elif source.is_folder:
        advice = "give a complete save_pretrained folder with safetensors"
    else:
        advice = "check the name and the network, or give a folder on disk"
    return ModelError(f"{what} {source.name!r} cannot be loaded: {without_token(reason)}; {advice}")

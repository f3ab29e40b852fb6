"""What was trained as an ordinary `save_pretrained` folder, for programs that know nothing of kdsuite.

An adapter stays an adapter (small, needs its base model) or is merged into its base (stands alone).
Quantizing merges too. What only training needs, such as the projectors of feature distillation, was never
saved with the model. The generation settings are those of the evaluation: greedy, up to the end of turn.
"""

import shutil
from pathlib import Path

import torch
from transformers import GenerationConfig

from kdsuite.errors import ModelError
from kdsuite.models.loading import load_chat, load_model
from kdsuite.models.quantization import quantize
from kdsuite.models.source import ModelSource, keep_base

CARD = "README.md"


def export_model(
    folder: Path, out: Path, device: torch.device, dtype: torch.dtype, merge: bool, scheme: str | None
) -> None:
    """Write what `save_trained` left in `folder` into the existing, empty folder `out`, with its tokenizer.

    `merge` makes an adapter a whole model; `scheme` ("int8", "int4") quantizes it and merges, too. Raises
    ModelError if the adapter's base cannot be had, QuantizationUnavailable if the device lacks the scheme.
    """
    source = ModelSource.at(str(folder))
    if (base := source.base) and not merge and scheme is None:
        if base.base:
            raise ModelError(f"the base of {folder} is an adapter itself, which others cannot load; export it merged")
        shutil.copytree(folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CARD))
        keep_base(out, base)
        return
    model, chat = load_model(source, device, dtype), load_chat(source)
    if scheme is not None:
        model = quantize(model, scheme, device)
    model.generation_config = GenerationConfig(  # the base's own settings may sample and stop elsewhere
        do_sample=False,
        bos_token_id=getattr(model.generation_config, "bos_token_id", None),
        eos_token_id=list(chat.end_ids),
        pad_token_id=chat.pad_id,
    )
    model.save_pretrained(out)
    chat.tokenizer.save_pretrained(out)

"""A completed run as an ordinary `save_pretrained` folder for others, with a card that says how good it is.

An adapter stays an adapter (small, needs its base model) or is merged into its base (stands alone). Quantizing merges
too, and so does GGUF, one file for llama.cpp with a Modelfile for Ollama beside it. What only training needs, such as
the projectors of feature distillation, was never saved with the model. The generation settings are those of the
evaluation: greedy, up to the end of turn.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from kdsuite.config import nearest
from kdsuite.errors import ModelError, SettingsError
from kdsuite.extras import card
from kdsuite.extras.licences import CARD
from kdsuite.models.loading import load_chat, load_config, load_model
from kdsuite.models.quantization import quantize
from kdsuite.models.source import ModelSource, base_of, keep_base
from kdsuite.store.files import atomic_folder
from kdsuite.store.layout import Layout
from kdsuite.store.records import Registry

GGUF, MODELFILE = "model.gguf", "Modelfile"


def export_run(
    results: Path,
    run_id: str,
    out: Path,
    device: torch.device,
    merge: bool = False,
    quantize: str | None = None,
    gguf: str | None = None,
    weights: bool = True,
) -> None:
    """Write the model of a completed run, its tokenizer and a card to the new or empty folder `out`.

    `merge` makes an adapter a whole model; `quantize` ("int8", "int4") is weight-only, and merges, too; `gguf` ("f16",
    "f32") is the precision of the matrices in a GGUF file, which is written instead. Without `weights` the card is all
    that is written. SettingsError if there is no such
    trained run or `out` holds something already, ModelError if the adapter's base cannot be had or GGUF is not written
    for such a model, QuantizationUnavailable if the device lacks the scheme.
    """
    if gguf and quantize:
        raise SettingsError(f"{quantize} is for transformers; make a smaller GGUF of the one written by llama-quantize")
    record, layout = completed(results, run_id), Layout(results)
    folder = layout.model(run_id)
    if not folder.is_dir():
        raise SettingsError(f"{run_id} has no trained weights in {folder}; export a run that was trained")
    refuse_taken(out)
    adapter = base_of(folder) is not None and not merge and quantize is None
    library = "gguf" if gguf else "peft" if adapter else "transformers"
    with atomic_folder(out) as temporary:
        if weights:
            dtype, source = getattr(torch, record["environment"]["dtype"]), ModelSource.at(str(folder))
            if gguf:
                _write_gguf(source, temporary, device, dtype, gguf)
            else:
                _write_model(source, temporary, device, dtype, merge, quantize)
        card.write(card.About(layout, record, library, quantize, gguf), temporary)


def completed(results: Path, run_id: str) -> dict[str, Any]:
    """The record of a completed run; SettingsError if there is none."""
    registry = Registry(results)
    record = registry.read(run_id)
    if record is None:
        known = [r["run_id"] for r in registry.records() if r["status"] == "completed"]
        raise SettingsError(f"no run {run_id!r} in {results}{nearest(run_id, known)}")
    if record["status"] != "completed":
        raise SettingsError(f"{run_id} is {record['status']}, not completed; run `kdsuite train` first")
    return record


def refuse_taken(out: Path) -> None:
    if not out.name:
        raise SettingsError(f"{out} cannot be made anew; give a new or an empty folder by its name")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out} is there already; give a new or an empty folder")


def _write_model(
    source: ModelSource, out: Path, device: torch.device, dtype: torch.dtype, merge: bool, scheme: str | None
) -> None:
    if (base := source.base) and not merge and scheme is None:
        if base.base:
            raise ModelError(
                f"the base of {source.where} is an adapter itself, which others cannot load; export it merged"
            )
        shutil.copytree(source.where, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CARD))
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


def _write_gguf(source: ModelSource, out: Path, device: torch.device, dtype: torch.dtype, precision: str) -> None:
    from kdsuite.extras import gguf_file

    chat = load_chat(source)
    writer = gguf_file.metadata(load_config(source), chat, source.name)
    gguf_file.write(writer, load_model(source, device, dtype), out / GGUF, half=precision == "f16")
    (out / MODELFILE).write_text(gguf_file.modelfile(chat, GGUF), encoding="utf-8")

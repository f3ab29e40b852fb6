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
from huggingface_hub import ModelCardData, try_to_load_from_cache
from huggingface_hub.repocard import metadata_load
from transformers import GenerationConfig

from kdsuite.config import GENERATED, nearest
from kdsuite.errors import ModelError, SettingsError
from kdsuite.models.loading import load_chat, load_config, load_model
from kdsuite.models.quantization import quantize
from kdsuite.models.source import ModelSource, base_of, keep_base
from kdsuite.store.files import atomic_folder, read_json
from kdsuite.store.layout import MANIFEST, Layout
from kdsuite.store.records import Registry

UNKNOWN = "unknown"
CARD = "README.md"
GGUF, MODELFILE = "model.gguf", "Modelfile"


def export_run(
    results: Path,
    run_id: str,
    out: Path,
    device: torch.device,
    merge: bool = False,
    quantize: str | None = None,
    gguf: str | None = None,
) -> None:
    """Write the model of a completed run, its tokenizer and a card to the new or empty folder `out`.

    `merge` makes an adapter a whole model; `quantize` ("int8", "int4") is weight-only, and merges, too; `gguf` ("f16",
    "f32") is the precision of the matrices in a GGUF file, which is written instead. SettingsError if there is no such
    trained run or `out` holds something already, ModelError if the adapter's base cannot be had or GGUF is not written
    for such a model, QuantizationUnavailable if the device lacks the scheme.
    """
    if gguf and quantize:
        raise SettingsError(f"{quantize} is for transformers; make a smaller GGUF of the one written by llama-quantize")
    registry, layout = Registry(results), Layout(results)
    record = registry.read(run_id)
    if record is None:
        known = [r["run_id"] for r in registry.records() if r["status"] == "completed"]
        raise SettingsError(f"no run {run_id!r} in {results}{nearest(run_id, known)}")
    if record["status"] != "completed":
        raise SettingsError(f"{run_id} is {record['status']}, not completed; run `kdsuite train` first")
    folder = layout.model(run_id)
    if not folder.is_dir():
        raise SettingsError(f"{run_id} has no trained weights in {folder}; export a run that was trained")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out} is there already; give a new or an empty folder")
    with atomic_folder(out) as temporary:
        dtype = getattr(torch, record["environment"]["dtype"])
        source = ModelSource.at(str(folder))
        if gguf:
            _write_gguf(source, temporary, device, dtype, gguf)
        else:
            _write_model(source, temporary, device, dtype, merge, quantize)
        card = _card(layout, record, base_of(folder), merge, quantize, gguf)
        (temporary / CARD).write_text(card, encoding="utf-8")


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


def _card(
    layout: Layout, record: dict[str, Any], base: ModelSource | None, merge: bool, scheme: str | None, gguf: str | None
) -> str:
    """The README: metadata that the hub reads, then the facts of the run for people."""
    spec, name = record["spec"], record["model"]["name"]
    manifest = layout.processed(spec["task"]) / MANIFEST
    data, plan = (read_json(path) if path.exists() else {} for path in (manifest, layout.plan))
    task = plan.get("tasks", {}).get(spec["task"], {})
    generated = data.get("source") == GENERATED
    licence = _licence(base.where if base else name)
    metadata = ModelCardData(
        license=licence,
        base_model=base.where if base and not base.is_folder else None,
        datasets=[task["hub_id"]] if task.get("hub_id") and not generated else None,
        language="en",
        library_name="gguf" if gguf else "peft" if base and not merge and scheme is None else "transformers",
        pipeline_tag="text-generation",
        tags=["knowledge-distillation", spec["method"]],
    )
    data_licence = "generated by kdsuite: MIT" if generated else task.get("licence") or "see its source"
    facts = {k: v for k, v in spec.items() if k != "point"} | spec.get("point", {})
    lines = [
        f"# {record['run_id']}",
        f"{name}, trained on {spec['task']} by {spec['method']} with kdsuite {record['code_version']}.",
        f"Weight-only quantized to {scheme}; the results below are those before quantization." if scheme else "",
        f"As GGUF ({gguf}) for llama.cpp, and with the Modelfile for Ollama: `ollama create NAME`." if gguf else "",
        "## Training",
        _bullets(facts | {"teacher": (record.get("teacher") or {}).get("name")}),
        "## Data",
        _bullets({"source": data.get("source", UNKNOWN), **data.get("sizes", {})}),
        "## Results",
        *[f"{split}: {_metrics(values)}" for split, values in record["metrics"].items()],
        "## Licence",
        f"Weights: derived from {name}, whose licence applies ({licence}). Data: {data_licence}.",
    ]
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, lines)) + "\n"


def _bullets(facts: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value is not None)


def _metrics(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def _licence(base: str) -> str:
    """The licence that the base model's own card states, where that lies in its folder or the hub's cache."""
    card = Path(base) / CARD if Path(base).is_dir() else try_to_load_from_cache(base, CARD)
    if not isinstance(card, str | Path) or not Path(card).exists():
        return UNKNOWN
    return str((metadata_load(card) or {}).get("license", UNKNOWN))

"""Models and tokenizers from a hub id or a folder; adapters; the teacher's fallback.

Only safetensors are read, and no code that comes with a model is run: transformers is told so, else it asks who sits at
the terminal. `save_trained` writes what was trained:
an adapter if there is one, else the whole model, always with its tokenizer.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError, StrictDataclassError
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME
from transformers.utils.hub import cached_file

from kdsuite.config import LoraSettings, ModelSettings, TeacherSettings, looks_local
from kdsuite.errors import ModelError, SettingsError, first_line
from kdsuite.models import check
from kdsuite.models.adapters import quick
from kdsuite.models.costs import Shape, weight_bytes
from kdsuite.models.forward import compact
from kdsuite.models.source import ADAPTER_WEIGHTS, ModelSource, TooLarge, check_base, is_adapter, keep_base
from kdsuite.runtime import hub
from kdsuite.runtime.device import memory_bytes
from kdsuite.runtime.memory import is_out_of_memory
from kdsuite.tasks.encoding import ChatTokenizer

# constants that were once saved
OLD_BUFFERS = re.compile(r"(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$")


def source_of(settings: ModelSettings, offline: dict[str, Path]) -> ModelSource:
    """The source that a setting names; `offline` maps the names of the offline models to their folders."""
    name = settings.name
    given = {"system": settings.system, "chat_template_kwargs": settings.chat_template_kwargs}
    prompts = {key: value for key, value in given.items() if value not in (None, {})}
    if name in offline:
        return replace(ModelSource.at(str(offline[name]), name), prompts=prompts)
    if looks_local(name) and not Path(name).is_dir():
        raise ModelError(f"no model folder {name}; give a save_pretrained folder or a hub id")
    return replace(ModelSource.at(name, revision=settings.revision), prompts=prompts)


def load_chat(source: ModelSource) -> ChatTokenizer:
    """The tokenizer with its chat template. ModelError if it cannot be had, or its prompts cannot be made."""
    own = source.tokenizing
    try:
        tokenizer = AutoTokenizer.from_pretrained(own.where, revision=own.revision or "main", trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 (of a damaged file libraries raise anything)
        folder, reason = Path(own.where), error
        if (folder / "tokenizer.model").exists() and not (folder / "tokenizer.json").exists():
            reason = ValueError("of its tokenizer there is tokenizer.model only, which cannot be read here")
        raise _cannot_load(own, "tokenizer", reason) from None
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # as transformers makes of no files
        raise _cannot_load(own, "tokenizer", ValueError("it has no vocabulary, its files are not there"))
    try:
        system, arguments = source.prompts.get("system"), source.prompts.get("chat_template_kwargs", {})
        return ChatTokenizer(tokenizer, system, arguments, _eos_ids(source.whole))
    except SettingsError as error:
        raise ModelError(f"model {source.name!r}: {error}") from None


def _eos_ids(source: ModelSource) -> list[int]:
    """At which tokens the model's own configuration files end an answer; a model may lack these files."""
    ids: list[int] = []
    for name in (GENERATION_CONFIG_NAME, CONFIG_NAME):
        path = cached_file(
            source.where,
            name,
            revision=source.revision or "main",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8")).get("eos_token_id") if path else []
        except (ValueError, AttributeError) as error:
            raise _cannot_load(source, name, error) from None
        ids += found if isinstance(found, list) else [found]
    return [id for id in ids if isinstance(id, int) and id >= 0]


def load_config(source: ModelSource) -> Any:
    """The architecture's configuration, without weights. ModelError if it cannot be had, or is not a text decoder's."""
    source = source.whole
    try:
        config = AutoConfig.from_pretrained(source.where, revision=source.revision or "main", trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 (as above)
        raise _cannot_load(source, "configuration", error) from None
    what, advice = f"model {source.name!r} ({config.model_type})", "give a decoder-only language model"
    if config.is_encoder_decoder:
        raise ModelError(f"{what} is an encoder-decoder, which this suite does not distil; {advice}")
    if config.get_text_config() is not config:
        raise ModelError(f"{what} is multimodal; {advice}, or its language part saved on its own")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{what} is not a causal language model; {advice}")
    return config


def pinned(source: ModelSource, device: torch.device, dtype: torch.dtype, devices: int = 1) -> ModelSource:
    """The source at the commit that its revision is now, so that all its files are of one and the same.

    Reads the configuration only. ModelError if it or the weights cannot be had, TooLarge if they cannot fit into the
    memory of so many `devices`.
    """
    if source.base:
        return replace(source, base=pinned(source.base, device, dtype, devices))
    config = load_config(source)
    try:
        needed = weight_bytes(Shape.of(config.to_dict()), str(dtype).removeprefix("torch."))
    except (KeyError, TypeError):  # another kind of architecture, or in fewer bits
        needed = 0
    memory = memory_bytes(device)[0] * (1 if device.type == "cpu" else devices)  # CPUs of one machine share theirs
    if needed > memory:  # said before anything is downloaded, let alone swapped: a CPU never says so
        raise TooLarge(
            f"model {source.name!r} cannot be loaded: its weights need {needed / 1e9:.0f} GB as {dtype}, "
            f"{device} has {memory / 1e9:.0f} GB; `kdsuite plan` says what fits"
        )
    if source.is_folder:
        return source
    # a configuration in the cache says nothing of the weights: access may have ended, or never have been asked for
    if not (constants.is_offline_mode() and hub.has_weights(source.where, source.revision)):
        try:
            HfApi().auth_check(source.where)
        except (OfflineModeIsEnabled, RepositoryNotFoundError) as error:  # the latter: gated, private or gone
            raise _cannot_load(source, "model", error) from None
        except hub.HTTP_ERROR:
            pass  # no answer: the download will tell
    return replace(source, revision=source.commit)


def load_model(source: ModelSource, device: torch.device, dtype: torch.dtype) -> Any:
    """A causal language model, tried out, frozen and in evaluation mode; an adapter is merged into its base.

    ModelError if it cannot be had, if weights are missing, left over or of other shapes, or if it fails its trial
    (`models.check`).
    """
    if source.base:
        adapted = load_trained(source.base, Path(source.where), device, dtype)
        return adapted.merge_and_unload().eval().requires_grad_(False)
    load_config(source)
    model = opened(source, device, dtype)
    model.kdsuite_traits = check.try_out(model, source.name)
    return model


def opened(source: ModelSource, device: torch.device, dtype: torch.dtype, **options: Any) -> Any:
    """A causal language model, frozen and in evaluation mode, that is still to be tried; `options` are transformers'.

    With a `config` of fewer layers the weights of the others are left out.
    """
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            source.where,
            revision=source.revision or "main",
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # so that they are named below
            output_loading_info=True,
            **options,
        )  # pyright: ignore[reportGeneralTypeIssues]
        _refuse_unless_whole(source, found | ({"unexpected_keys": ()} if "config" in options else {}))
        model = model.to(device)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 (as above; of what is quantized that a library is missing)
        if not is_out_of_memory(error):
            raise _cannot_load(source, "model", error) from None
        raise TooLarge(
            f"model {source.name!r} cannot be loaded: not enough memory on {device}; `kdsuite plan` says what fits"
        ) from None
    model.eval().requires_grad_(False)
    if (head := model.get_output_embeddings()) is not None:
        head.register_forward_pre_hook(compact)
    return model


def _refuse_unless_whole(source: ModelSource, found: dict[str, Any]) -> None:
    """ModelError where the weight files do not hold this model's weights, which would else be drawn at random."""
    kinds = {
        "missing": found["missing_keys"],
        "not this model's": [name for name in found["unexpected_keys"] if not OLD_BUFFERS.search(name)],
        "of another shape": [f"{name} {list(a)} instead of {list(b)}" for name, a, b in found["mismatched_keys"]],
        "not readable": found["error_msgs"],
    }
    told = [
        f"{len(names)} {kind} ({', '.join([*sorted(names)[:3], '…'][: len(names)])})"
        for kind, names in kinds.items()
        if names
    ]
    if told:
        raise ModelError(
            f"the weights of model {source.name!r} do not fit it: {'; '.join(told)}; give a folder as save_pretrained "
            "of the uncompiled model writes it"
        )


def load_trained(source: ModelSource, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """A model as `save_trained` left it in `folder`; `source` is the base an adapter belongs to.

    ModelError if the adapter in `folder` is not for `source`, or is not whole.
    """
    if not is_adapter(folder):
        return load_model(ModelSource(source.name, str(folder)), device, dtype)
    check_base(folder, source)
    base = load_model(source, device, dtype)
    try:
        model = PeftModel.from_pretrained(base, str(folder), use_safetensors=True)
        if model.active_peft_config.is_prompt_learning:
            raise ValueError("it is a learned prompt, which cannot be merged")
        expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            found = set(file.keys())  # peft leaves what is missing as it was drawn
        missing, unknown = expected - found, found - expected - set(model.state_dict())
        for what, keys in (("lacks", missing), ("has what this base lacks,", unknown)):
            if keys:
                raise ValueError(f"it {what} {min(keys)}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # gone, truncated, other shapes
        raise _cannot_load(ModelSource(folder.name, str(folder)), "adapter", error) from None
    return model.eval()


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
    try:
        return quick(get_peft_model(model, config))
    except ValueError as error:
        raise ModelError(
            f"adapters cannot be put on {type(model).__name__}: {first_line(error)}; set "
            "models.lora.dropout=0 if it is about dropout, else models.lora.enabled=false, or take another model"
        ) from None


def save_trained(
    model: Any,
    chat: ChatTokenizer,
    folder: Path,
    base: ModelSource | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the adapter (or the whole model) and the tokenizer into an existing folder.

    `weights` are the model's by name, where it is in shards itself.
    An adapter keeps where its `base` is, on the hub with the commit: without it, it would later be put on whatever
    is then under that name.
    """
    model.save_pretrained(folder, state_dict=weights)
    chat.tokenizer.save_pretrained(folder)
    if base is not None and is_adapter(folder):
        keep_base(folder, base)


def with_fallback(
    settings: TeacherSettings, attempt: Callable[[ModelSettings], ModelSource], say: Callable[[str], None]
) -> ModelSource:
    """`attempt` with the teacher; where it cannot be had and a fallback is configured, with that."""
    try:
        return attempt(settings)
    except ModelError as error:
        if settings.fallback is None:
            raise
        say(f"{error}; going on with the fallback teacher {settings.fallback}")
        prompts = settings.model_dump(include={"system", "chat_template_kwargs"})
        return replace(attempt(ModelSettings(name=settings.fallback, **prompts)), stands_in=str(error))


def _cannot_load(source: ModelSource, what: str, error: BaseException) -> ModelError:
    cause = error.__cause__ if isinstance(error, StrictDataclassError) else None  # it says more
    reason, advice = first_line(cause or error), "give a folder on disk"
    if source.is_folder:
        advice = "give a complete save_pretrained folder with safetensors and tokenizer.json"
    elif (meaning := hub.explain(error)) is not None:
        reason, advice = meaning
    return ModelError(f"{what} {source.name!r} cannot be loaded: {reason}; {advice}")

"""A model as one GGUF file for llama.cpp and what is built on it, and a Modelfile for Ollama.

Llama, Qwen 2 and the text models of Gemma 3. Whatever llama.cpp would compute otherwise than `transformers` is refused:
metadata are made, and with them all is checked, before weights are read. What differs there:

- Llama rotates neighbours (2i, 2i + 1), `transformers` halves (i, i + d/2): rows of query and key are permuted.
- Llama 3's scaling of rotary frequencies is a tensor of divisors.
- Gemma 3 multiplies by 1 + weight in its norms; in the file that 1 is added.
- A head that is the embedding is not written.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, LlamaFileType, RopeScalingType, get_tensor_name_map
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from kdsuite.errors import ModelError
from kdsuite.extras.gguf_vocabulary import added_around, vocabulary
from kdsuite.tasks.encoding import ChatTokenizer
from kdsuite.tasks.template import QUESTION

ARCHITECTURES = {  # by `model_type`; what llama.cpp takes for granted
    "llama": (MODEL_ARCH.LLAMA, {"hidden_act": "silu"}),
    "qwen2": (MODEL_ARCH.QWEN2, {"hidden_act": "silu", "use_sliding_window": False}),
    "gemma3_text": (
        MODEL_ARCH.GEMMA3,
        {
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "use_bidirectional_attention": False,
        },
    ),
}
ROPE_SCALINGS = {  # what may be set of each
    "default": set(),
    "linear": {"factor"},
    "yarn": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
}
GEMMA_27B = 62  # layers; llama.cpp knows by their number that it scales attention otherwise


def metadata(config: Any, chat: ChatTokenizer, name: str) -> GGUFWriter:
    """A writer that holds all but the tensors: hyper-parameters, tokenizer, chat template, special tokens.

    ModelError for an architecture, a setting or a tokenizer that llama.cpp does not know, or knows as another.
    """
    if config.model_type not in ARCHITECTURES:
        raise ModelError(
            f"model {name!r} is a {config.model_type}; GGUF is written for {', '.join(ARCHITECTURES)}; export it "
            "without --format, and convert it with llama.cpp's convert_hf_to_gguf.py"
        )
    architecture, fixed = ARCHITECTURES[config.model_type]
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    if config.model_type == "gemma3_text":
        scalar = config.hidden_size // heads if config.num_hidden_layers == GEMMA_27B else head
        fixed = fixed | {"query_pre_attn_scalar": scalar}
    for key, value in fixed.items():
        if (found := getattr(config, key, value)) != value:
            raise _unknown(name, key, found)
    writer = GGUFWriter(None, MODEL_ARCH_NAMES[architecture])
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    rope = config.rope_parameters
    if config.model_type == "gemma3_text":
        local, rope = rope["sliding_attention"], rope["full_attention"]
        full = [kind == "full_attention" for kind in config.layer_types]
        period = [*full, True].index(True) + 1  # every so many layers one that sees all
        if full != [layer % period == 0 for layer in range(1, len(full) + 1)]:
            raise _unknown(name, "layer_types", config.layer_types)
        if local["rope_type"] != "default":
            raise _unknown(name, "rope_parameters.sliding_attention", local)
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern(period)
        writer.add_rope_freq_base_swa(local["rope_theta"])
    _add_rope(writer, config.model_type, rope, name)
    _add_tokenizer(writer, chat, config.vocab_size)
    return writer


def _add_rope(writer: GGUFWriter, model_type: str, rope: dict[str, Any], name: str) -> None:
    kind = rope["rope_type"]
    given = {key for key, value in rope.items() if value is not None} - {"rope_type", "rope_theta"}
    if not given <= ROPE_SCALINGS.get(kind, set()) or (kind == "llama3" and model_type != "llama"):
        raise _unknown(name, "rope_parameters", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _add_tokenizer(writer: GGUFWriter, chat: ChatTokenizer, size: int) -> None:
    tokenizer = chat.tokenizer
    for key, value in vocabulary(chat, size).items():
        getattr(writer, f"add_{key}")(value)
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "eot": chat.end_id}
    ids |= {"unk": tokenizer.unk_token_id, "pad": chat.pad_id}
    if ids["eos"] is None:
        ids["eos"] = chat.end_id
    for name, id in ids.items():
        if id is not None:
            getattr(writer, f"add_{name}_token_id")(id)
    writer.add_chat_template(tokenizer.get_chat_template())


def write(writer: GGUFWriter, model: Any, path: Path, half: bool) -> None:
    """Write the file of `metadata`'s writer with a model's weights, one tensor after the other.

    Matrices are float16 where `half`, else float32; norms and biases are always float32. ModelError if a weight is
    beyond float16, or of no name that llama.cpp knows.
    """
    writer.add_file_type(LlamaFileType.MOSTLY_F16 if half else LlamaFileType.ALL_F32)
    tensors = dict(_tensors(model))
    kinds = {name: np.dtype(np.float16 if half and t.ndim > 1 else np.float32) for name, t in tensors.items()}
    for name, tensor in tensors.items():
        writer.add_tensor_info(name, tensor.shape, kinds[name], tensor.numel() * kinds[name].itemsize)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors.items():
        values = _as_written(name, tensor, model.config).numpy()
        if kinds[name] == np.float16 and np.abs(values).max() > np.finfo(np.float16).max:
            raise ModelError(f"{name} has values beyond float16; export with --format gguf-f32")
        writer.write_tensor_data(np.ascontiguousarray(values, kinds[name]))
    writer.close()


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    config = model.config
    names = get_tensor_name_map(ARCHITECTURES[config.model_type][0], config.num_hidden_layers)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(f"weight {key} of a {config.model_type} has no name in GGUF")
        yield name, tensor
    if config.model_type == "llama" and config.rope_parameters["rope_type"] == "llama3":
        rope, head = config.rope_parameters, model.model.layers[0].self_attn.head_dim
        plain = rope["rope_theta"] ** -(torch.arange(0, head, 2, dtype=torch.float32) / head)
        yield "rope_freqs.weight", plain / ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0]


def _as_written(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """The tensor of this name in float32 on the CPU, as llama.cpp's way to compute wants it."""
    tensor = tensor.detach().to("cpu", torch.float32)
    if config.model_type == "gemma3_text" and name.endswith("norm.weight"):
        return tensor + 1
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if config.model_type == "llama" and heads:
        return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)
    return tensor


def modelfile(chat: ChatTokenizer, weights: str) -> str:
    """A Modelfile: prompts as the chat template writes them for a question alone, answers greedy up to the end of turn.

    Ollama's templates are Go's, so what the chat template writes is found by its probe. It puts a beginning of sequence
    before every prompt itself.
    """
    before = chat.template.before.rstrip(" ")  # of blanks before the answer the model learned that it writes them
    if (bos := chat.tokenizer.bos_token) and added_around(chat)[0]:
        before = before.removeprefix(bos)
    ends: Sequence[str] = chat.tokenizer.convert_ids_to_tokens(list(chat.end_ids))
    turn = f"{before.replace(QUESTION, '{{ .Prompt }}')}{{{{ .Response }}}}{chat.template.after}"
    lines = [
        f"FROM ./{weights}",
        f'TEMPLATE """{turn}"""',
        *(f'PARAMETER stop "{end}"' for end in ends),
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
    ]
    return "\n".join(lines) + "\n"


def _unknown(name: str, key: str, value: Any) -> ModelError:
    return ModelError(
        f"model {name!r} has {key} {value!r}, which llama.cpp does not compute; export it without --format"
    )

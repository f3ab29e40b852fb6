"""Weight-only quantization: int8 (torchao) and 4 bits (NF4, bitsandbytes), as `transformers` integrates them.

Every linear layer of the decoder is quantized; embeddings and the LM head, tied or not, stay as they are: the embedding
is a table look-up that 8 or 4 bits would not speed up, and the head's errors go straight into the probabilities that
are scored. In small models with large vocabularies they are most of the bytes, so such models shrink by less than 4 or
8 times: `int8` takes 1 byte per weight and 4 per output row; `int4` half a byte per weight and 4 per 64 weights (4.5
bits), as in QLoRA (Dettmers et al. 2023, arXiv:2305.14314) without double quantization.

A quantized model is saved as an ordinary `save_pretrained` folder (safetensors) that plain `transformers`
loads. Both schemes save memory; neither promises speed: on a CPU, int8 weights are expanded for every product, and what
reads 4 bits may write faster and read prompts many times slower than bfloat16 (`kdsuite benchmark` says it).
"""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import BitsAndBytesConfig, TorchAoConfig

from kdsuite.errors import KdsuiteError, first_line
from kdsuite.models.forward import traits_of

NAMES = {"int8": "int8 weight-only (torchao)", "int4": "4-bit NF4 (bitsandbytes)"}


class QuantizationUnavailable(KdsuiteError):
    """This machine cannot quantize in that way; the message says why. What is not quantized goes on."""


def quantize(model: Any, scheme: str, device: torch.device) -> Any:
    """A copy of `model` on `device` with its linear layers quantized by `scheme` ("int8" or "int4").

    `model` is a causal language model; a PEFT adapter is merged into it first (in place). Its dtype stays the
    dtype of computation and of everything that is not quantized. Raises QuantizationUnavailable where the
    library or one of its kernels is missing on the device, which is found out by computing a token.
    """
    if scheme not in NAMES:
        raise QuantizationUnavailable(f"unknown quantization {scheme!r}; choose one of {', '.join(NAMES)}")
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    try:
        if scheme == "int8":
            from torchao.quantization import Int8WeightOnlyConfig

            config = TorchAoConfig(Int8WeightOnlyConfig())
        else:
            config = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=model.dtype
            )
        quantized = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=model.state_dict(),
            dtype=model.dtype,
            quantization_config=config,
            device_map={"": device},
            attn_implementation="sdpa",
        )
        with torch.inference_mode():
            quantized(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))
    except (ImportError, RuntimeError, ValueError, AssertionError) as error:
        raise QuantizationUnavailable(
            f"{NAMES[scheme]} does not work with this model on {device.type}: {first_line(error)}"
        ) from error
    quantized.generation_config = model.generation_config
    quantized.kdsuite_traits = traits_of(model)
    return quantized.eval()


def weight_file_bytes(folder: Path) -> int:
    """Bytes of the safetensors files in a model folder: the weights, without tokenizer and configuration."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))

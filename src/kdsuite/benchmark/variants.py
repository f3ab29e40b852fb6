"""A model variant: what is measured, where it lies, how it is loaded.

A variant is measured as it would be deployed: an adapter merged into its base, a quantized model from a
folder that holds the packed weights. So its time, memory and size are those of what `export` writes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel

from kdsuite.models.loading import load_model, load_trained
from kdsuite.models.quantization import quantize, weight_file_bytes
from kdsuite.models.sizes import count_parameters, weight_bytes
from kdsuite.models.source import ModelSource
from kdsuite.runtime.device import MB, DeviceChoice
from kdsuite.store.artefact import Artefact
from kdsuite.store.files import fingerprint


@dataclass(frozen=True)
class Variant:
    """A model to be measured; `source.name` is what its weights are called."""

    name: str  # as rows and legends show it: "student KD1 int8"
    source: ModelSource
    task: str
    student: str  # whose model it is: its name in the settings, "teacher", or "other"
    method: str
    quantization: str | None = None  # None, "int8" or "int4"

    @property
    def kind(self) -> tuple[str, str | None]:
        """The same for variants that differ in the values of their weights only."""
        return self.source.name, self.quantization


def load(variant: Variant, choice: DeviceChoice) -> tuple[Any, dict[str, float]]:
    """Load a variant (made by `standalone` if it is quantized) for inference, its adapter merged; and its sizes.

    Its size on disk is that of its weight files in the dtype of computation, what `export` would write, so
    that a float32 student is not compared with a teacher that was downloaded in bfloat16.
    """
    model = _unmerged(variant.source, choice)
    parameters = count_parameters(model)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    size = weight_bytes(model)
    disk = weight_file_bytes(Path(variant.source.where)) if variant.quantization else size
    return model, {"weights_mb": size / MB, "disk_mb": disk / MB, **parameters}


def standalone(
    variant: Variant, choice: DeviceChoice, folder: Path, say: Callable[[str], None] = lambda line: None
) -> Variant:
    """The variant as `load` takes it: a quantized one is first written below `folder`, unless it is there whole.

    Raises QuantizationUnavailable where the device lacks the scheme.
    """
    scheme, source = variant.quantization, variant.source
    if scheme is None:
        return variant
    key = fingerprint([source.fingerprint, scheme, choice.dtype_name])
    path = folder / f"{scheme}-{key[:16]}"
    Artefact(path, key, say, "it is quantized anew").get_or_build(
        lambda made: quantize(_unmerged(source, choice), scheme, choice.device).save_pretrained(made)
    )
    return replace(variant, source=ModelSource(source.name, str(path)))


def _unmerged(source: ModelSource, choice: DeviceChoice) -> Any:
    if source.base is None:
        return load_model(source, choice.device, choice.dtype)
    return load_trained(source.base, Path(source.where), choice.device, choice.dtype)

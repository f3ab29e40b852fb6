"""A model variant: what is measured, where it lies, how it is loaded.

A variant is measured as it would be deployed: an adapter merged into its base, a quantized model from a
folder that holds the packed weights. So its time, memory and size are those of what `export` writes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from peft import PeftModel

from kdsuite.models.loading import load_model, load_trained
from kdsuite.models.quantization import quantize, weight_file_bytes
from kdsuite.models.sizes import ParameterCount, count_parameters, weight_bytes
from kdsuite.models.source import ModelSource
from kdsuite.runtime.device import DeviceChoice
from kdsuite.store.files import atomic_folder, fingerprint


@dataclass(frozen=True)
class Variant:
    """A model to be measured: `path` is a model folder, a hub id, or an adapter folder for `base`."""

    name: str  # as rows and legends show it: "S1 KD1 int8"
    model: str  # what the weights are called: "student-1m"
    task: str
    student: str  # "S1", "S2", or "teacher"
    method: str
    path: str
    base: ModelSource | None = None  # the model that an adapter at `path` belongs to
    revision: str | None = None  # hub revision of `path`
    quantization: str | None = None  # None, "int8" or "int4"

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """A variant from its fields, as `dataclasses.asdict` gives them."""
        base = ModelSource.of(fields["base"]) if fields["base"] else None
        return replace(cls(**fields), base=base)

    @property
    def source(self) -> ModelSource:
        """The model as it is measured: that at `path`, an adapter with its base."""
        return ModelSource(self.model, self.path, self.revision, self.base)


@dataclass(frozen=True)
class Loaded:
    """A variant's model on the device; the bytes of its tensors, and of its weight files."""

    model: Any
    parameters: ParameterCount
    weight_bytes: int
    disk_bytes: int


def load(variant: Variant, choice: DeviceChoice) -> Loaded:
    """Load a variant (made by `standalone` if it is quantized) for inference, its adapter merged.

    Its size on disk is that of its weight files in the dtype of computation, what `export` would write, so
    that a float32 student is not compared with a teacher that was downloaded in bfloat16.
    """
    model = _unmerged(variant, choice)
    parameters = count_parameters(model)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    size = weight_bytes(model)
    disk = weight_file_bytes(Path(variant.path)) if variant.quantization else size
    return Loaded(model, parameters, size, disk)


def standalone(variant: Variant, choice: DeviceChoice, folder: Path) -> Variant:
    """The variant as `load` takes it: a quantized one is first written below `folder`, unless it is there.

    Raises QuantizationUnavailable where the device lacks the scheme.
    """
    if variant.quantization is None:
        return variant
    path = folder / f"{variant.quantization}-{_fingerprint(variant, choice)[:16]}"
    if not path.exists():
        quantized = quantize(_unmerged(variant, choice), variant.quantization, choice.device)
        with atomic_folder(path) as temporary:
            quantized.save_pretrained(temporary)
    return replace(variant, path=str(path), base=None, revision=None)


def _unmerged(variant: Variant, choice: DeviceChoice) -> Any:
    if variant.base is None:
        return load_model(variant.source, choice.device, choice.dtype)
    return load_trained(variant.base, Path(variant.path), choice.device, choice.dtype)


def _fingerprint(variant: Variant, choice: DeviceChoice) -> str:
    """Identifies the quantized weights: what they are made of, the scheme, and the dtype of the rest."""
    return fingerprint([variant.source.fingerprint, variant.quantization, choice.dtype_name])

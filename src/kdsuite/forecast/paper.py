"""A plan on a machine that is not here: `--machine 8xH100-80GB`. Nothing is measured; every rate is an assumption.

A model is split over the fewest GPUs of a node (1, 2, 4, 8) that hold its weights with room to spare; the others do
other jobs meanwhile (`placing`). Tensor parallelism sends two sums per layer and token over the
interconnect, in each direction (Shoeybi et al. 2019, arXiv:1909.08053). Peaks, memory and bandwidths are those of the
vendor's data sheets, products dense and in bfloat16; the shares of them that are reached are what well-kept code
reaches at these batch sizes, not what was measured here.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from kdsuite.config import nearest
from kdsuite.errors import SettingsError
from kdsuite.forecast.scene import Machine
from kdsuite.forecast.speeds import Load
from kdsuite.models.costs import DTYPE_BYTES, Shape, weight_bytes

TRAINED, READ, STREAMED = 0.35, 0.5, 0.6  # of the peak in training and in reading, of the bandwidth in writing
ROOM = 0.75  # of a GPU's memory that weights may take; the rest is for activations and for keys and values
LAUNCHED = {"training": 1e-3, "reading": 3e-4}  # seconds per layer of a pass, at least: kernels are launched one by one
NODE = 8  # GPUs that a model is split over at most
DTYPE = "bfloat16"
WIDTH = DTYPE_BYTES[DTYPE]


@dataclass(frozen=True)
class Gpu:
    """`peak`: operations per second; `memory`: bytes; `bandwidth` to it and `link` between GPUs: bytes per second, the
    latter in one direction."""

    peak: float
    memory: float
    bandwidth: float
    link: float


GPUS = {
    "H200-141GB": Gpu(989e12, 141e9, 4.8e12, 450e9),
    "H100-80GB": Gpu(989e12, 80e9, 3.35e12, 450e9),
    "A100-80GB": Gpu(312e12, 80e9, 2.04e12, 300e9),
    "L40S-48GB": Gpu(362e12, 48e9, 0.864e12, 32e9),
}


@dataclass(frozen=True)
class OnPaper:
    """The speeds of a model on as many GPUs of a node as it is split over."""

    name: str
    gpu: Gpu
    gpus: int = 1
    dtype: ClassVar = DTYPE

    def split(self, shape: Shape) -> int:
        """Over how many GPUs: all of them where even those have less room than wanted."""
        count = 1
        while 2 * count <= min(self.gpus, NODE) and weight_bytes(shape, DTYPE) > ROOM * count * self.gpu.memory:
            count *= 2
        return count

    def training(self, shape: Shape, load: Load) -> float:
        whole = load.lora is not None and not load.lora.enabled
        operations = (3 if whole else 2) * 2 * shape.body_parameters * load.sequences * load.tokens
        return operations / max(operations / (TRAINED * self.gpu.peak), LAUNCHED["training"] * shape.layers)

    def reading(self, shape: Shape, load: Load) -> float:
        count, tokens = self.split(shape), load.sequences * load.tokens
        operations = 2 * shape.body_parameters * tokens
        seconds = operations / (READ * self.gpu.peak * count) + tokens * self._sums(shape, count)
        return operations / max(seconds, LAUNCHED["reading"] * shape.layers)

    def writing(self, shape: Shape, load: Load) -> float:
        count, tokens = self.split(shape), load.sequences
        weights = shape.body_parameters + shape.width * shape.vocabulary
        kept = 2 * shape.layers * shape.keys * load.tokens * load.sequences
        streamed = WIDTH * (weights + kept) / (STREAMED * self.gpu.bandwidth * count)
        computed = 2 * weights * tokens / (READ * self.gpu.peak * count)
        return max(streamed, computed, LAUNCHED["reading"] * shape.layers) + tokens * self._sums(shape, count)

    def _sums(self, shape: Shape, count: int) -> float:
        """Seconds per token in which the GPUs of a split model add up what each has."""
        sent = 2 * shape.layers * shape.width * WIDTH * 2 * (count - 1) / count
        return sent / self.gpu.link

    def peak(self) -> float:
        return self.gpu.peak

    def about(self) -> str:
        gpu, training, other = self.gpu, *(1e3 * seconds for seconds in LAUNCHED.values())
        return (
            f"assumed of each {self.name}: {gpu.peak / 1e12:,.0f} TFLOP/s in {DTYPE}, of which {TRAINED:.0%} at most "
            f"in training and {READ:.0%} in reading; {gpu.bandwidth / 1e12:g} TB/s of memory, {STREAMED:.0%} in "
            f"writing; {training:g} ms per layer of a training pass at least, {other:g} of any other; "
            f"{gpu.link / 1e9:g} GB/s to another"
        )


def machine_of(name: str) -> Machine:
    """`8xH100-80GB`, or one of a kind, `H100-80GB`. SettingsError for what is not in the table."""
    found = re.fullmatch(r"(?:([1-9]\d{0,3})x)?(\S+)", name)
    if found is None or found[2] not in GPUS:
        wrong = found[2] if found else name
        raise SettingsError(
            f"--machine {name}: no such machine{nearest(wrong, GPUS)}; say N×NAME as 8xH100-80GB, of {', '.join(GPUS)}"
        )
    gpu, count = GPUS[found[2]], int(found[1] or 1)
    return Machine("cuda", DTYPE, round(gpu.memory), OnPaper(found[2], gpu, count))

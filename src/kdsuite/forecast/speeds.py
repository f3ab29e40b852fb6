"""What a forecast asks of a machine: how fast it trains, reads and writes with a model of some shape.

Asked of this machine, that is measured (`calibration`); of one that is only on paper, it follows from stated rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kdsuite.config import LoraSettings
from kdsuite.config.benchmark import Scheme
from kdsuite.models.costs import Shape


@dataclass(frozen=True)
class Load:
    """What goes through a model at once: sequences of so many tokens, `positions` of each on to the LM head.

    `lora`: of a model that is or was trained here, how; `steps`: optimizer steps per pass, below 1 where gradients are
    accumulated; `quantization`: of the weights of a model that is only measured.
    """

    sequences: int
    tokens: int
    positions: float
    lora: LoraSettings | None = None
    steps: float = 0.0
    quantization: Scheme | None = None


class Speeds(Protocol):
    """Of a device, or of the devices that a model is split over."""

    def training(self, shape: Shape, load: Load) -> float:
        """Operations per second, forward and backward, the optimizer's time included (operations: `times`)."""
        ...

    def reading(self, shape: Shape, load: Load) -> float:
        """Operations per second of a forward pass."""
        ...

    def writing(self, shape: Shape, load: Load) -> float:
        """Seconds in which each sequence gets one more token; its `tokens` are there."""
        ...

    def split(self, shape: Shape) -> int:
        """Over how many devices a model is split."""
        ...

    def peak(self) -> float:
        """Operations per second that it multiplies large matrices at."""
        ...

    def about(self) -> str:
        """Where the figures are from."""
        ...

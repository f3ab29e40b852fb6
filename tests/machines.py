"""A machine to hold plans against, of which every figure is known."""

from __future__ import annotations

from dataclasses import dataclass

from kdsuite.forecast.speeds import Load
from kdsuite.models.costs import Shape


@dataclass(frozen=True)
class Rates:
    """Speeds that are the same for every shape and load."""

    operations_training: float  # per second
    operations_reading: float  # per second
    token: float  # seconds per weight of a decoding step, in which every sequence has one token

    def training(self, shape: Shape, load: Load) -> float:
        return self.operations_training

    def reading(self, shape: Shape, load: Load) -> float:
        return self.operations_reading

    def writing(self, shape: Shape, load: Load) -> float:
        weights = shape.body_parameters + shape.width * shape.vocabulary
        return weights * max(self.token, 2 * load.sequences / self.operations_reading)

    def split(self, shape: Shape) -> int:
        return 1

    def peak(self) -> float:
        return max(self.operations_training, self.operations_reading)

    def about(self) -> str:
        return "the same speed for every model"

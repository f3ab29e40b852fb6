"""KD1+KD3: distributions and hidden states in one loss."""

from kdsuite.config import Settings
from kdsuite.methods.base import Kept, Loss, Method, Pair, Point
from kdsuite.methods.kd1 import KD1
from kdsuite.methods.kd3 import KD3


class LogitAndFeatureDistillation(Method):
    """α·⟨CE⟩ + (1 − α)·T²·⟨KL⟩ + λ·⟨d⟩: every point of the one's grid with every one of the other's."""

    name, title = "KD1+KD3", "logit and feature distillation"
    symbols = {**KD1.symbols, **KD3.symbols}
    letters = {**KD1.letters, **KD3.letters}
    sections = {**KD1.sections, **KD3.sections}
    needs = KD1.needs | KD3.needs

    def points(self, settings: Settings) -> list[dict[str, float]]:
        return [one | other for one in KD1.points(settings) for other in KD3.points(settings)]

    def kept(self, settings: Settings) -> Kept:
        return KD1.kept(settings) | (KD3.kept(settings) or Kept())

    def check(self, settings: Settings, labels: int) -> None:
        KD1.check(settings, labels)

    def reads(self, settings: Settings, point: Point) -> frozenset[str]:
        return KD1.reads(settings, point) | KD3.needs

    def layers(self, settings: Settings, student: int, teacher: int) -> list[tuple[int, int]]:
        return KD3.layers(settings, student, teacher)

    def loss(self, settings: Settings, point: Point, pair: Pair) -> Loss:
        terms = KD1.loss(settings, point, pair)
        return terms | {"feature": KD3.loss(settings, point, pair)["feature"]}


KD1_KD3 = LogitAndFeatureDistillation()

"""B0: fine-tuning on the gold answer, without any teacher; what every method is compared with."""

from kdsuite.config import Settings
from kdsuite.methods.base import Loss, Method, Pair, Point


class FineTuning(Method):
    """⟨−log q(y)⟩ over the tokens of the gold answer and its end of turn."""

    name, title = "B0", "fine-tuning"

    def loss(self, settings: Settings, point: Point, pair: Pair) -> Loss:
        from kdsuite.methods.terms import OnTarget

        return {"ce": OnTarget(1.0)}


B0 = FineTuning()

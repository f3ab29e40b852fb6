"""KD3: the teacher's hidden states at the target positions, through a projection, beside the gold answer.

Which layer learns from which is `layer_pairs`.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdsuite.config import Count, Positive, Section, Settings, Unique
from kdsuite.errors import SettingsError
from kdsuite.methods.base import STATES, Kept, Loss, Method, Pair, Point

LayerPairs = Annotated[tuple[tuple[Count, Count], ...], Unique, Field(min_length=1)]


class Kd3Settings(Section):
    """Feature distillation: CE + λ · mean over layers of d(W·h_student, h_teacher)."""

    grid: ClassVar = frozenset({"weights"})

    weights: Annotated[tuple[Positive, ...], Unique, Field(min_length=1)] = Field(
        default=(1.0,), description="weights λ of the feature loss; default [1]"
    )
    layers: Literal["proportional", "last"] | LayerPairs = Field(
        default="proportional",
        description="which layers are matched: proportional, last, or pairs [[student, teacher], …] from 1; "
        "default proportional",
    )
    max_layers: Count = Field(
        default=2, description="proportional: pairs of layers that are matched, the last always; default 2"
    )
    loss: Literal["cosine", "mse", "gram", "procrustes"] = Field(
        default="cosine",
        description="of projected states 1 − cosine, or the squared error relative to the teacher; without projection "
        "the difference of Gram matrices, or what the best rotation leaves; default cosine",
    )
    cache: bool = Field(
        default=True,
        description="keep the teacher's hidden states on disk; false computes them anew in every step; default true",
    )


class FeatureDistillation(Method):
    """⟨CE⟩ + λ·⟨mean over pairs of layers of d(W·h_student, h_teacher)⟩."""

    name, title = "KD3", "feature distillation"
    symbols = {"feature_weight": "λ"}
    letters = {"feature_weight": "l"}
    sections = {"kd3": Kd3Settings}
    needs = frozenset({STATES})

    def points(self, settings: Settings) -> list[dict[str, float]]:
        return [{"feature_weight": weight} for weight in settings.section(Kd3Settings).weights]

    def kept(self, settings: Settings) -> Kept | None:
        return Kept(states=True) if settings.section(Kd3Settings).cache else None

    def layers(self, settings: Settings, student: int, teacher: int) -> list[tuple[int, int]]:
        kd3 = settings.section(Kd3Settings)
        return layer_pairs(student, teacher, kd3.layers, kd3.max_layers)

    def loss(self, settings: Settings, point: Point, pair: Pair) -> Loss:
        from kdsuite.methods.terms import Features, OnTarget

        kind = settings.section(Kd3Settings).loss
        return {"ce": OnTarget(1.0), "feature": Features(point["feature_weight"], kind, pair.layers, pair.widths)}


def layer_pairs(
    student_layers: int, teacher_layers: int, mapping: str | Sequence[tuple[int, int]], most: int
) -> list[tuple[int, int]]:
    """Layers to match, in the student's order.

    `proportional` spreads at most `most` pairs evenly over the student's depth and maps each to the layer at
    the same relative depth of the teacher, the last to the last; `last` matches only the last ones; explicit
    pairs are taken as they are. SettingsError for a pair beyond a model's depth.
    """
    if isinstance(mapping, str):
        if mapping == "last":
            return [(student_layers, teacher_layers)]
        count = min(most, student_layers)
        chosen = [round(student_layers * (i + 1) / count) for i in range(count)]
        return [(layer, max(1, round(layer * teacher_layers / student_layers))) for layer in chosen]
    pairs = sorted(mapping)
    for own, other in pairs:
        if not (1 <= own <= student_layers and 1 <= other <= teacher_layers):
            raise SettingsError(
                f"kd3.layers: no pair [{own}, {other}]; the student has {student_layers} layers, "
                f"the teacher {teacher_layers}, counted from 1"
            )
    return pairs


KD3 = FeatureDistillation()

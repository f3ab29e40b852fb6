"""Which layer learns from which, and through what: the student's states are projected to the teacher's width.

The projector is always there, also when both widths are equal (equal widths are not equal spaces), is trained
with the student, and is dropped when the student is saved.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from kdsuite.errors import SettingsError

LayerPair = tuple[int, int]  # (student layer, teacher layer), 1 … number of layers


def layer_pairs(
    student_layers: int, teacher_layers: int, mapping: str | Sequence[LayerPair], most: int
) -> list[LayerPair]:
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


class Projectors(nn.ModuleList):
    """A linear map without bias per pair of layers, from the student's width to the teacher's."""

    def __init__(self, widths: Sequence[tuple[int, int]]):
        super().__init__(nn.Linear(own, other, bias=False) for own, other in widths)

    def forward(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        """Per pair: student states [m, student width] → [m, teacher width], in float32."""
        return [project(state.float()) for project, state in zip(self, states, strict=True)]

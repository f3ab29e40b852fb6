"""The methods: which target, which losses. A new method is one entry here plus its loss (see docs/extending.md).

Between methods nothing differs but target and loss: same examples, order, steps, learning rate and seeds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """What a method learns, and what it adds to the loss on its target's tokens."""

    name: str
    title: str
    target: str  # "gold", or "teacher": the teacher's cleaned answer
    soft: bool  # KL to the teacher's tempered distribution
    features: bool  # distance to the teacher's hidden states
    loss: str = "cross_entropy"  # on the target's tokens: a function of `distill.losses`

    @property
    def needs_outputs(self) -> bool:
        """Whether teacher outputs on target positions are read (as against answers only)."""
        return self.soft or self.features


METHODS = {
    method.name: method
    for method in (
        Method("B0", "fine-tuning", target="gold", soft=False, features=False),
        Method("KD1", "logit distillation", target="gold", soft=True, features=False),
        Method("KD2", "sequence-level distillation", target="teacher", soft=False, features=False),
        Method("KD3", "feature distillation", target="gold", soft=False, features=True),
        Method("KD1+KD3", "logit and feature distillation", target="gold", soft=True, features=True),
    )
}

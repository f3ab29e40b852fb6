"""A method's loss on a batch: parts per position, averaged over the whole optimizer step in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kdsuite.methods import losses
from kdsuite.methods.divergences import divergence, temperature_power, uld
from kdsuite.methods.features import Projectors
from kdsuite.methods.losses import (
    LOG_NOTHING,
    feature_distance,
    student_partition,
    student_sorted,
    teacher_partition,
    teacher_tempered,
    tempered,
)
from kdsuite.methods.registry import Method
from kdsuite.methods.targets import SoftTargets
from kdsuite.models.forward import class_log_probs, supervised_logits
from kdsuite.tasks.batching import Batch

PARTS = ("ce", "kd", "feature")
Counts = dict[str, int]


@dataclass(frozen=True)
class Objective:
    """The loss of a method with its hyper-parameters: α·CE + (1 − α)·T²·KD + λ·features.

    `divergence` and its `beta` compare distributions; `cross_tokenizer` says what is compared where the two
    tokenizers differ: tokens with equal bytes (byte_map), sorted probabilities (uld), or the one for tokens
    that have a counterpart and the other for the rest (hybrid). T² is T for absolute differences.
    """

    method: Method
    alpha: float | None = None
    temperature: float | None = None
    feature_weight: float | None = None
    feature_loss: str = "cosine"
    divergence: str = "forward_kl"
    beta: float = 0.5
    cross_tokenizer: str = "byte_map"

    @property
    def weights(self) -> dict[str, float]:
        """The factor of every part that this method has; a part of weight 0 is not computed."""
        weights = {"ce": 1.0}
        if self.method.soft and self.alpha is not None and self.temperature is not None:
            weights = {"ce": self.alpha, "kd": 1.0 - self.alpha}
        if self.method.features and self.feature_weight is not None:
            weights["feature"] = self.feature_weight
        return {part: weight for part, weight in weights.items() if weight > 0}

    @property
    def hard_loss(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """The loss on the target's tokens: logits [n, V], targets [n] → [n]."""
        return getattr(losses, self.method.loss)

    def compare(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """T²·divergence of two distributions at T, given by log-probabilities [n, m] → [n]."""
        assert self.temperature is not None
        scale = self.temperature ** temperature_power(self.divergence)
        return scale * divergence(self.divergence, self.beta)(teacher, student)

    def counts(self, batch: Batch, soft: SoftTargets | None) -> Counts:
        """How many values each part averages over: supervised tokens, distributions, aligned positions."""
        counts = {"ce": int(batch.on_target.sum())}
        if soft is not None:
            by_class = soft.class_scores is not None
            counts |= {
                "kd": len(batch.ids) if by_class else len(soft.positions),
                "feature": len(soft.positions),
            }
        return counts


class Distiller(nn.Module):
    """A student with its objective and, for feature distillation, its projectors: what the trainer trains."""

    def __init__(
        self,
        student: Any,
        vocabulary: int,
        objective: Objective,
        layers: tuple[int, ...] = (),
        projectors: Projectors | None = None,
        unmapped: torch.Tensor | None = None,
    ):
        """`layers` and `projectors` for features; `unmapped` [V] bool, the student's tokens that the teacher lacks."""
        super().__init__()
        self.student, self.projectors = student, projectors
        self.unmapped: torch.Tensor | None
        self.register_buffer("unmapped", unmapped, persistent=False)
        self.vocabulary, self.objective, self.layers = vocabulary, objective, layers

    def forward(self, batch: Batch, soft: SoftTargets | None) -> dict[str, torch.Tensor]:
        """Sums of each part's values over this batch's positions; the trainer divides by the step's counts."""
        weights = self.objective.weights
        target = batch.on_target
        by_class = soft is not None and soft.class_scores is not None and "kd" in weights
        logits, hidden = supervised_logits(
            self.student, batch, batch.distinct if by_class else target, self.vocabulary,
            self.layers if "feature" in weights else (),
        )  # fmt: skip
        on_target = logits[batch.shared[target]] if by_class else logits
        sums = {"ce": self.objective.hard_loss(on_target, batch.targets[target]).sum()}
        if soft is None:
            return sums
        within = _positions_on_target(target, soft.positions)
        if by_class:
            sums["kd"] = self._class_divergence(logits, batch, soft).sum()
        elif "kd" in weights:
            everywhere = len(within) == len(on_target)  # and in order: no copy is needed
            sums["kd"] = self._token_divergence(on_target if everywhere else on_target[within], soft).sum()
        if "feature" in weights:
            places = batch.shared[soft.positions] if by_class else within
            sums["feature"] = self._feature_distance([h[places] for h in hidden], soft).sum()
        return sums

    def _class_divergence(self, logits: torch.Tensor, batch: Batch, soft: SoftTargets) -> torch.Tensor:
        """T²·divergence of the two distributions over the label words, [B]."""
        assert soft.class_scores is not None and self.objective.temperature is not None
        scores = class_log_probs(logits, batch, soft.class_scores.shape[1])
        temperature = self.objective.temperature
        return self.objective.compare(tempered(soft.class_scores, temperature), tempered(scores, temperature))

    def _token_divergence(self, logits: torch.Tensor, soft: SoftTargets) -> torch.Tensor:
        """T²·divergence of the two distributions over tokens at the aligned positions, [m]."""
        assert soft.ids is not None and soft.log_probs is not None and soft.log_tail is not None
        assert soft.logsumexp is not None and soft.tempered_logsumexp is not None
        temperature, how = self.objective.temperature, self.objective.cross_tokenizer
        assert temperature is not None
        kept = teacher_tempered(soft.log_probs, soft.logsumexp, soft.tempered_logsumexp, temperature)
        if how == "uld":
            whole = teacher_partition(kept, soft.log_tail, torch.zeros_like(soft.ids))
            return temperature * uld(whole, student_sorted(logits, kept.shape[-1], temperature))
        mapped = teacher_partition(kept, soft.log_tail, soft.ids)
        value = self.objective.compare(mapped, student_partition(logits, soft.ids, temperature))
        if how == "hybrid":
            value = value + temperature * self._unmapped_distance(kept, logits, soft.ids)
        return value

    def _unmapped_distance(self, kept: torch.Tensor, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """ULD of the kept teacher tokens without counterpart and as many of the student's, [m].

        As many: what the teacher gives to its further tokens is not known, and should cost nothing.
        """
        rest = torch.where(ids < 0, kept, LOG_NOTHING).sort(-1, descending=True).values  # [m, k]
        own = student_sorted(logits, kept.shape[-1], self.objective.temperature or 1.0, among=self.unmapped)
        return uld(rest, torch.where(rest > LOG_NOTHING, own[:, :-1], LOG_NOTHING))

    def _feature_distance(self, hidden: list[torch.Tensor], soft: SoftTargets) -> torch.Tensor:
        """Mean over the pairs of layers of the distance at the aligned positions, [m]."""
        assert self.projectors is not None and soft.hidden is not None
        projected = self.projectors(hidden)
        kind = self.objective.feature_loss
        distances = [
            feature_distance(own, other, kind) for own, other in zip(projected, soft.hidden, strict=True)
        ]
        return torch.stack(distances).mean(0)


def _positions_on_target(target: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Indices into all supervised positions → indices into those of the targets."""
    return (target.cumsum(0) - 1)[positions]

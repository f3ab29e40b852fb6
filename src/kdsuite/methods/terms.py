"""What losses are sums of: terms that give a value per position, averaged over a whole optimizer step in one place.

A method's loss is Σ over parts of weight · mean of the part's values. `Distiller` runs the student once and hands
the terms what they compare; the training loop divides the sums by the number of values in the whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from kdsuite.methods.divergences import Taid, divergence, temperature_power, uld
from kdsuite.methods.losses import (
    LOG_NOTHING,
    UNPROJECTED,
    cross_entropy,
    feature_distance,
    sampled_kl,
    standardised,
    student_partition,
    student_sorted,
    teacher_partition,
    tempered,
)
from kdsuite.methods.targets import SoftTargets
from kdsuite.models.forward import class_log_probs, supervised_logits, token_log_probs
from kdsuite.tasks.batching import Batch

Unit = Literal["tokens", "distributions", "aligned"]


@dataclass(frozen=True)
class Seen:
    """What the student said on a batch: n target positions, m of them aligned with the teacher's, B examples."""

    logits: torch.Tensor  # [n, V]
    targets: torch.Tensor  # [n] the token to be predicted at each
    aligned: torch.Tensor | None = None  # [m] index into the n, in order
    class_scores: torch.Tensor | None = None  # [B, C] log-probabilities of the label words
    hidden: Mapping[int, torch.Tensor] = field(default_factory=dict)  # by layer [m, width], at the aligned ones
    log_probs: torch.Tensor | None = None  # [n] of the targets, where the class scores are sums of them


class Term(nn.Module):
    """A part of a loss. `weight` is its factor; it is a mean over `unit`: the target's tokens, the teacher's
    distributions (one per aligned position, or per example where labels are scored), or aligned positions."""

    unit: Unit = "tokens"
    reads_teacher = False
    beside = False  # of the texts that are learned beside the targets, in passes of their own; no teacher is read there
    layers: tuple[int, ...] = ()  # of the student, whose states it wants

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def forward(self, seen: Seen, soft: SoftTargets) -> torch.Tensor:
        """A value in float32 for each of its unit."""
        raise NotImplementedError

    def stepped(self, mean: torch.Tensor, progress: float) -> None:
        """What it is told after each step: the mean of its values there, and the share of all steps that is done.

        What a term changes here is a buffer of its own: checkpoints have it.
        """


class OnTarget(Term):
    """A loss on the target's own tokens: logits [n, V], targets [n] → [n]; cross-entropy if no other is given."""

    def __init__(self, weight: float, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = cross_entropy):
        super().__init__(weight)
        self.loss = loss

    def forward(self, seen: Seen, soft: SoftTargets | None) -> torch.Tensor:
        if self.loss is cross_entropy and seen.log_probs is not None:  # going over the vocabulary again takes time
            return -seen.log_probs
        return self.loss(seen.logits, seen.targets)


class OnRationale(OnTarget):
    """The same on the tokens of what is learned beside the target: the reason for it."""

    beside = True


class Divergence(Term):
    """T²·divergence of the student's distribution from the teacher's (T for absolute differences).

    `how` says what is compared where the two tokenizers differ: tokens with equal bytes (byte_map), sorted
    probabilities (uld), or the one for tokens that have a counterpart and the other for the rest (hybrid, which
    needs to know the student's `unmapped` tokens). Where labels are scored, the two distributions over the labels.
    Where the teacher's entries are drawn ones, it is the estimated forward KL, whatever `kind` and `how` are.
    `standardise`: of the logits divided by their deviation, each model's by its own, over all its tokens or labels.
    """

    unit = "distributions"
    reads_teacher = True

    def __init__(
        self,
        weight: float,
        temperature: float,
        kind: str = "forward_kl",
        beta: float = 0.5,
        how: str = "byte_map",
        unmapped: torch.Tensor | None = None,
        standardise: bool = False,
    ):
        super().__init__(weight)
        self.temperature, self.how, self.standardise = temperature, how, standardise
        self.scale = temperature ** temperature_power(kind)
        self.divergence = divergence(kind, beta)
        self.unmapped: torch.Tensor | None
        self.register_buffer("unmapped", unmapped, persistent=False)

    def forward(self, seen: Seen, soft: SoftTargets) -> torch.Tensor:
        if soft.class_scores is not None:
            assert seen.class_scores is not None
            both = soft.class_scores, seen.class_scores
            both = map(standardised, both) if self.standardise else both
            return self.scale * self.divergence(*(tempered(scores, self.temperature) for scores in both))
        everywhere = seen.aligned is None or len(seen.aligned) == len(seen.logits)  # and in order: no copy is needed
        return self._of_tokens(seen.logits if everywhere else seen.logits[seen.aligned], soft)

    def stepped(self, mean: torch.Tensor, progress: float) -> None:
        if isinstance(self.divergence, Taid):
            self.divergence.stepped(mean, progress)

    def _of_tokens(self, logits: torch.Tensor, soft: SoftTargets) -> torch.Tensor:
        """At the aligned positions, [m]."""
        ids, kept, temperature = soft.ids, soft.tempered, self.temperature
        assert ids is not None and kept is not None and soft.log_tail is not None
        logits = standardised(logits) if self.standardise else logits
        if soft.log_weights is not None:
            return self.scale * sampled_kl(logits, ids, kept, soft.log_weights, temperature, soft.others)
        if self.how == "uld":
            whole = teacher_partition(kept, soft.log_tail, torch.zeros_like(ids))
            return temperature * uld(whole, student_sorted(logits, kept.shape[-1], temperature))
        mapped = teacher_partition(kept, soft.log_tail, ids)
        value = self.scale * self.divergence(mapped, student_partition(logits, ids, temperature))
        if self.how == "hybrid":  # the kept tokens without counterpart, and as many of the student's: what the
            # teacher gives to its further tokens is not known, and should cost nothing
            rest = torch.where(ids < 0, kept, LOG_NOTHING).sort(-1, descending=True).values  # [m, k]
            own = student_sorted(logits, kept.shape[-1], temperature, among=self.unmapped)[:, :-1]
            value = value + temperature * uld(rest, torch.where(rest > LOG_NOTHING, own, LOG_NOTHING))
        return value


class Features(Term):
    """Mean over pairs of layers of the distance of W·h_student from h_teacher at the aligned positions.

    W, a linear map without bias per pair, is always there, also when both widths are equal (equal widths are not
    equal spaces), is trained with the student in float32, and is dropped when the student is saved. `gram` and
    `procrustes` need none: they compare how the positions that are read together, a micro-batch's, lie to each other.
    """

    unit = "aligned"
    reads_teacher = True

    def __init__(self, weight: float, kind: str, layers: Sequence[tuple[int, int]], widths: Sequence[tuple[int, int]]):
        super().__init__(weight)
        self.kind, self.layers = kind, tuple(own for own, _ in layers)
        of = (nn.Identity() if kind in UNPROJECTED else nn.Linear(own, other, bias=False) for own, other in widths)
        self.projectors = nn.ModuleList(of)

    def forward(self, seen: Seen, soft: SoftTargets) -> torch.Tensor:
        assert soft.hidden is not None
        distances = [
            feature_distance(project(seen.hidden[layer].float()), other, self.kind)
            for project, layer, other in zip(self.projectors, self.layers, soft.hidden, strict=True)
        ]
        return torch.stack(distances).mean(0)


class Distiller(nn.Module):
    """A student with the terms of its loss by the name of the part: what is trained."""

    def __init__(self, student: Any, vocabulary: int, terms: Mapping[str, Term]):
        super().__init__()
        self.student, self.vocabulary = student, vocabulary
        self.terms = nn.ModuleDict(terms)

    @property
    def weights(self) -> dict[str, float]:
        """The factor of every part."""
        return {part: term.weight for part, term in self.terms.items()}  # pyright: ignore[reportReturnType]

    def counts(self, batch: Batch, soft: SoftTargets | None, beside: bool = False) -> dict[str, int]:
        """How many values each part averages over; and, as `tokens`, the supervised tokens."""
        units = {"tokens": int(batch.on_target.sum())}
        if soft is not None:
            aligned = len(soft.positions)
            units |= {"aligned": aligned, "distributions": aligned if soft.class_scores is None else len(batch.ids)}
        own = {part: units.get(str(term.unit), 0) if term.beside is beside else 0 for part, term in self.terms.items()}
        return {"tokens": units["tokens"]} | own

    def forward(self, batch: Batch, soft: SoftTargets | None, beside: bool = False) -> dict[str, torch.Tensor]:
        """Sums of each part's values over this batch's positions, of targets or of what is learned `beside` them;
        without teacher, of the parts that need none."""
        terms: dict[str, Any] = {
            part: term
            for part, term in self.terms.items()
            if term.beside == beside and (soft is not None or not term.reads_teacher)
        }
        layers = tuple(dict.fromkeys(layer for term in terms.values() for layer in term.layers))
        target = batch.on_target
        by_class = soft is not None and soft.class_scores is not None
        where = batch.distinct if by_class else target
        logits, hidden = supervised_logits(self.student, batch, where, self.vocabulary, layers)
        seen = Seen(logits[batch.shared[target]] if by_class else logits, batch.targets[target])
        if soft is not None:
            within = (target.cumsum(0) - 1)[soft.positions]  # of all supervised positions → of the target's
            places = batch.shared[soft.positions] if by_class else within
            at_layers = {layer: states[places] for layer, states in zip(layers, hidden, strict=True)}
            seen = replace(seen, aligned=within, hidden=at_layers)
            if soft.class_scores is not None:
                tokens = token_log_probs(logits, batch)
                scores = class_log_probs(tokens, batch, soft.class_scores.shape[1])
                seen = replace(seen, class_scores=scores, log_probs=tokens[target])
        return {part: term(seen, soft).sum() for part, term in terms.items()}

"""Teacher outputs in the student's terms: aligned positions, mapped tokens, projected layers, as tensors.

Everything is found by example id, so order, epoch and evaluation in between do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from kdsuite.methods.alignment import VocabularyMap, align
from kdsuite.tasks.encoding import Encoded
from kdsuite.teacher.base import Teacher
from kdsuite.teacher.local import join, read_states


@dataclass
class SoftTargets:
    """What the teacher says about a batch: m aligned target positions, k kept tokens, B examples."""

    positions: torch.Tensor  # [m] index into the batch's n supervised positions
    ids: torch.Tensor | None = None  # [m, k] kept tokens in the student's vocabulary, −1 for unmapped
    log_probs: torch.Tensor | None = None  # [m, k] at T = 1
    logsumexp: torch.Tensor | None = None  # [m] of the teacher's logits
    tempered_logsumexp: torch.Tensor | None = None  # [m] of the logits / T
    log_tail: torch.Tensor | None = None  # [m] log-probability at T of the tokens that are not kept
    standardised: torch.Tensor | None = None  # [m, 3] deviation σ of the logits, logsumexp and log_tail at T·σ
    class_scores: torch.Tensor | None = None  # [B, C] log-probabilities of the label words
    hidden: list[torch.Tensor] | None = None  # per pair of layers [m, teacher width]

    def to(self, device: torch.device) -> SoftTargets:
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                moved[field.name] = [v.to(device) for v in value]
            else:
                moved[field.name] = value if value is None else value.to(device)
        return SoftTargets(**moved)


@dataclass(frozen=True)
class TeacherTargets:
    """A teacher as one student sees it. `temperature` None: no distributions; no `layers`: no hidden states."""

    teacher: Teacher
    vocabulary: VocabularyMap
    temperature: float | None
    layers: tuple[int, ...]

    def of(self, batch: Sequence[Encoded]) -> SoftTargets:
        """Collate the teacher outputs of encoded student examples. KeyError for an example never asked."""
        records = self.teacher.outputs(batch)
        pairs = [
            align([(int(a), int(b)) for a, b in record["spans"]], example.spans[example.gold_slice])
            for example, record in zip(batch, records, strict=True)
        ]
        aligned = [
            {name: values[[t for _, t in pair]] for name, values in record.items() if name != "class_scores"}
            for record, pair in zip(records, pairs, strict=True)
        ]
        targets = SoftTargets(positions=torch.tensor(_flat_positions(batch, pairs)))
        if self.layers:
            targets.hidden = [read_states(join(aligned, f"hidden_{layer}")) for layer in self.layers]
        if self.temperature is not None:
            if "class_scores" in records[0]:
                targets.class_scores = torch.from_numpy(np.stack([r["class_scores"] for r in records]))
            else:
                flat = [places for pair in pairs for places in pair]
                targets.ids = torch.from_numpy(self.vocabulary(join(aligned, "topk_ids"), flat))
                targets.log_probs = torch.from_numpy(join(aligned, "topk_logprobs"))
                normalisers = torch.from_numpy(join(aligned, "logsumexp"))
                targets.logsumexp = normalisers[:, 0]
                column = self.teacher.temperatures.index(self.temperature)
                targets.tempered_logsumexp = normalisers[:, column]
                targets.log_tail = torch.from_numpy(join(aligned, "log_tail"))[:, column]
                if "standardised" in records[0]:
                    whole = 1 + column
                    places = [0, whole, whole + len(self.teacher.temperatures)]
                    targets.standardised = torch.from_numpy(join(aligned, "standardised"))[:, places]
        return targets


def _flat_positions(batch: Sequence[Encoded], pairs: Sequence[Sequence[tuple[int, int]]]) -> list[int]:
    """Where the aligned target positions lie in the batch's flat list of supervised positions."""
    positions, start = [], 0
    for example, pair in zip(batch, pairs, strict=True):
        first = start + example.gold_slice.start
        positions += [first + own for own, _ in pair]
        start += len(example.targets)
    return positions

"""Teacher outputs in the student's terms: aligned positions, mapped tokens, projected layers, as tensors.

Everything is found by example id, so order, epoch and evaluation in between do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from kdsuite.methods.alignment import VocabularyMap, align
from kdsuite.methods.losses import teacher_tempered
from kdsuite.tasks.encoding import Encoded
from kdsuite.teacher.base import Record, Teacher
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
    log_weights: torch.Tensor | None = None  # [m, k] at T, of entries some of which are drawn
    others: torch.Tensor | None = None  # [1 or m, V] bool, the student's tokens that are no counterpart of any
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
    """A teacher as one student sees it. `temperature` None: no distributions; no `layers`: no hidden states.

    `entries` stand for a distribution: `topk_tail` for its likeliest tokens and the sum of all others, or drawn ones.
    Of the likeliest `top_k` are read (None: all that are kept), in `dtype`, however many are kept for others.
    """

    teacher: Teacher
    vocabulary: VocabularyMap
    temperature: float | None
    layers: tuple[int, ...]
    entries: str = "topk_tail"
    top_k: int | None = None
    dtype: str = "float32"

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
                self._tell(targets, aligned, [places for pair in pairs for places in pair])
        return targets

    def _tell(self, targets: SoftTargets, aligned: Sequence[Record], pairs: Sequence[tuple[int, int]]) -> None:
        """The distributions at these aligned positions."""

        def told(name: str) -> torch.Tensor:
            return torch.from_numpy(join(aligned, name))

        assert self.temperature is not None
        column = self.teacher.temperatures.index(self.temperature)
        ids, log_probs, normalisers = told("topk_ids"), told("topk_logprobs"), told("logsumexp")
        log_probs, count = log_probs.half() if self.dtype == "float16" else log_probs, self.top_k or ids.shape[-1]
        whole = normalisers[:, 0], normalisers[:, column]
        targets.logsumexp, targets.tempered_logsumexp = whole
        targets.log_tail = told("log_tail")[:, column]
        likeliest = teacher_tempered(log_probs, *whole, self.temperature)
        if "standardised" in aligned[0]:
            deviation, at = told("standardised")[:, :1], column + 1
            normaliser, tail = (told("standardised")[:, at + shift] for shift in (0, len(self.teacher.temperatures)))
            scaled = teacher_tempered(log_probs, whole[0], normaliser, self.temperature * deviation)
            targets.standardised = torch.stack([deviation[:, 0], normaliser, _with(tail, scaled[:, count:])], -1)
        if self.entries != "topk_tail":
            drawn = told(f"{self.entries}_ids")[:, column]
            exact = ids.shape[-1] - drawn.shape[-1]
            beyond = _with(targets.log_tail, likeliest[:, exact:])[:, None]
            each = (beyond - math.log(drawn.shape[-1])).expand(drawn.shape)
            targets.log_weights = torch.cat([likeliest[:, :exact], each], -1)
            ids = torch.cat([ids[:, :exact], drawn], -1)
            log_probs = torch.cat([log_probs[:, :exact], told(f"{self.entries}_logprobs")[:, column]], -1)
        else:
            targets.log_tail = _with(targets.log_tail, likeliest[:, count:])
            ids, log_probs = ids[:, :count], log_probs[:, :count]
        targets.log_probs, targets.ids = log_probs, torch.from_numpy(self.vocabulary(ids.numpy(), pairs))
        if targets.log_weights is not None and (targets.ids < 0).any():
            targets.others = torch.from_numpy(self.vocabulary.others(pairs))


def _with(log_tail: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """The tail [m] with more tokens in it [m, j]; itself where there is none."""
    return torch.cat([log_tail[:, None], log_probs], -1).logsumexp(-1) if log_probs.shape[-1] else log_tail


def suited(tail: float) -> str:
    """The entries that suit a teacher who leaves this share of the probability, on average, to what is not kept: drawn
    ones where a sum says too little of it, and no others where the likeliest tokens are the lesser part."""
    return "topk_tail" if tail < 0.03 else "topk_sampled" if tail <= 0.5 else "sampled"


def _flat_positions(batch: Sequence[Encoded], pairs: Sequence[Sequence[tuple[int, int]]]) -> list[int]:
    """Where the aligned target positions lie in the batch's flat list of supervised positions."""
    positions, start = [], 0
    for example, pair in zip(batch, pairs, strict=True):
        first = start + example.gold_slice.start
        positions += [first + own for own, _ in pair]
        start += len(example.targets)
    return positions

"""Teacher outputs in the student's terms: aligned positions, mapped tokens, projected layers, as tensors.

Everything is found by example id, so order, epoch and evaluation in between do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from accelerate.utils import send_to_device

from kdsuite.methods.alignment import VocabularyMap, align
from kdsuite.methods.base import Kept
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
    tempered: torch.Tensor | None = None  # [m, k] log-probabilities at T; at T·σ where logits are standardised
    log_tail: torch.Tensor | None = None  # [m] at the same, of the tokens that are not kept
    log_weights: torch.Tensor | None = None  # [m, k] at T, of entries some of which are drawn
    others: torch.Tensor | None = None  # [1 or m, V] bool, the student's tokens that are no counterpart of any
    class_scores: torch.Tensor | None = None  # [B, C] log-probabilities of the label words
    hidden: list[torch.Tensor] | None = None  # per pair of layers [m, teacher width]

    def to(self, device: torch.device) -> SoftTargets:
        return SoftTargets(**send_to_device(vars(self), device))


@dataclass(frozen=True)
class TeacherTargets:
    """A teacher as one student sees it. `temperature` None: no distributions; no `layers`: no hidden states.

    `entries` stand for a distribution: `topk_tail` for its likeliest tokens and the sum of all others, or drawn ones.
    What is read is what the method itself wanted `kept`, however much is kept for others: its `top_k` likeliest tokens
    (0: all that there are), in its `dtype`, of standardised logits or of those that were.
    """

    teacher: Teacher
    vocabulary: VocabularyMap
    temperature: float | None
    layers: tuple[int, ...]
    entries: str = "topk_tail"
    kept: Kept = Kept(dtype="float32")

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
        starts = accumulate((len(example.targets) for example in batch), initial=0)
        firsts = [start + example.gold_slice.start for start, example in zip(starts, batch, strict=False)]
        places = [first + own for first, pair in zip(firsts, pairs, strict=True) for own, _ in pair]
        targets = SoftTargets(positions=torch.tensor(places))
        if self.layers:
            targets.hidden = [read_states(join(aligned, f"hidden_{layer}")) for layer in self.layers]
        if self.temperature is not None:
            if "class_scores" in records[0]:
                targets.class_scores = torch.from_numpy(np.stack([r["class_scores"] for r in records]))
            else:
                self._tell(targets, aligned, [both for pair in pairs for both in pair])
        return targets

    def _tell(self, targets: SoftTargets, aligned: Sequence[Record], pairs: Sequence[tuple[int, int]]) -> None:
        """The distributions at these aligned positions."""

        def told(name: str) -> torch.Tensor:
            return torch.from_numpy(join(aligned, name))

        assert self.temperature is not None
        temperatures, temperature = self.teacher.temperatures, self.temperature
        column = temperatures.index(temperature)
        ids, log_probs, normalisers = told("topk_ids"), told("topk_logprobs"), told("logsumexp")
        log_probs = log_probs.half() if self.kept.dtype == "float16" else log_probs
        logsumexp, normaliser, log_tail = normalisers[:, 0], normalisers[:, column], told("log_tail")[:, column]
        if self.kept.standardised:
            deviation, *columns = told("standardised").unbind(-1)
            normaliser, log_tail = columns[column], columns[column + len(temperatures)]
            temperature = temperature * deviation[:, None]
        tempered = teacher_tempered(log_probs, logsumexp, normaliser, temperature)
        if self.entries != "topk_tail":
            drawn, own = (told(f"{self.entries}_{what}")[:, column] for what in ("ids", "logprobs"))
            exact = ids.shape[-1] - drawn.shape[-1]
            beyond = _with(log_tail, tempered[:, exact:])[:, None]
            each = (beyond - math.log(drawn.shape[-1])).expand(drawn.shape)
            targets.log_weights = torch.cat([tempered[:, :exact], each], -1)
            ids = torch.cat([ids[:, :exact], drawn], -1)
            log_probs = torch.cat([log_probs[:, :exact], own], -1)
            tempered = teacher_tempered(log_probs, logsumexp, normaliser, temperature)
        else:
            count = self.kept.top_k or ids.shape[-1]
            log_tail = _with(log_tail, tempered[:, count:])
            ids, log_probs, tempered = (kept[:, :count] for kept in (ids, log_probs, tempered))
        targets.log_probs, targets.tempered, targets.log_tail = log_probs, tempered, log_tail
        targets.ids = torch.from_numpy(self.vocabulary(ids.numpy(), pairs))
        if targets.log_weights is not None and (targets.ids < 0).any():
            targets.others = torch.from_numpy(self.vocabulary.others(pairs))


def _with(log_tail: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """The tail [m] with more tokens in it [m, j]; itself where there is none."""
    return torch.cat([log_tail[:, None], log_probs], -1).logsumexp(-1) if log_probs.shape[-1] else log_tail


def suited(tail: float) -> str:
    """The entries that suit a teacher who leaves this share of the probability, on average, to what is not kept: drawn
    ones where a sum says too little of it, and no others where the likeliest tokens are the lesser part."""
    return "topk_tail" if tail < 0.03 else "topk_sampled" if tail <= 0.5 else "sampled"

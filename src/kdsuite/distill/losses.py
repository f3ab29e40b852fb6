"""Losses as pure functions on supervised positions: a value per position in nats, float32, no reduction.

n positions, V tokens, k kept teacher tokens. Masking is done by whoever picks the positions,
averaging by the trainer, each in one place.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

LOG_NOTHING = -100.0  # log of a share of probability that is not there; e^-100 is nothing in float32


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """−log p(target). logits [n, V], targets [n] → [n]."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def forward_kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """KL(p_t ‖ p_s) = Σ p_t (log p_t − log p_s), from log-probabilities [n, m] → [n].

    Hinton et al. 2015 (arXiv:1503.02531); multiply by T² when both are at temperature T, so that the size of
    the gradient does not depend on T.
    """
    share = teacher.exp()
    return torch.where(share > 0, share * (teacher - student), 0.0).sum(-1)


def tempered(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """log softmax(scores / T) over the last dimension, float32."""
    return F.log_softmax(scores.float() / temperature, dim=-1)


def student_partition(logits: torch.Tensor, ids: torch.Tensor, temperature: float) -> torch.Tensor:
    """The student's distribution over {k tokens, "other"} at temperature T.

    logits [n, V]; ids [n, k], −1 where the teacher's token has no counterpart → log-probabilities [n, k + 1],
    LOG_NOTHING for the missing ones. "other" is summed over the tokens themselves rather than taken as
    1 − Σ, so that it and its gradient are exact when it is small.
    """
    scaled = logits.float() / temperature  # [n, V]
    normaliser = scaled.logsumexp(-1, keepdim=True)  # [n, 1]
    column = torch.where(ids < 0, scaled.shape[-1], ids)
    padded = F.pad(scaled, (0, 1), value=float("-inf"))  # [n, V + 1]
    kept = padded.gather(-1, column)  # [n, k]
    rest = padded.scatter(-1, column, torch.finfo(torch.float32).min).logsumexp(-1, keepdim=True)
    return (torch.cat([kept, rest], dim=-1) - normaliser).clamp_min(LOG_NOTHING)


def teacher_partition(
    log_probs: torch.Tensor,
    logsumexp: torch.Tensor,
    tempered_logsumexp: torch.Tensor,
    ids: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """The teacher's distribution over the same {k tokens, "other"} at temperature T, from the cache.

    log_probs [n, k] at T = 1; logsumexp [n] of z and tempered_logsumexp [n] of z / T over the whole
    vocabulary, by which p_T = exp(z / T − logsumexp_T) is exact, not renormalised over the kept tokens;
    ids [n, k], −1 where a token has no counterpart in the student: its probability goes to "other".
    """
    logits = log_probs.float() + logsumexp[:, None]
    kept = (logits / temperature - tempered_logsumexp[:, None]).clamp_max(0.0)  # [n, k]
    kept = torch.where(ids < 0, LOG_NOTHING, kept)
    share = kept.exp().sum(-1, keepdim=True)
    rest = (1.0 - share).clamp_min(0.0).log().clamp_min(LOG_NOTHING)
    return torch.cat([kept - share.clamp_min(1.0).log(), rest], dim=-1)


def feature_distance(student: torch.Tensor, teacher: torch.Tensor, kind: str) -> torch.Tensor:
    """Distance of projected student states from teacher states, [n, H] each → [n], independent of width.

    `cosine`: 1 − cos (Sanh et al. 2019, DistilBERT, arXiv:1910.01108). `mse`: ‖s − t‖² / ‖t‖², the squared
    error summed over the width, relative to the teacher's (a normalised hint: Romero et al. 2015, FitNets,
    arXiv:1412.6550).
    """
    student, teacher = student.float(), teacher.float()
    if kind == "cosine":
        return 1.0 - F.cosine_similarity(student, teacher, dim=-1)
    return (student - teacher).square().sum(-1) / teacher.square().sum(-1).clamp_min(1e-12)

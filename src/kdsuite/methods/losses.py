"""Losses as pure functions on supervised positions: a value per position in nats, float32, no reduction.

n positions, V tokens, k kept teacher tokens. Masking is done by whoever picks the positions,
averaging by the training loop, each in one place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from kdsuite.models.forward import LOG_NOTHING


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """−log p(target). logits [n, V], targets [n] → [n]."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def tempered(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """log softmax(scores / T) over the last dimension, float32."""
    return F.log_softmax(scores.float() / temperature, dim=-1)


def standardised(logits: torch.Tensor) -> torch.Tensor:
    """z / σ over the last dimension, float32: z-scores but for their mean, which a softmax does not see.

    Sun et al. 2024, logit standardisation (CVPR; arXiv:2403.01493).
    """
    logits = logits.float()
    return logits / logits.std(-1, keepdim=True).clamp_min(1e-7)


def student_partition(logits: torch.Tensor, ids: torch.Tensor, temperature: float) -> torch.Tensor:
    """The student's distribution over {k tokens, "other"} at temperature T.

    logits [n, V]; ids [n, k], −1 where the teacher's token has no counterpart → log-probabilities [n, k + 1],
    LOG_NOTHING for the missing ones. "other" is summed over the tokens themselves rather than taken as
    1 − Σ, so that it and its gradient are exact when it is small; what is normalised are the k + 1 sums.
    """
    sums = _Sums.apply(logits, ids, temperature)
    return F.log_softmax(sums, dim=-1).clamp_min(LOG_NOTHING)


class _Sums(torch.autograd.Function):
    """log Σ exp(z / T) of each of the k tokens and of all others: [n, V], [n, k] → [n, k + 1], float32.

    By hand, as the vocabulary is what costs time and memory: one [n, V] is built, the share of each other token
    in their sum, which is the gradient of its logarithm; the gradient itself is the only further one.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, ids: torch.Tensor, temperature: float) -> torch.Tensor:
        n, size = logits.shape
        missing = ids < 0
        columns = torch.where(missing, size, ids)  # a place behind the vocabulary for the missing ones
        kept = logits.gather(-1, ids.clamp_min(0)).float() / temperature
        shares = torch.empty(n, size + 1, device=logits.device)
        shares[:, :size] = logits
        shares[:, size] = float("-inf")
        shares.scatter_(-1, columns, float("-inf"))
        largest = shares.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
        total = shares.sub_(largest).div_(temperature).exp_().sum(-1, keepdim=True)
        shares.div_(total.clamp_min(1.0))  # less than 1 only where no token is left, and all shares are 0
        ctx.save_for_backward(shares, columns)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        return torch.cat([kept.masked_fill(missing, float("-inf")), largest / temperature + total.log()], dim=-1)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        shares, columns = ctx.saved_tensors
        gradient = outputs[0] / ctx.temperature  # [n, k + 1]
        spread = (shares * gradient[:, -1:]).scatter_add_(-1, columns, gradient[:, :-1])
        return spread[:, :-1].to(ctx.dtype), None, None


def student_sorted(logits: torch.Tensor, k: int, temperature: float, among: torch.Tensor | None = None) -> torch.Tensor:
    """The student's k largest probabilities at temperature T, sorted, and the sum of all others.

    logits [n, V] → log-probabilities [n, k + 1]; `among` [V] bool limits the k to some of the tokens.
    """
    candidates = logits if among is None else logits.masked_fill(~among, float("-inf"))
    top, ids = candidates.topk(min(k, logits.shape[-1]), dim=-1)
    ids = F.pad(torch.where(top.isfinite(), ids, -1), (0, k - ids.shape[-1]), value=-1)
    return student_partition(logits, ids, temperature)


def teacher_tempered(
    log_probs: torch.Tensor,
    logsumexp: torch.Tensor,
    tempered_logsumexp: torch.Tensor,
    temperature: float | torch.Tensor,
) -> torch.Tensor:
    """Log-probabilities at T of the kept tokens from those at T = 1, [n, k] → [n, k].

    T is one, or one per position [n, 1]. logsumexp [n] of z and tempered_logsumexp [n] of z / T are over the whole
    vocabulary, so that p_T = exp(z / T − logsumexp_T) is exact, not renormalised over the kept tokens.
    """
    return (log_probs.float() + logsumexp[:, None]) / temperature - tempered_logsumexp[:, None]


def teacher_partition(kept: torch.Tensor, log_tail: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The teacher's distribution over the same {k tokens, "other"} as `student_partition`'s, [n, k + 1].

    kept [n, k] and log_tail [n], the log-probability of all tokens that are not kept, at the same T; ids
    [n, k], −1 where a token has no counterpart in the student: its probability goes to "other". What rounding
    in the cache (float16) adds or takes is spread over all.
    """
    unmapped = torch.where(ids < 0, kept, LOG_NOTHING)
    rest = torch.cat([unmapped, log_tail[:, None]], dim=-1).logsumexp(-1, keepdim=True)
    whole = torch.cat([torch.where(ids < 0, LOG_NOTHING, kept), rest], dim=-1)
    return (whole - whole.logsumexp(-1, keepdim=True)).clamp_min(LOG_NOTHING)


def sampled_kl(
    logits: torch.Tensor,
    ids: torch.Tensor,
    log_probs: torch.Tensor,
    log_weights: torch.Tensor,
    temperature: float,
    others: torch.Tensor | None,
) -> torch.Tensor:
    """An unbiased estimate of KL(p ‖ q) over the whole vocabulary, and of its gradient, from some entries → [n].

    Σ w·(log p − log q): logits [n, V] of the student; of each entry, [n, k], its id in the student's vocabulary, log p
    at T, and log w: p of an exact one, of each of s draws the s-th of what they are drawn from. An entry without
    counterpart (−1) counts as one of the `others`, [1 or n, V] bool, the student's tokens that are no counterpart of
    any: then it estimates the KL over {each token with a counterpart, all others}, less a constant.
    Anshumann et al. 2025 (arXiv:2503.16870).
    """
    scores = logits.float() / temperature
    own = scores.gather(-1, ids.clamp_min(0))
    if others is not None:
        rest = scores.masked_fill(~others, torch.finfo(scores.dtype).min).logsumexp(-1, keepdim=True)
        own = torch.where(ids < 0, rest, own)
    return (log_weights.exp() * (log_probs - own + scores.logsumexp(-1, keepdim=True))).sum(-1)


def feature_distance(student: torch.Tensor, teacher: torch.Tensor, kind: str) -> torch.Tensor:
    """Distance of student states from teacher states, [n, H] each → [n], independent of width.

    `gram` and `procrustes` take states of any two widths as they are; the others projected ones.

    `cosine`: 1 − cos (Sanh et al. 2019, DistilBERT, arXiv:1910.01108). `mse`: ‖s − t‖² / ‖t‖², the squared
    error summed over the width, relative to the teacher's (a normalised hint: Romero et al. 2015, FitNets,
    arXiv:1412.6550).
    """
    if kind in UNPROJECTED:
        with torch.autocast(student.device.type, enabled=False):  # products of 16 bits have no such geometry
            return UNPROJECTED[kind](student, teacher)
    student, teacher = student.float(), teacher.float()
    if kind == "cosine":
        return 1.0 - F.cosine_similarity(student, teacher, dim=-1)
    return (student - teacher).square().sum(-1) / teacher.square().sum(-1).clamp_min(1e-12)


def gram_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """How differently the states of n positions lie to each other, [n, H] and [n, H'] → [n], their mean in [0, 2].

    n·Σⱼ (Gᵢⱼ − G'ᵢⱼ)² with G = S·Sᵀ / ‖S·Sᵀ‖, so that the mean is ‖G − G'‖²: Bhattarai et al. 2025 (arXiv:2509.25253),
    scaled to be independent of width and scale. No orthogonal transform of either side changes it.
    """
    one, other = ((states := side.float()) @ states.T for side in (student, teacher))
    one, other = (gram / gram.norm().clamp_min(1e-12) for gram in (one, other))
    return len(student) * (one - other).square().sum(-1)


def procrustes_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """What is left between the states of n positions after the best rotation, [n, H] and [n, H'] → [n], mean in [0, 2].

    n·(‖sᵢ‖² + ‖tᵢ‖² − 2·sᵢ·(tᵢQ)) with S and T of norm 1 and Q the orthogonal map that suits all of them best, so that
    the mean is ‖S‖² + ‖T‖² − 2·‖TᵀS‖_*: Bhattarai et al. 2025 (arXiv:2509.25253). At its best Q has no part in the
    gradient (envelope theorem), so that none goes through the decomposition, which is of an n × n matrix at most.
    """
    one, other = (side.float() / side.float().norm().clamp_min(1e-12) for side in (student, teacher))
    with torch.no_grad():
        (own, small), (its, large) = (torch.linalg.qr(side.T) for side in (one, other))  # [H, r], [r, n]
        left, _, right = torch.linalg.svd(large @ small.T, full_matrices=False)
        turned = other @ its @ left @ right @ own.T  # [n, H]
    squares = one.square().sum(-1) + other.square().sum(-1)
    return len(student) * (squares - 2.0 * (one * turned).sum(-1))


UNPROJECTED = {"gram": gram_distance, "procrustes": procrustes_distance}  # kinds that compare any two widths

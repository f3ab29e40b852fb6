"""Which k entries of a teacher's distribution teach best, by how much of its probability is beyond the likeliest k?

A toy that is solved in a minute: a teacher with logits linear in a random context, over a few hundred tokens of
unequal frequency; a student of half its rank. It learns from k entries per context, kept once, as KD1 learns from its
cache: the likeliest and the sum of the rest (`topk_tail`), half of them and half drawn (`topk_sampled`), all drawn
(`sampled`); and, to compare with, from the likeliest made to sum to 1 (truncated), and from the whole distribution.
What is told is the KL over the whole vocabulary on contexts that it has not seen, in nats. The teacher's sharpness sets
the tail.

    python benchmarks/drawn.py [--quick]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from statistics import fmean

import torch
from measure import machine, table
from torch import nn
from torch.nn import functional as F

from kdsuite.methods.divergences import forward_kl
from kdsuite.methods.losses import sampled_kl, student_partition, teacher_partition
from kdsuite.teacher.base import drawn_entries
from kdsuite.teacher.local import draw

VOCABULARY, WIDTH, KEPT, BATCH = 512, 16, 8, 128
CONTEXTS, STEPS, SEEDS = 2048, 300, 2
TAILS = (0.01, 0.03, 0.1, 0.3, 0.5, 0.7)
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # the student's logits [n, V], the n contexts' numbers


def tail_of(logits: torch.Tensor) -> float:
    """The mean probability beyond the likeliest k."""
    return 1 - float(logits.softmax(-1).topk(KEPT).values.sum(-1).mean())


def teacher_of(tail: float, contexts: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Its logits at some contexts: tokens as frequent as words are, as sharp as the tail tells."""
    weights = torch.randn(WIDTH, VOCABULARY, generator=generator)
    frequencies = -torch.arange(1, VOCABULARY + 1).log()
    logits = contexts @ weights / 2 + frequencies[torch.randperm(VOCABULARY, generator=generator)]
    low, high = 0.0, 30.0  # the sharper, the smaller the tail
    for _ in range(20):
        sharpness = (low + high) / 2
        low, high = (sharpness, high) if tail_of(sharpness * logits) > tail else (low, sharpness)
    return low * logits


def losses(logits: torch.Tensor, generator: torch.Generator) -> dict[str, Loss]:
    """From each kind of entries, as they are kept once of the teacher's logits."""
    whole = logits.log_softmax(-1)
    kept, top = whole.topk(KEPT)
    rest = whole.scatter(-1, top, float("-inf")).logsumexp(-1)
    truncated = kept.log_softmax(-1)
    made: dict[str, Loss] = {
        "whole": lambda z, i: F.kl_div(z.log_softmax(-1), whole[i], reduction="none", log_target=True).sum(-1),
        "truncated": lambda z, i: sampled_kl(z, top[i], truncated[i], truncated[i], 1.0, None),
        "topk_tail": lambda z, i: forward_kl(
            teacher_partition(kept[i], rest[i], top[i]), student_partition(z, top[i], 1.0)
        ),
    }
    for kind in ("topk_sampled", "sampled"):
        count = drawn_entries(kind, KEPT)
        exact = top[:, : KEPT - count]
        uniform = torch.rand(len(logits), count, generator=generator, dtype=torch.float64)
        drawn = draw(logits, exact, uniform)
        ids = torch.cat([exact, drawn], -1)
        beyond = whole.scatter(-1, exact, float("-inf")).logsumexp(-1, keepdim=True) - math.log(count)
        weights = torch.cat([whole.gather(-1, exact), beyond.expand(drawn.shape)], -1)
        made[kind] = lambda z, i, ids=ids, weights=weights: sampled_kl(
            z, ids[i], whole.gather(-1, ids)[i], weights[i], 1.0, None
        )
    return made


def learned(loss: Loss, contexts: torch.Tensor, unseen: torch.Tensor, target: torch.Tensor, steps: int) -> float:
    """The KL of a new student from the teacher (its logits) at unseen contexts, behind so many steps."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(WIDTH, WIDTH // 2), nn.Linear(WIDTH // 2, VOCABULARY))
    optimizer = torch.optim.Adam(student.parameters(), 0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(steps):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(contexts)
        optimizer.zero_grad()
        loss(student(contexts[rows]), rows).mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        said = student(unseen).log_softmax(-1)
    return float(F.kl_div(said, target.log_softmax(-1), reduction="batchmean", log_target=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two tails, few steps, to see that it runs")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    tails, seeds, steps = ((0.01, 0.7), 1, 60) if quick else (TAILS, SEEDS, STEPS)
    rows = []
    for tail in tails:
        found: dict[str, list[float]] = {}
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            contexts = torch.randn(2 * CONTEXTS, WIDTH, generator=generator)
            logits = teacher_of(tail, contexts, generator)
            (seen, unseen), (kept, target) = contexts.split(CONTEXTS), logits.split(CONTEXTS)
            for name, loss in losses(kept, generator).items():
                found.setdefault(name, []).append(learned(loss, seen, unseen, target, steps))
        means = {name: fmean(values) for name, values in found.items()}
        best = min((name for name in means if name not in ("whole", "truncated")), key=lambda name: means[name])
        rows.append([f"{tail:.0%}", *(f"{mean:.3f}" for mean in means.values()), best])
    print(f"{machine()}; {KEPT} entries of {VOCABULARY} tokens, {steps} steps, means of {seeds} teachers\n")
    print(table(["tail beyond 8", "whole", "truncated", "topk_tail", "topk_sampled", "sampled", "best of 8"], rows))


if __name__ == "__main__":
    main()

"""What does the KD1 loss cost on supervised positions, against the same loss over whole sequences?

Ours is the suite's own `Distiller`: hidden states are gathered at the supervised positions, then projected to
the vocabulary. The plain one is what one would write first: logits [batch, sequence, vocabulary], a mask at
the end. Both get the same hidden states, head and top-64 teacher, and the plain one gets the teacher's
distribution at T ready-made. Loss and gradients must be equal before anything is timed; a step is forward and
backward, gradient of the head included, the backbone not.

    python benchmarks/kd_loss.py [--quick] [--repeats 7]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from measure import MB, machine, peak_mb, peak_mb_here, ratio, side_by_side, spread, table, times_as_much
from torch import nn
from torch.nn import functional as F

from kdsuite.distill.methods import METHODS
from kdsuite.distill.objective import Distiller, Objective
from kdsuite.distill.targets import SoftTargets
from kdsuite.tasks.batching import Batch

ALPHA, TEMPERATURE, KEPT = 0.5, 2.0, 64
IGNORED = -100  # label of a position that is not supervised
TOLERANCE = 1e-5  # relative, of loss and gradients


@dataclass(frozen=True)
class Shape:
    name: str
    batch: int
    length: int  # tokens of an example
    supervised: int  # of them
    vocabulary: int = 32_000
    width: int = 512


SHAPES = (Shape("SQuAD", 8, 350, 10), Shape("SST-2", 16, 60, 3))
QUICK = (Shape("quick", 4, 50, 5, vocabulary=4_000, width=64),)


class Readout(nn.Module):
    """A student whose backbone is free: its hidden states [B, S, H] are given and get a gradient."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.states = nn.Parameter(torch.randn(shape.batch, shape.length, shape.width))
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def base_model(self, **inputs: object) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.states)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


@dataclass(frozen=True)
class Problem:
    """The same batch for both sides."""

    student: Readout
    batch: Batch
    soft: SoftTargets  # ours: the cache's arrays at the n supervised positions
    labels: torch.Tensor  # [B, S] the token predicted from each position, IGNORED where none is supervised
    ids: torch.Tensor  # [B, S, k] the teacher's kept tokens
    teacher: torch.Tensor  # [B, S, k + 1] its log-probabilities of them and of all others, at T


def problem(shape: Shape) -> Problem:
    """Random states, head and teacher; the last positions of each example are supervised."""
    torch.manual_seed(0)
    student, size = Readout(shape), (shape.batch, shape.length)
    where = torch.zeros(size, dtype=torch.bool)
    where[:, -shape.supervised :] = True
    rows, columns = where.nonzero(as_tuple=True)
    labels = torch.full(size, IGNORED).masked_scatter(where, torch.randint(shape.vocabulary, (len(rows),)))
    zeros = torch.zeros(size, dtype=torch.long)
    batch = Batch(
        [""] * shape.batch, zeros, zeros, None, rows, columns, labels[where], zeros[where], zeros[:, 0]
    )
    soft = _soft_targets(3 * torch.randn(len(rows), shape.vocabulary))
    assert soft.ids is not None
    ids = torch.zeros(*size, KEPT, dtype=torch.long)
    teacher = torch.zeros(*size, KEPT + 1)
    ids[where], teacher[where] = soft.ids, _at_temperature(soft)
    return Problem(student, batch, soft, labels, ids, teacher)


def _soft_targets(logits: torch.Tensor) -> SoftTargets:
    """What the cache keeps of the teacher's logits [n, V]."""
    top, ids = logits.topk(KEPT)
    normaliser, tempered = logits.logsumexp(-1), (logits / TEMPERATURE).logsumexp(-1)
    rest = (logits.scatter(-1, ids, float("-inf")) / TEMPERATURE).logsumexp(-1)
    positions = torch.arange(len(logits))
    return SoftTargets(positions, ids, top - normaliser[:, None], normaliser, tempered, rest - tempered)


def _at_temperature(soft: SoftTargets) -> torch.Tensor:
    assert soft.log_probs is not None and soft.logsumexp is not None and soft.log_tail is not None
    assert soft.tempered_logsumexp is not None
    kept = (soft.log_probs + soft.logsumexp[:, None]) / TEMPERATURE - soft.tempered_logsumexp[:, None]
    return torch.cat([kept, soft.log_tail[:, None]], dim=-1)


def ours(given: Problem, shape: Shape) -> torch.Tensor:
    objective = Objective(METHODS["KD1"], ALPHA, TEMPERATURE)
    sums = Distiller(given.student, shape.vocabulary, objective)(given.batch, given.soft)
    counts = objective.counts(given.batch, given.soft)
    return torch.stack([w * sums[part] / counts[part] for part, w in objective.weights.items()]).sum()


def plain(given: Problem, shape: Shape) -> torch.Tensor:
    logits = given.student.head(given.student.states)  # [B, S, V]
    hard = F.cross_entropy(logits.flatten(0, 1), given.labels.flatten(), ignore_index=IGNORED)
    log_probs = F.log_softmax(logits / TEMPERATURE, dim=-1)  # [B, S, V]
    kept = log_probs.gather(-1, given.ids)  # [B, S, k]
    other = torch.log1p(-kept.exp().sum(-1, keepdim=True))
    divergence = F.kl_div(torch.cat([kept, other], -1), given.teacher, log_target=True, reduction="none")
    soft = divergence.sum(-1)[given.labels != IGNORED].mean()
    return ALPHA * hard + (1 - ALPHA) * TEMPERATURE**2 * soft


Loss = Callable[[Problem, Shape], torch.Tensor]
SIDES: dict[str, Loss] = {"supervised positions": ours, "whole sequences": plain}


def step(side: str, given: Problem, shape: Shape) -> torch.Tensor:
    """One loss and its gradients, afresh."""
    given.student.zero_grad()
    loss = SIDES[side](given, shape)
    loss.backward()
    return loss.detach()


def assert_equal(given: Problem, shape: Shape) -> float:
    """The largest relative difference of loss, gradient of the states and gradient of the head."""
    results = []
    for side in SIDES:
        loss = step(side, given, shape)
        results.append([loss, *(p.grad for p in given.student.parameters() if p.grad is not None)])
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(*results, strict=True))
    assert worst < TOLERANCE, f"{shape.name}: the two losses differ by {worst:.1e}"
    return worst


def alone(side: str, shape: Shape) -> Callable[[], object]:
    """A step for the measurement of memory, behind one at a tiny shape, so that libraries are warm."""
    step(side, problem(QUICK[0]), QUICK[0])
    given = problem(shape)
    return lambda: step(side, given, shape)


def compare(shape: Shape, repeats: int, peak: Callable[..., float]) -> list[list[str]]:
    """A row per side: time, memory (by `peak`) and how they compare."""
    given = problem(shape)
    worst = assert_equal(given, shape)
    times = side_by_side({side: lambda side=side: step(side, given, shape) for side in SIDES}, repeats)
    memory = {side: peak(alone, side, shape) for side in SIDES}
    gradient = 4 * shape.vocabulary * shape.width / MB  # of the head, the same for both
    first = next(iter(SIDES))
    print(
        f"{shape.name}: {shape.batch} × {shape.length} tokens, {shape.supervised / shape.length:.1%} supervised, "
        f"vocabulary {shape.vocabulary:,}, width {shape.width}; equal to {worst:.0e}"
    )
    return [
        [
            f"{shape.name}, {side}",
            spread(times[side].cpu),
            spread(times[side].wall),
            ratio(times[side].cpu, times[first].cpu),
            f"{memory[side]:,.0f}",
            times_as_much(memory[side], memory[first]),
            f"{memory[side] - gradient:,.0f}",
            times_as_much(memory[side] - gradient, memory[first] - gradient),
        ]
        for side in SIDES
    ]


def main() -> None:
    options = arguments(__doc__, 7).parse_args()
    torch.set_num_threads(1)
    shapes, repeats, peak = (QUICK, 1, peak_mb_here) if options.quick else (SHAPES, options.repeats, peak_mb)
    compared = [compare(shape, repeats, peak) for shape in shapes]
    print(f"\n{machine()}; medians of {repeats} repeats (smallest–largest)\n")
    print(
        table(
            ("loss", "CPU ms", "wall ms", "CPU ratio", "peak MB", "ratio", "without head gradient", "ratio"),
            [row for rows, _ in compared for row in rows],
        )
    )
    keep([finding for _, found in compared for finding in found], options.findings)


if __name__ == "__main__":
    main()

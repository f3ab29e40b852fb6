"""What does the KD1 loss cost on supervised positions, against the losses of TRL and Liger, and a plain one?

Ours is the suite's own `Distiller`: hidden states are gathered at the supervised positions, then projected to
the vocabulary, and compared with the teacher's cached top 64. Against it, where they are installed:

- TRL's `GKDTrainer.generalized_jsd_loss` on the logits [batch, sequence, vocabulary] of both models,
- Liger's `LigerFusedLinearJSDLoss` on the hidden states of both, in chunks of 1024 positions; not compiled: on one
  CPU thread that takes 25 s per shape and process, and saves an eighth of the time (SST-2: 3.1 instead of 3.5 s),
- TRL's `_chunked_divergence_loss` on the hidden states of both, at the completion window, as `DistillationTrainer`
  hands them over: as many positions per example as the longest target of the batch has.

And the plain one that one would write first: logits [batch, sequence, vocabulary], a mask at the end.

A step goes from the student's hidden states through head and loss and back to the gradients of both. The peers
compare with the teacher's whole distribution, so that its head is in their step; its backbone is in nobody's, nor
is the reading of our cache (`cache_io.py`). The teacher is as wide as the student, and ours includes the
cross-entropy, which TRL's two do not: both are to the peers' advantage.

Losses and gradients must be equal before anything is timed, at small shapes: the plain one's as it is, each peer's
where we keep the whole vocabulary instead of 64, so that the objective is the same. The batches are small, so that
all takes a minute or two on one slow core; it is to the peers' advantage, as our share of what does not depend on
the batch, the head's gradient, is the larger one.

    python benchmarks/kd_loss.py [--quick] [--repeats 2]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from measure import (
    MB,
    Finding,
    Work,
    arguments,
    asked,
    peak_mb,
    peak_mb_here,
    ratio,
    show,
    side_by_side,
    spread,
    times_as_much,
)
from peers import installed, left_out, peer
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig

from kdsuite.methods.targets import SoftTargets
from kdsuite.methods.terms import Distiller, Divergence, OnTarget, Term
from kdsuite.tasks.batching import Batch

ALPHA, TEMPERATURE, KEPT = 0.5, 2.0, 64
IGNORED = -100  # label of a position that is not supervised
TOLERANCE = 1e-5  # relative, of loss and gradients
GKD, CHUNKED = "trl.experimental.gkd", "trl.trainer.distillation_trainer"
LIGER = "liger_kernel.chunked_loss"


@dataclass(frozen=True)
class Shape:
    name: str
    length: int  # tokens of an example
    targets: tuple[int, ...]  # supervised tokens of each example
    vocabulary: int = 32_000
    width: int = 512
    kept: int = KEPT

    @property
    def batch(self) -> int:
        return len(self.targets)

    @property
    def window(self) -> int:
        return max(self.targets)

    def __str__(self) -> str:
        lengths = "–".join(map(str, sorted({min(self.targets), max(self.targets)})))
        return (
            f"{self.batch} × {self.length} tokens, {lengths} of each supervised "
            f"({sum(self.targets) / self.batch / self.length:.1%}), vocabulary {self.vocabulary:,}, width {self.width}"
        )


SHAPES = (Shape("SQuAD", 350, (5, 8, 17)), Shape("SST-2", 60, (3,) * 12))
QUICK = (Shape("quick", 50, (3, 4, 5, 8), vocabulary=4_000, width=64),)
WHOLE = Shape("whole vocabulary", 30, (2, 3, 7), vocabulary=500, width=32, kept=500)


class Readout(nn.Module):
    """A student whose backbone is free: its hidden states [B, S, H] are given and get a gradient."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.states = nn.Parameter(torch.randn(shape.batch, shape.length, shape.width))
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, **inputs: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.states))

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    config = LlamaConfig()  # of which only the number of layers is asked


@dataclass(frozen=True)
class Problem:
    """The same batch for all sides."""

    student: Readout
    batch: Batch
    soft: SoftTargets  # ours: the cache's arrays at the n supervised positions
    labels: torch.Tensor  # [B, S] the token predicted from each position, IGNORED where none is supervised
    ids: torch.Tensor  # plain: [B, S, k] the teacher's kept tokens
    teacher: torch.Tensor  # plain: [B, S, k + 1] its log-probabilities of them and of all others, at T
    states: torch.Tensor  # peers: [B, S, H] the teacher's
    head: torch.Tensor  # peers: [V, H] the teacher's


def problem(shape: Shape) -> Problem:
    """Random states and heads; the targets begin together, `window` positions before the end, padding behind."""
    torch.manual_seed(0)
    student, size = Readout(shape), (shape.batch, shape.length)
    states = torch.randn(*size, shape.width)
    weight = 3 * torch.randn(shape.vocabulary, shape.width) / shape.width**0.5  # logits of about ±3
    where = torch.zeros(size, dtype=torch.bool)
    for row, target in enumerate(shape.targets):
        where[row, shape.length - shape.window :][:target] = True
    rows, columns = where.nonzero(as_tuple=True)
    labels = torch.full(size, IGNORED).masked_scatter(where, torch.randint(shape.vocabulary, (len(rows),)))
    batch = batch_of([""] * shape.batch, torch.zeros(size, dtype=torch.long), rows, columns, labels[where])
    soft = soft_targets(states[where] @ weight.T, shape.kept)
    assert soft.ids is not None
    ids = torch.zeros(*size, shape.kept, dtype=torch.long)
    teacher = torch.zeros(*size, shape.kept + 1)
    ids[where], teacher[where] = soft.ids, _at_temperature(soft)
    return Problem(student, batch, soft, labels, ids, teacher, states, weight)


def batch_of(
    ids: list[str], tokens: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, targets: torch.Tensor
) -> Batch:
    """Examples [B, S] of which `targets` [n] are predicted from the positions (rows, columns) [n]."""
    gold, numbers = torch.zeros(len(ids), dtype=torch.long), torch.arange(len(rows))
    return Batch(ids, tokens, None, None, rows, columns, rows, targets, rows * 0, gold, numbers, numbers)


def soft_targets(logits: torch.Tensor, kept: int) -> SoftTargets:
    """What the cache keeps of the teacher's logits [n, V]."""
    top, ids = logits.topk(kept)
    normaliser, tempered = logits.logsumexp(-1), (logits / TEMPERATURE).logsumexp(-1)
    rest = (logits.scatter(-1, ids, float("-inf")) / TEMPERATURE).logsumexp(-1)
    positions = torch.arange(len(logits))
    likeliest = top / TEMPERATURE - tempered[:, None]
    return SoftTargets(positions, ids, top - normaliser[:, None], likeliest, rest - tempered)


def _at_temperature(soft: SoftTargets) -> torch.Tensor:
    assert soft.tempered is not None and soft.log_tail is not None
    return torch.cat([soft.tempered, soft.log_tail[:, None]], dim=-1)


def distilled(student: Readout, batch: Batch, soft: SoftTargets, alpha: float, **how: Any) -> torch.Tensor:
    """The suite's loss: α of the cross-entropy, the rest of a divergence."""
    terms: dict[str, Term] = {"ce": OnTarget(alpha)} if alpha > 0 else {}
    terms["kd"] = Divergence(1 - alpha, TEMPERATURE, **how)
    distiller = Distiller(student, student.head.out_features, terms)
    sums, counts = distiller(batch, soft), distiller.counts(batch, soft)
    return torch.stack([w * sums[part] / counts[part] for part, w in distiller.weights.items()]).sum()


def ours(given: Problem, shape: Shape, alpha: float = ALPHA) -> torch.Tensor:
    return distilled(given.student, given.batch, given.soft, alpha)


def ours_soft(given: Problem, shape: Shape) -> torch.Tensor:
    """Without the cross-entropy, as TRL's two."""
    return ours(given, shape, alpha=0.0)


def plain(given: Problem, shape: Shape) -> torch.Tensor:
    logits = given.student.head(given.student.states)  # [B, S, V]
    hard = F.cross_entropy(logits.flatten(0, 1), given.labels.flatten(), ignore_index=IGNORED)
    log_probs = F.log_softmax(logits / TEMPERATURE, dim=-1)  # [B, S, V]
    kept = log_probs.gather(-1, given.ids)  # [B, S, k]
    other = torch.log1p(-kept.exp().sum(-1, keepdim=True))
    divergence = F.kl_div(torch.cat([kept, other], -1), given.teacher, log_target=True, reduction="none")
    soft = divergence.sum(-1)[given.labels != IGNORED].mean()
    return ALPHA * hard + (1 - ALPHA) * TEMPERATURE**2 * soft


def gkd(given: Problem, shape: Shape) -> torch.Tensor:
    """As `GKDTrainer.compute_loss` calls it, but that this one leaves the temperature at 1."""
    loss = peer(GKD, "GKDTrainer").generalized_jsd_loss
    logits = given.student.head(given.student.states)  # [B, S, V]
    with torch.no_grad():
        teacher = F.linear(given.states, given.head)  # [B, S, V]
    return TEMPERATURE**2 * loss(logits, teacher, given.labels, beta=0.0, temperature=TEMPERATURE)


def liger(given: Problem, shape: Shape) -> torch.Tensor:
    loss = peer(LIGER, "LigerFusedLinearJSDLoss")(
        weight_hard_loss=ALPHA,
        weight_soft_loss=(1 - ALPHA) * TEMPERATURE**2,
        beta=0.0,
        ignore_index=IGNORED,
        temperature=TEMPERATURE,
        compiled=False,
    )
    student, weight = given.student.states.flatten(0, 1), given.student.head.weight
    return loss(student, weight, given.states.flatten(0, 1), given.head, given.labels.flatten())


def chunked(given: Problem, shape: Shape) -> torch.Tensor:
    """Student's and teacher's states at the window [B, K, H], and the mask of its completions [B, K]."""
    loss = peer(CHUNKED, "_chunked_divergence_loss")
    student, teacher, labels = (x[:, -shape.window :] for x in (given.student.states, given.states, given.labels))
    weight, mask = given.student.head.weight, (labels != IGNORED).long()
    value, *_ = loss(student, teacher, weight, given.head, mask, beta=0.0, temperature=TEMPERATURE)
    return TEMPERATURE**2 * value


Loss = Callable[[Problem, Shape], torch.Tensor]


@dataclass(frozen=True)
class Side:
    loss: Loss
    module: str | None = None  # of the peer
    equals: Loss = ours  # what it must be equal to where we keep the whole vocabulary
    time_target: float | None = None  # times as much as ours, at least
    memory_target: float | None = None

    @property
    def library(self) -> str | None:
        return self.module and self.module.partition(".")[0]


OURS, PLAIN = "supervised positions", "whole sequences"
SIDES = {
    OURS: Side(ours),
    PLAIN: Side(plain),
    "TRL GKD": Side(gkd, GKD, ours_soft, time_target=12, memory_target=8),
    "Liger chunked JSD": Side(liger, LIGER, ours, time_target=12, memory_target=8),
    "TRL chunked divergence": Side(chunked, CHUNKED, ours_soft, time_target=2.5),
}


def sides_here() -> dict[str, Side]:
    """Those whose library is installed."""
    return {name: side for name, side in SIDES.items() if side.library is None or installed(side.library)}


def step(loss: Callable[..., torch.Tensor], given: Any, *shape: Shape) -> torch.Tensor:
    """One loss of a problem and its gradients, afresh."""
    given.student.zero_grad()
    value = loss(given, *shape)
    value.backward()
    return value.detach()


def difference(loss: Loss, other: Loss, given: Problem, shape: Shape) -> float:
    """The largest relative difference of loss, gradient of the states and gradient of the head."""
    results = []
    for side in (loss, other):
        value = step(side, given, shape)
        results.append([value, *(p.grad for p in given.student.parameters() if p.grad is not None)])
    return max(float((a - b).norm() / b.norm()) for a, b in zip(*results, strict=True))


def assert_equal(name: str, given: Problem, shape: Shape) -> str:
    """What a side's loss and gradients differ by, in words."""
    worst = difference(SIDES[name].loss, SIDES[name].equals, given, shape)
    assert worst < TOLERANCE, f"{name} differs from ours by {worst:.1e} ({shape})"
    return f"{name} {worst:.0e}"


def alone(name: str, shape: Shape) -> Work:
    """A step for the measurement of memory, behind one at a tiny shape, so that libraries are warm."""
    step(SIDES[name].loss, problem(QUICK[0]), QUICK[0])
    given = problem(shape)
    return lambda: step(SIDES[name].loss, given, shape)


def in_fresh_process(prepare: Callable[..., Work], *args: object) -> float:
    """Peak memory; what has to be imported is so already."""
    libraries = [side.module for side in sides_here().values() if side.module]
    return peak_mb(prepare, *args, imported=["kdsuite.methods.terms", *libraries])


def compare(shape: Shape, repeats: int, peak: Callable[..., float]) -> tuple[list[list[str]], list[Finding]]:
    """A row per side: time, memory (by `peak`) and how they compare; the ratios as findings."""
    sides = sides_here()
    memory = {name: peak(alone, name, shape) for name in sides}
    given = problem(shape)
    steps: dict[str, Work] = {name: lambda side=side: step(side.loss, given, shape) for name, side in sides.items()}
    times = side_by_side(steps, repeats, warm=True)  # by the smaller shapes
    gradient = 4 * shape.vocabulary * shape.width / MB  # of the head, the same for all
    rows, findings = [], []
    for name, side in sides.items():
        rows.append(
            [
                f"{shape.name}, {name}",
                spread(times[name].cpu),
                spread(times[name].wall),
                ratio(times[name].cpu, times[OURS].cpu),
                f"{memory[name]:,.0f}",
                times_as_much(memory[name], memory[OURS]),
                f"{memory[name] - gradient:,.0f}",
                times_as_much(memory[name] - gradient, memory[OURS] - gradient),
            ]
        )
        if name != OURS:
            what = f"KD1 loss and gradients, {shape.name}"
            slow, fast = times[name].cpu, times[OURS].cpu
            findings.append(Finding.of_ratio(what, name, "CPU time", slow, fast, **_goal(side.time_target)))
            if memory[OURS] >= 1:  # else there is too little to be measured
                share, goal = [memory[name] / memory[OURS]], _goal(side.memory_target)
                findings.append(Finding.of_values(what, name, "peak memory", "×", share, **goal))
    return rows, findings


def _goal(at_least: float | None) -> dict[str, float]:
    return {} if at_least is None else {"at_least": at_least}


def main() -> None:
    options = asked(arguments(__doc__, 2))
    for library in {side.library for side in SIDES.values() if side.library}:
        if not installed(library):
            print(left_out(library))
    shapes, peak = (QUICK, peak_mb_here) if options.quick else (SHAPES, in_fresh_process)
    small = problem(QUICK[0])
    print(f"Loss and gradients are equal to within: {assert_equal(PLAIN, small, QUICK[0])}")
    whole = problem(WHOLE)
    equal = [assert_equal(name, whole, WHOLE) for name, side in sides_here().items() if side.library]
    if equal:
        print(f"Where ours keeps the whole vocabulary, too: {', '.join(equal)}")
    print("Timed: " + "; ".join(f"{shape.name} {shape}" for shape in shapes), flush=True)
    for side in sides_here().values():
        step(side.loss, small, QUICK[0])
    print(f"Ours keeps {KEPT} tokens, the peers compare all")
    compared = [compare(shape, options.repeats, peak) for shape in shapes]
    rows, findings = (sum(parts, []) for parts in zip(*compared, strict=True))
    header = ("loss", "CPU ms", "wall ms", "CPU ratio", "peak MB", "ratio", "without head gradient", "ratio")
    show(options, header, rows, findings)


if __name__ == "__main__":
    main()

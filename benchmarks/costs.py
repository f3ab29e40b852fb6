"""What do KD1 and KD3 cost on top of B0, teacher outputs cached, and the trainer on top of a bare loop?

All sides train the same 20M student on the same batches, in turn. The bare loop is the least that a training
step can be: forward pass, cross-entropy of the supervised positions, backward pass, clipping, fused AdamW.

    python benchmarks/costs.py [--quick] [--repeats 3]
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure import Finding, arguments, asked, ratio, show, side_by_side, spread
from shapes import END, SMALL, TINY, model
from torch.nn import functional as F
from training import Case, Steps, feature_distillation, fine_tuning, logit_distillation

from kdsuite.config import TrainingSettings
from kdsuite.models.forward import supervised_logits
from kdsuite.tasks.batching import collate
from kdsuite.tasks.encoding import Encoded

BARE, B0, KD1, KD3 = "bare loop", "B0", "KD1", "KD3"
CASES = (Case("SST-2", SMALL, 16, 4), Case("SQuAD", SMALL, 8, 1))
QUICK = (Case("SQuAD", TINY, 4, 1, TINY),)
RATE, CLIP = TrainingSettings().learning_rate, TrainingSettings().max_grad_norm
HEADER = ("trained", "CPU ms / step", "wall ms / step", "CPU ratio to B0")


def loop(student: Any, optimizer: torch.optim.Optimizer, batches: list[list[Encoded]]) -> list[float]:
    """B0 without a trainer; the loss of every step."""
    losses = []
    for some in batches:
        batch = collate(some, END)
        target = batch.on_target
        logits, _ = supervised_logits(student, batch, target, student.config.vocab_size)
        loss = F.cross_entropy(logits, batch.targets[target])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def bare_loop(case: Case) -> Callable[[int], Steps]:
    student = model(case.student).train()
    optimizer = adamw(student)
    return lambda seed: Steps(partial(loop, student, optimizer, case.batches(seed)), lambda: 0)


def adamw(student: Any) -> torch.optim.Optimizer:
    """The trainer's own optimizer, in its defaults."""
    return torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.0, fused=True)


SIDES = {BARE: bare_loop, B0: fine_tuning, KD1: logit_distillation, KD3: feature_distillation}


def compare(case: Case, repeats: int) -> tuple[list[list[str]], list[Finding]]:
    """A row per side, and the ratios that have a target."""
    for make in SIDES.values():
        make(Case(case.task, TINY, 4, 1, TINY))(0).run()  # libraries are warm now
    sides = {name: make(case)(0).run for name, make in SIDES.items()}
    gc.collect()
    gc.freeze()  # the trainer collects garbage once per run, which is not a matter of a few steps
    times = side_by_side(sides, repeats, warm=True)
    label = f"{case.task}, {case.student.name}, batch {case.batch}"
    rows = [
        [
            f"{label}: {name}",
            spread([s / case.steps for s in t.cpu]),
            spread([s / case.steps for s in t.wall]),
            ratio(t.cpu, times[B0].cpu, 3),
        ]
        for name, t in times.items()
    ]
    return rows, [
        Finding.of_ratio(f"{dear} step, {label}", cheap, "CPU time", times[dear].cpu, times[cheap].cpu, at_most=most)
        for dear, cheap, most in ((B0, BARE, 1.05), (KD1, B0, 1.05), (KD3, B0, 1.10))
    ]


def main() -> None:
    options = asked(arguments(__doc__, 3))
    compared = [compare(case, options.repeats) for case in (QUICK if options.quick else CASES)]
    rows, findings = (sum(parts, []) for parts in zip(*compared, strict=True))
    show(options, HEADER, rows, findings)


if __name__ == "__main__":
    main()

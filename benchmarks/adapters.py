"""What do adapters cost in training? B0 steps of a real width and vocabulary, the suite's way against plain peft's.

Plain is peft's own forward pass, and the attention that torch chooses. Both sides train equal students on equal
batches in the dtype that the suite would take on this machine, without dropout and with the default one; the losses
of the first step without dropout are the same. The share of the peak is that of the operations which frozen weights
need: forward, and backward to the inputs.

    python benchmarks/adapters.py [--quick] [--repeats 5]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from limit import PEAK_WIDTHS, peak, useful
from measure import Finding, arguments, asked, show, side_by_side, spread
from shapes import END, TINY, Shape, model
from training import Case, as_peft_has_it, tokens

from kdsuite.config import LoraSettings
from kdsuite.methods.terms import Distiller, OnTarget
from kdsuite.models.loading import trainable
from kdsuite.runtime.device import DeviceChoice, choose
from kdsuite.train import loop
from kdsuite.train.loop import Loop, Material

LAYERS = 8
QWEN = Shape(f"0.5B, {LAYERS} of 24 layers", 896, LAYERS, 4864, 14, 2, 151_936 * LAYERS // 24)
CASES = (Case("SST-2", QWEN, 8, 2), Case("SQuAD", QWEN, 4, 1))
GOAL, PEAK_GOAL = 2.5, 40


def steps(case: Case, choice: DeviceChoice, dropout: float, plain: bool) -> tuple[Callable[[], float], float]:
    """Takes a case's steps again and again; and the loss of the first of them."""
    student: Any = trainable(model(case.student).to(choice.dtype).requires_grad_(False), LoraSettings(dropout=dropout))
    if plain:
        as_peft_has_it(student)
    distiller = Distiller(student, case.student.vocabulary, {"ce": OnTarget(1.0)})
    training = Loop(distiller, Material(case.epoch, END, case.settings, 0), choice, print)
    batches, short = case.batches(0), 0 if plain else loop.SHORT

    def run() -> float:
        kept, loop.SHORT = loop.SHORT, short
        for batch in batches:
            training.step(batch)
        loop.SHORT = kept
        return float(training.state.sums["loss"])

    distiller.train()
    return run, run()


def main() -> None:
    options = asked(arguments(__doc__, 5))
    cases, widths = ((Case("SST-2", TINY, 4, 1, TINY),), (64,)) if options.quick else (CASES, PEAK_WIDTHS)
    choice = choose("cpu", "auto", 1)
    rows, findings = [], []
    for case in cases:
        for dropout in (0.0, LoraSettings().dropout):
            torch.manual_seed(0)
            made = {name: steps(case, choice, dropout, name == "peft's") for name in ("peft's", "ours")}
            (_, expected), (_, found) = made.values()
            assert dropout or abs(found - expected) < 2e-2 * abs(expected), f"losses {found} and {expected}"
            times = side_by_side({name: run for name, (run, _) in made.items()}, options.repeats, warm=True)
            batches = [example for batch in case.batches(0) for example in batch]
            most = peak(widths, choice.dtype)
            needed = useful(batches, case.student, 2)
            label = f"B0 with adapters, {case.task}, {case.student.name}, dropout {dropout:g}, {choice.dtype_name}"
            share = [100 * needed / seconds / most for seconds in times["ours"].cpu]
            ratio = Finding.of_ratio(label, "peft", "CPU time", times["peft's"].cpu, times["ours"].cpu, at_least=GOAL)
            speeds = [spread([tokens(batches) / s for s in t.cpu], 1) for t in times.values()]
            rows.append([label, *speeds, f"{ratio.median:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})", spread(share, 1)])
            findings += [
                ratio,
                Finding.of_values(label, "matmul peak", "useful operations", "%", share, at_least=PEAK_GOAL),
            ]
    show(options, ("what", "peft tokens/s", "ours", "ratio", "% of the peak"), rows, findings)


if __name__ == "__main__":
    main()

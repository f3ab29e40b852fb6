"""How much of what this machine can multiply becomes learning? Training and teacher caching, against the matmul peak.

Useful operations are those that the tokens of the examples need, padding and repetition not counted: 2 per
parameter of the layers and token, 2 per head parameter and *supervised* position, 4 · width per layer and pair of
positions that attend to each other; three times as many where gradients are computed. The peak is that of square
float32 matrices (bfloat16 too, where this machine is faster at it), taken before and after every measurement.

    python benchmarks/limit.py [--quick] [--repeats 2]
"""

from __future__ import annotations

import gc
import time
from dataclasses import replace

import torch
from measure import Finding, Times, arguments, asked, show, spread
from shapes import SMALL, STUDENT, TEACHER, TINY, TINYLLAMA, Shape, as_plain
from training import Case, asking, fine_tuning

from kdsuite.runtime.device import WORTHWHILE, bfloat16_speedup
from kdsuite.tasks.encoding import Encoded

PEAK_WIDTHS, GIGA = (1024, 2048), 1e9
GOAL = 0.6  # for 126M and more
CASES = (
    Case("SST-2", SMALL, 16, 3),
    Case("SQuAD", SMALL, 8, 1),
    Case("SST-2", STUDENT, 16, 1),
    Case("SST-2", TINYLLAMA, 8, 1),
    Case("SQuAD", TINYLLAMA, 2, 1),
)
ASKED = (Case("SST-2", SMALL, 8, 1, TEACHER), Case("SST-2", TINYLLAMA, 16, 1, TINYLLAMA))
HEADER = ("what", "tokens/s", "useful GFLOP/s", "peak GFLOP/s", "share of the peak")


def useful(of: list[Encoded], shape: Shape, passes: int) -> float:
    """Operations that examples need: `passes` is 1 for a forward pass, 3 with gradients."""
    lengths = [len(as_plain(e)["input_ids"]) for e in of]
    supervised = sum(len(e.targets[e.gold_slice]) for e in of)
    attention = 4 * shape.width * shape.layers * sum(n * (n + 1) / 2 for n in lengths)
    return passes * (2 * shape.body * sum(lengths) + 2 * shape.vocabulary * shape.width * supervised + attention)


def peak(widths: tuple[int, ...], dtype: torch.dtype) -> float:
    """The most operations per second of this process's CPU time that a matrix product of some widths reaches."""
    rates = []
    for width in widths:
        square = torch.ones(width, width, dtype=dtype)
        torch.mm(square, square)
        started = time.process_time()
        torch.mm(square, square)
        rates.append(2 * width**3 / (time.process_time() - started))
    return max(rates)


def measure(what: str, case: Case, repeats: int, widths: tuple[int, ...]) -> tuple[list[str], Finding]:
    """A row and the share of the peak; `what` is "training" or "caching"."""
    trains, dtype = what == "training", getattr(torch, case.dtype)
    shape = case.student if trains else case.teacher
    prepare, chosen = (fine_tuning(case), case.batches) if trains else (asking(case), case.asked)
    (fine_tuning if trains else asking)(Case(case.task, TINY, 2, 1, TINY))(0).run()  # libraries are warm now
    gc.collect()
    gc.freeze()  # the trainer collects garbage once per run, which is not a matter of a few steps
    times, rates, peaks, shares, speeds = Times(), [], [], [], []
    for seed in range(repeats):
        steps = prepare(seed)
        before = peak(widths, dtype)
        with times.taken():
            steps.run()
        some = [example for batch in chosen(seed) for example in batch]
        rates.append(useful(some, shape, 3 if trains else 1) / times.cpu[-1])
        peaks.append((before + peak(widths, dtype)) / 2)
        shares.append(100 * rates[-1] / peaks[-1])
        speeds.append(steps.tokens() / times.cpu[-1])
    label = f"{what}, {case.task}, {shape.name}, batch {case.batch}, {case.dtype}"
    row = [label, *(spread(values, unit) for values, unit in ((speeds, 1), (rates, GIGA), (peaks, GIGA), (shares, 1)))]
    goal = {} if shape is SMALL or shape is TINY else {"at_least": 100 * GOAL}
    return row, Finding.of_values(label, "matmul peak", "useful operations per CPU second", "%", shares, **goal)


def main() -> None:
    options = asked(arguments(__doc__, 2))
    tiny = Case("SQuAD", TINY, 4, 1, TINY)
    training, caching, widths = ((tiny,), (tiny,), (64,)) if options.quick else (CASES, ASKED, PEAK_WIDTHS)
    faster = bfloat16_speedup()
    dtypes = ["float32", "bfloat16"] if faster >= WORTHWHILE else ["float32"]
    print(f"bfloat16 matrix products are {faster:.2g} times as fast as float32 here")
    if len(dtypes) == 1:
        print("bfloat16 is not what the suite would take on this machine, so it is not measured")
    measured = [
        measure(what, replace(case, dtype=dtype), options.repeats, widths)
        for dtype in dtypes
        for what, cases in (("training", training), ("caching", caching))
        for case in cases
    ]
    rows, findings = zip(*measured, strict=True)
    show(options, HEADER, rows, findings)


if __name__ == "__main__":
    main()

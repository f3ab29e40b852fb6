"""Does `torch.compile` pay? B0 steps of the 20M student, its layers compiled for any shape, against eager ones.

Steps are those of the bare loop (`costs.py`) on batches of different lengths, as in training. Compiling takes its
time once per process; a run must be long enough to earn it back. Not part of `make bench`: nothing of the suite
depends on it.

    python benchmarks/compiled.py [--quick] [--repeats 3]
"""

from __future__ import annotations

import time
from functools import partial

import torch
from costs import adamw, loop
from measure import Finding, arguments, asked, show, side_by_side, spread
from shapes import SMALL, TINY, model
from training import Case

CASE, QUICK = Case("SST-2", SMALL, 16, 4), Case("SQuAD", TINY, 4, 1, TINY)
TOLERANCE = 1e-3  # relative, of the losses of the same steps


def main() -> None:
    options = asked(arguments(__doc__, 3))
    case = QUICK if options.quick else CASE
    batches = case.batches(0)
    students = {"eager": model(case.student), "compiled": model(case.student)}
    students["compiled"].model = torch.compile(students["compiled"].model, dynamic=True)
    optimizers = {name: adamw(student) for name, student in students.items()}
    first, losses = {}, {}
    for name, student in students.items():
        started = time.perf_counter()
        losses[name] = loop(student, optimizers[name], batches)
        first[name] = time.perf_counter() - started
    for a, b in zip(losses["eager"], losses["compiled"], strict=True):
        assert abs(a - b) < TOLERANCE * abs(a), f"the losses are {a} and {b}"
    times = side_by_side(
        {name: partial(loop, student, optimizers[name], batches) for name, student in students.items()}, options.repeats
    )
    once = first["compiled"] - first["eager"]
    gain = Finding.of_ratio(
        f"eager steps, {case.student.name}, batch {case.batch}", "compiled", "CPU time",
        times["eager"].cpu, times["compiled"].cpu,
    )  # fmt: skip
    rows = [[name, spread([s / case.steps for s in t.cpu])] for name, t in times.items()]
    show(options, ("layers", "CPU ms / step"), rows, [gain], f"; compiling took {once:.0f} s")
    print(f"\neager / compiled: {gain.median:.3f} ({gain.low:.3f}–{gain.high:.3f})")


if __name__ == "__main__":
    main()

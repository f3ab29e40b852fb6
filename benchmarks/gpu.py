"""What does a GPU make of it? TinyLlama-1.1B in adapters, taught by Qwen2.5-3B, random weights: under ten minutes.

Sides of a comparison run one after the other, each with the device to itself, and take seconds of a clock that is read
when the device has done all its work. Useful operations are those of `limit.py`, twice a forward pass where adapters
learn. Where the teacher reads what the student writes it has the student's vocabulary, as TRL's trainers need; its head
is not tied to its embeddings. A section that fails is told in a line, the others go on, and the exit code is 1; one
that ten minutes might not hold is left out.

    PYTHONPATH=src python benchmarks/gpu.py [--quick] [--repeats 3]
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from answers import ANSWER, BATCH, QUESTIONS, prompts
from limit import useful
from measure import Finding, arguments, fresh, keep, machine, side_by_side, spread, table
from peers import installed, left_out
from shapes import QWEN_WHOLE, TINY, TINYLLAMA_WHOLE, some_chat
from trainers import DISTILLATION, GKD, SFT, assert_equal, distillation, gkd, on_policy_gkd, sft
from training import Case, Steps, asking, fine_tuning, logit_distillation, on_policy, student_of, teacher_of

from kdsuite.models.check import try_out, try_training
from kdsuite.models.generation import generate
from kdsuite.runtime.device import DeviceChoice, choose, empty_cache, now, peak_memory_mb, reset_peak_memory

BUDGET = 600  # seconds; each section's share is a guess for a slow card
TOLERANCE = 0.02  # relative, of the mean loss of some steps in bfloat16
Make = Callable[[Case], Callable[[int], Steps]]
Section = Callable[[], list[Finding]]


@dataclass(frozen=True)
class Side:
    """What a side of a comparison took: values per repeat."""

    seconds: list[float]  # per 1,000 tokens of prompts and targets
    share: list[float]  # of the peak, in %; none where useful operations are not counted
    megabytes: float  # at the peak, models and all

    def row(self, name: str) -> list[str]:
        share = spread(self.share, 1) if self.share else "–"
        return [name, spread([1_000 / s for s in self.seconds], 1), share, f"{self.megabytes:,.0f}"]

    def findings(self, name: str) -> list[Finding]:
        speeds = Finding.of_values(name, "", "speed", "tokens/s", [1_000 / s for s in self.seconds])
        memory = Finding.of_values(name, "", "peak memory", "MB", [self.megabytes])
        share = [Finding.of_values(name, "matmul peak", "useful operations", "%", self.share)] if self.share else []
        return [speeds, *share, memory]


@dataclass(frozen=True)
class Bench:
    """Where, what and how often is measured."""

    choice: DeviceChoice
    cases: Sequence[Case]  # the student in adapters, its teacher, in the dtype of `choice`
    repeats: int
    width: int  # of the square matrices whose product is the peak

    @property
    def one_vocabulary(self) -> Case:
        return replace(case := self.cases[-1], teacher=replace(case.teacher, vocabulary=case.student.vocabulary))

    def peak(self) -> float:
        """Operations per second of the largest matrix product, the best of some."""
        square = torch.ones(self.width, self.width, dtype=self.choice.dtype, device=self.choice.device)
        rates = []
        for _ in range(6):
            begun = now(square.device)
            torch.mm(square, square)
            rates.append(2 * self.width**3 / (now(square.device) - begun))
        return max(rates)

    def side(self, make: Make, case: Case, passes: int = 0) -> Side:
        """Measure a side by itself, behind a run that does not count; `passes` as of `limit.useful`, 0: none known."""
        shape, batches = (case.teacher, case.asked) if make is asking else (case.student, case.batches)
        device, seconds, rates, prepare = self.choice.device, [], [], make(case)
        prepare(0).run()
        reset_peak_memory(device)
        for seed in range(1, self.repeats + 1):
            steps, begun = prepare(seed), now(device)
            steps.run()
            took = now(device) - begun
            seconds.append(1_000 * took / steps.tokens())
            rates.append(useful([e for batch in batches(seed) for e in batch], shape, passes) / took)
        most, steps, prepare = peak_memory_mb(device), None, None  # the models that both hold can go
        gc.collect()
        empty_cache(device)
        top = self.peak() if passes else 1
        return Side(seconds, [100 * rate / top for rate in rates if rate], most)

    def sides(self, case: Case, sides: Mapping[str, tuple[Make, int]]) -> tuple[dict[str, Side], list[Finding]]:
        """Measure the sides of a case in turn and print them; with what was found of each."""
        label = f"{case.task}, batch {case.batch}, {case.dtype}"
        measured = {name: self.side(make, case, passes) for name, (make, passes) in sides.items()}
        rows = [side.row(f"{name}, {label}") for name, side in measured.items()]
        print(table(("what", "tokens/s", "% of the peak", "peak MB"), rows) + "\n", flush=True)
        return measured, [f for name, side in measured.items() for f in side.findings(f"{name}, {label}")]


def slower(what: str, slow: Side, against: str, fast: Side, **target: float) -> Finding:
    found = Finding.of_ratio(what, against, "wall time", slow.seconds, fast.seconds, **target)
    print(f"{what} over {against}: {found.median:.2f}× ({found.low:.2f}–{found.high:.2f})\n")
    return found


def trial(bench: Bench) -> list[Finding]:
    """The suite's own trials of both models: forward, generation, and gradients, which must be the CPU's."""
    case = bench.cases[0]
    try_out(teacher_of(case), case.teacher.name)
    try_training(student_of(case), case.student.name)
    rates = [bench.peak() / 1e12 for _ in range(bench.repeats)]
    print(f"both models hold on {bench.choice.device}; matrix products: {spread(rates, 1)} TFLOP/s")
    return [Finding.of_values(f"matmul peak, {bench.choice.dtype_name}", "", "speed", "TFLOP/s", rates)]


def learning(bench: Bench) -> list[Finding]:
    found = []
    for case in bench.cases:
        measured, new = bench.sides(case, {"B0": (fine_tuning, 2), "KD1": (logit_distillation, 2)})
        found += [*new, slower(f"KD1 step, {case.task}", measured["KD1"], "B0", measured["B0"], at_most=1.05)]
    return found


def writing(bench: Bench) -> list[Finding]:
    """GKD: the student writes 32 tokens to each prompt, the teacher reads them."""
    return bench.sides(bench.one_vocabulary, {"GKD": (on_policy, 0)})[1]


def caching(bench: Bench) -> list[Finding]:
    return [f for case in bench.cases for f in bench.sides(case, {"caching": (asking, 1)})[1]]


def answering(bench: Bench) -> list[Finding]:
    """Answers of 6 tokens to prompts of SQuAD's proportions, in batches that share their passages and one by one."""
    chat = some_chat()  # other tokens than its own are never taken
    teacher, found = teacher_of(bench.cases[0]), []
    for size, passages in ((BATCH, 8 * BATCH // QUESTIONS), (1, 4)):
        asked, name = prompts(passages, len(chat.tokenizer)), f"answers, {size} at a time"
        times = side_by_side({name: partial(generate, teacher, chat, asked, ANSWER, size)}, bench.repeats)
        rates = [len(asked) / seconds for seconds in times[name].wall]
        print(f"{name}: {spread(rates, 1)} per second")
        found.append(Finding.of_values(name, "", "speed", "answers/s", rates))
    return found


def precision(bench: Bench) -> list[Finding]:
    """B0 in both dtypes from the same weights (bfloat16's rounded): losses, and seconds."""
    case, found, losses, measured = bench.cases[0], [], {}, {}
    for dtype in ("float32", "bfloat16"):
        other = replace(case, dtype=dtype)
        trained: Any = fine_tuning(other)(0).run()
        losses[dtype] = trained.history[-1]["loss"]
        both, new = bench.sides(other, {"B0": (fine_tuning, 0)})
        measured[dtype], found = both["B0"], found + new
    apart = abs(losses["bfloat16"] / losses["float32"] - 1)
    print(f"mean losses {losses['float32']:.5f} and {losses['bfloat16']:.5f}, {apart:.1e} apart")
    if apart > TOLERANCE:
        raise RuntimeError(f"losses in bfloat16 are {apart:.1%} from those in float32")
    return [*found, slower("float32, B0", measured["float32"], "bfloat16", measured["bfloat16"])]


def peers(bench: Bench) -> list[Finding]:
    if not installed("trl"):
        print(left_out("trl"))
        return []
    print(f"losses and gradients are equal to {max(fresh(assert_equal, context=get_context('spawn'))):.0e}")
    case, found = bench.one_vocabulary, []
    live = {f"{GKD}, λ = 1": on_policy_gkd, DISTILLATION: distillation}
    pairs = (("B0", fine_tuning, {SFT: sft}), ("KD1", logit_distillation, {GKD: gkd}), ("GKD", on_policy, live))
    for method, ours, theirs in pairs:
        measured, new = bench.sides(case, {name: (make, 0) for name, make in ({method: ours} | theirs).items()})
        found += [*new, *(slower(name, measured[name], method, measured[method]) for name in theirs)]
    return found


def tests(bench: Bench) -> list[Finding]:
    missing = [name for name in ("pytest", "xdist") if find_spec(name) is None]
    if missing or bench.choice.device.type != "cuda":
        print(f"not run: {' and '.join(missing)} not installed" if missing else "not run: they need CUDA")
        return []
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cuda", "tests/runtime/test_device.py"]
    subprocess.run(command, check=True, timeout=120, cwd=Path(__file__).parents[1])
    return []


def each(sections: Mapping[str, tuple[int, Section]], left: Callable[[], float]) -> tuple[list[Finding], list[str]]:
    """Sections in turn, each with the most seconds it may take; what was found, and the names of those that failed."""
    found, failed = [], []
    for name, (most, section) in sections.items():
        begun = left()
        if begun < most:
            print(f"\n## {name}: left out, it may take {most} s and {begun:.0f} are left")
            continue
        print(f"\n## {name}\n", flush=True)
        try:
            found += section()
        except Exception as error:  # noqa: BLE001 (whatever it is, the other sections can be measured)
            print(f"{name} FAILED: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
            failed.append(name)
        print(f"({begun - left():.0f} s)", flush=True)
    return found, failed


def bench_of(quick: bool, repeats: int) -> Bench:
    """The GPU with the real shapes, or this CPU with tiny ones. SystemExit without a GPU."""
    if quick:
        return Bench(choose("cpu", "float32", 1), [Case("SQuAD", TINY, 4, 1, TINY, adapters=True)], 1, 64)
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --quick runs everything at tiny shapes on the CPU, to see that it runs")
    choice = choose("cuda")
    real = Case("SST-2", TINYLLAMA_WHOLE, 16, 16, QWEN_WHOLE, choice.dtype_name, "cuda", True)
    return Bench(choice, [real, replace(real, task="SQuAD", batch=8, steps=8)], repeats, 8192)


def main() -> None:
    started = time.monotonic()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one: transformers' trainer would spread over all
    options = arguments(__doc__, 3).parse_args()
    bench = bench_of(options.quick, options.repeats)
    name = torch.cuda.get_device_name() if bench.choice.device.type == "cuda" else "no GPU"
    print(f"{name}, {bench.choice}; {machine()}; medians of {bench.repeats} (smallest–largest)")
    sections = {"trial": (40, trial), "training": (90, learning), "GKD": (60, writing), "caching": (40, caching)}
    sections |= {"answers": (40, answering), "bfloat16 against float32": (70, precision)}
    sections |= {"TRL": (150, peers), "CUDA tests": (60, tests)}
    bound = {name: (most, partial(section, bench)) for name, (most, section) in sections.items()}
    budget = 100 * BUDGET if options.quick else BUDGET  # whatever else a CPU has to do
    found, failed = each(bound, lambda: budget - (time.monotonic() - started))
    print(f"\n{time.monotonic() - started:.0f} s in all; failed: {', '.join(failed) or 'none'}")
    keep(found, options.findings)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

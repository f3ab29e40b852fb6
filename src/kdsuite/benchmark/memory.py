"""Peak memory of a model variant in a process of its own: `python -m kdsuite.benchmark.memory < jobs.json`.

On CUDA and MPS the peak is the allocator's, of prefill and decoding. On a CPU it is the process's peak
resident set, as `/usr/bin/time -v` shows it: interpreter and libraries (`runtime_mb`, the same for all
variants), reading the weights, prefill and decoding. It only grows, so small sizes are measured first.

Importing torch and transformers takes seconds, more than measuring a small model. So on Linux CPUs one process
imports them once, computes nothing, and forks a child per variant, with an address space of its own. The kernel
hands it the pages of shared libraries anew only when it touches them, so its resident set starts too low; what
counts is the growth above that start, added to `runtime_mb`. Library pages that are touched again count twice by
that: 3–5 % of 500 MB too much, as measured against `/usr/bin/time -v`. With a single job nothing is forked, and the
figure is that of the process. Accelerators cannot be shared with a forked child: there, every job has a new process.
"""

import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
from pydantic import TypeAdapter

from kdsuite.benchmark.latency import random_prompts, timed_generation
from kdsuite.benchmark.variants import Variant, load
from kdsuite.errors import KdsuiteError
from kdsuite.runtime.device import MB, choose, peak_memory_mb, reset_peak_memory
from kdsuite.runtime.process import silence


def _resident_mb() -> float:
    return psutil.Process().memory_info().rss / MB


RUNTIME_MB = _resident_mb()  # after the imports above; a forked child inherits the number


@dataclass(frozen=True)
class Job:
    """Which sizes, (batch size, prompt tokens), to measure of a variant, and where."""

    variant: Variant
    sizes: list[tuple[int, int]]
    new_tokens: int
    device: str
    dtype: str
    threads: int


@dataclass(frozen=True)
class Memory:
    """Megabytes. `peak_mb` per size, in the order of the job; `reason` says why there is none."""

    runtime_mb: float | None = None
    peak_mb: list[float] = field(default_factory=list)
    reason: str | None = None


JOBS, MEMORY = TypeAdapter(list[Job]), TypeAdapter(Memory)  # how they are written for the other process


def measure_memory(jobs: list[Job], advance: Callable[[], None] = lambda: None) -> list[Memory]:
    """What each job finds in a fresh process; `advance` after each."""
    can_fork = sys.platform == "linux" and all(job.device == "cpu" for job in jobs)
    groups = [jobs] if jobs and can_fork else [[job] for job in jobs]
    return [memory for group in groups for memory in _in_a_new_process(group, advance)]


def _in_a_new_process(jobs: list[Job], advance: Callable[[], None]) -> list[Memory]:
    command, found = [sys.executable, "-m", "kdsuite.benchmark.memory"], []
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryFile() as asked:
        asked.write(JOBS.dump_json(jobs))
        asked.seek(0)
        with subprocess.Popen(command, stdin=asked, stdout=subprocess.PIPE, stderr=errors) as process:
            assert process.stdout is not None
            for line in process.stdout:
                found.append(MEMORY.validate_json(line))
                advance()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or [f"exit status {process.returncode}"])[-1]
    lost = len(jobs) - len(found)
    return [*found, *[Memory(reason=f"the measuring process failed: {last}")] * lost]


def _measure(job: Job) -> Memory:
    """The memory of one variant in this process, or the reason why it cannot be loaded or run."""
    try:
        start = _resident_mb()
        choice = choose(job.device, job.dtype, job.threads)
        model, _ = load(job.variant, choice)
        on_cpu, peaks = choice.device.type == "cpu", {}
        for batch_size, length in sorted(job.sizes, key=lambda size: size[0] * (size[1] + job.new_tokens)):
            if not on_cpu:
                reset_peak_memory(choice.device)
            timed_generation(model, random_prompts(model, batch_size, length), job.new_tokens)
            peaks[batch_size, length] = peak_memory_mb(choice.device)
    except (KdsuiteError, RuntimeError) as error:
        return Memory(reason=str(error))
    above = RUNTIME_MB - start if on_cpu else 0.0
    return Memory(RUNTIME_MB if on_cpu else 0.0, [peaks[size] + above for size in job.sizes])


def _measure_in_a_child(job: Job) -> Memory:
    """The memory as a forked child finds it; one that dies (out of memory) leaves a reason."""
    forked = multiprocessing.get_context("fork")
    reader, writer = forked.Pipe(duplex=False)
    child = forked.Process(target=lambda: writer.send(_measure(job)))
    child.start()
    writer.close()
    try:
        memory = reader.recv()
    except EOFError:
        memory = None
    child.join()
    return memory or Memory(reason=f"the measuring process ended with status {child.exitcode}")


def main() -> None:
    """Jobs as a JSON list on standard input, the memory of each as a line of JSON on standard output."""
    silence()
    jobs = JOBS.validate_json(sys.stdin.buffer.read())
    measure = _measure if len(jobs) == 1 else _measure_in_a_child
    for job in jobs:
        print(MEMORY.dump_json(measure(job)).decode(), flush=True)


if __name__ == "__main__":
    main()

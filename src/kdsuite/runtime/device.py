"""Device, dtype and threads: decided once, here, each with its reason.

Under `auto`: MPS, then CUDA, then CPU; bfloat16 on CUDA hardware that has it and on CPUs where a probe finds
it faster, float32 otherwise (float16 needs loss scaling, which must be asked for). The reasons for what is
special about MPS are in docs/devices.md.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import torch

from kdsuite.errors import SettingsError

DTYPES = ("float32", "bfloat16", "float16")
MB = 1e6
MPS_TOKENS = 4096  # of one backward pass: gradients of larger ones were reported to be wrong, silently
MPS_BUCKET = 32  # tokens; few shapes, as the memory of MPS grows with every new one
MPS_LIMIT = "PYTORCH_MPS_HIGH_WATERMARK_RATIO"  # the reader's own limit, if it is set
GPUS = "CUDA_VISIBLE_DEVICES"
PROCESS_STATUS = Path("/proc/self/status")  # Linux: its VmHWM is the peak resident set, in kB
CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux: writing 5 makes the peak resident set the current one

GROUPS = (  # of control groups version 2 and 1: below which folder, limit, use, and what of it gives way first
    ("", "max", "current", "inactive_file"),
    ("memory", "limit_in_bytes", "usage_in_bytes", "total_inactive_file"),
)

PROBE_WIDTH = 512  # of the square matrices whose products are timed in both precisions
PROBE_ROUNDS = 7  # the fastest of each counts: what else the machine does only slows down
WORTHWHILE = 1.3  # times as fast as float32, at least, that bfloat16 must be

_mps_peak: list[int] = []  # bytes, at most one


@dataclass(frozen=True)
class DeviceChoice:
    """Where and in what precision to compute, and why; `threads` is the number of CPU threads in use."""

    device: torch.device
    dtype: torch.dtype
    device_reason: str
    dtype_reason: str
    threads: int

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def numerics(self) -> list[str]:
        """The facts that decide a result: the kind of device, whichever it is of several, and the dtype."""
        return [self.device.type, self.dtype_name]

    def precision(self) -> torch.autocast:
        """Matrix products in the chosen dtype, whatever the dtype of the weights."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if enabled else None, enabled=enabled)

    def __str__(self) -> str:
        return (
            f"device {self.device} ({self.device_reason}), {self.dtype_name} ({self.dtype_reason}), "
            f"{self.threads} CPU thread{'' if self.threads == 1 else 's'}"
        )


def choose(device: str = "auto", dtype: str = "auto", threads: int | None = None) -> DeviceChoice:
    """Decide device, dtype and thread count, and set torch's thread count.

    `device`: auto, cpu, mps, cuda or cuda:<n>; `dtype`: auto or one of DTYPES; `threads`: None leaves
    torch's own choice. SettingsError for a device or dtype that is not there, naming those that are.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    there = available()
    if device not in ("auto", *there):
        raise SettingsError(f"device {device!r} is not available here; choose auto or one of {', '.join(there)}")
    device_reason = "as configured"
    if device == "auto":
        device = there[0]
        device_reason = "the only one" if there == ["cpu"] else "best of " + ", ".join(there)
    place = torch.device(device)
    if place.type == "mps" and MPS_LIMIT not in os.environ:
        torch.mps.set_per_process_memory_fraction(1.0)  # by default 1.7: more than there is, so it would swap
    precision, dtype_reason = _choose_dtype(place, dtype)
    return DeviceChoice(place, precision, device_reason, dtype_reason, torch.get_num_threads())


def available() -> list[str]:
    """The devices of this machine, best first."""
    cuda = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*mps, *(["cuda"] if cuda else []), *cuda, "cpu"]


def gpus(chosen: torch.device) -> list[str]:
    """The GPUs that work can be spread over, as CUDA_VISIBLE_DEVICES names them; none on other devices."""
    if chosen.type != "cuda":
        return []
    listed = os.environ.get(GPUS)
    names = listed.split(",") if listed else [str(n) for n in range(torch.cuda.device_count())]
    return names if chosen.index is None else [names[chosen.index]]


def refuse_fewer(chosen: torch.device, wanted: int) -> None:
    """SettingsError where there are fewer devices of the chosen kind than a job is to be spread over."""
    there = len(gpus(chosen)) if chosen.type == "cuda" else 1 if chosen.type == "mps" else wanted
    if there < wanted:
        raise SettingsError(f"devices_per_job is {wanted}, but there is {there} ({chosen}); set it to {there} or less")


@contextmanager
def only(names: Sequence[str]) -> Iterator[None]:
    """Processes that are started while the block lasts have only these GPUs, if any are named."""
    before = os.environ.get(GPUS)
    if names:
        os.environ[GPUS] = ",".join(names)
    try:
        yield
    finally:
        if names:
            os.environ.pop(GPUS) if before is None else os.environ.update({GPUS: before})


def now(device: torch.device) -> float:
    """Seconds of a clock that is read when the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def bucket(device: torch.device) -> int:
    """Lengths of batches are multiples of this many tokens."""
    return MPS_BUCKET if device.type == "mps" else 1


def examples_at_once(device: torch.device, count: int, longest: int) -> int:
    """How many of `count` examples of at most `longest` tokens, with their padding, go into one backward pass."""
    padded = -(-longest // bucket(device)) * bucket(device)
    return min(count, max(1, MPS_TOKENS // padded)) if device.type == "mps" else count


def empty_cache(device: torch.device) -> None:
    """Give cached, unused memory of the device back; costly, so only now and then.

    On a CPU it is the C library that keeps it: with glibc, freed tensors of up to 32 MB stay with the process
    between those still in use, and what no later one fits into is left for good.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        _note_mps_memory()
        torch.mps.empty_cache()
    elif (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's; None where there is another C library."""
    if sys.platform != "linux":
        return None
    import ctypes

    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def memory_bytes(device: torch.device) -> tuple[int, int]:
    """How much memory a process can use on the device in all, and how much of it is free now.

    MPS shares the machine's memory; PyTorch recommends not to use more than a part of it. A container, or a job of a
    cluster, may have less than its machine.
    """
    machine = psutil.virtual_memory()
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    if device.type == "mps":
        usable = torch.mps.recommended_max_memory()
        return usable, min(usable, machine.available)
    limits = [(machine.total, machine.available), *group_memory()]
    return min(total for total, _ in limits), max(0, min(free for _, free in limits))


def group_memory(root: Path = Path("/")) -> Iterator[tuple[int, int]]:
    """Bytes in all, and free, of each limited control group of Linux (version 2 or 1) that this process is in.
    Files that are cached and not in use count as free: they give way first."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            top, *names = GROUPS["memory" in kinds]
            top = root / "sys/fs/cgroup" / top
            for group in (here := top / path.strip("/"), *here.parents[: len(here.parts) - len(top.parts)]):
                with suppress(OSError):  # a container does not see the groups around it
                    most, used = ((group / f"memory.{name}").read_text().strip() for name in names[:2])
                    cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                    if most != "max":
                        yield int(most), int(most) - int(used) + int(cached.get(names[2], 0))


def cores() -> int:
    """Of the machine, as far as this process may use them."""
    there = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return min(there, len(os.sched_getaffinity(0))) if sys.platform == "linux" else there


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new peak. On a CPU only Linux can; elsewhere the peak stays that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "mps":
        _mps_peak.clear()
    elif CLEAR_REFS.exists():
        with suppress(OSError):  # forbidden in some containers: the peak then stays the process's
            CLEAR_REFS.write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """The most memory in use since `reset_peak_memory` (or the start), in MB (1e6 bytes).

    CUDA: the allocator's peak. MPS: the most that the driver held for this process, which grows until
    `empty_cache`. CPU: the peak of the process's resident set, libraries and all.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MB
    if device.type == "mps":
        _note_mps_memory()
        return max(_mps_peak) / MB
    return _peak_resident_bytes() / MB


def _note_mps_memory() -> None:
    """MPS counts no peak; what the driver holds falls only when the cache is emptied, so look before."""
    _mps_peak[:] = [max([*_mps_peak, torch.mps.driver_allocated_memory()])]


def _choose_dtype(device: torch.device, name: str) -> tuple[torch.dtype, str]:
    if name != "auto":
        if name not in DTYPES:
            raise SettingsError(f"unknown dtype {name!r}; choose auto or one of {', '.join(DTYPES)}")
        return getattr(torch, name), "as configured"
    if device.type == "cpu" and sys.platform != "darwin":
        faster = bfloat16_speedup()
        if faster >= WORTHWHILE:
            return torch.bfloat16, "its matrix products are faster on this CPU than float32's"
        return torch.float32, "bfloat16 is not faster on this CPU"
    if device.type != "cuda":
        return torch.float32, "the safe default on macOS"
    if torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16, "supported by this GPU"
    return torch.float32, "this GPU has no bfloat16"


@cache
def bfloat16_speedup() -> float:
    """How many times as fast as in float32 this CPU multiplies matrices in bfloat16; measured once per process.

    About 2 to 5 with AVX512-bf16 or AMX, below 1 without. A few hundredths of a second.
    """

    def seconds(dtype: torch.dtype) -> float:
        started = time.perf_counter()
        torch.mm(squares[dtype], squares[dtype])
        return time.perf_counter() - started

    squares = {dtype: torch.ones(PROBE_WIDTH, PROBE_WIDTH, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    rounds = [{dtype: seconds(dtype) for dtype in squares} for _ in range(PROBE_ROUNDS)]
    return min(r[torch.float32] for r in rounds) / min(r[torch.bfloat16] for r in rounds)


def _peak_resident_bytes() -> int:
    """The peak resident set; not `ru_maxrss` where Linux tells another (gVisor does not), as that begins at the parent
    process's memory."""
    lines = PROCESS_STATUS.read_text().splitlines() if PROCESS_STATUS.exists() else ()
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, kilobytes elsewhere

"""What a result depended on besides its settings: versions, machine, code.

Only named facts are collected. Environment variables are never read, so that no token can get into a record.
"""

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from kdsuite import __version__

if TYPE_CHECKING:
    from kdsuite.runtime.device import DeviceChoice

LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "accelerate", "datasets", "safetensors", "numpy")


def capture(choice: "DeviceChoice") -> dict[str, Any]:
    """Facts about this process: a JSON-ready dict (memory in MB, 1e6 bytes)."""
    import torch

    cuda = choice.device.type == "cuda"
    return {
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "device": str(choice.device),
        "device_name": torch.cuda.get_device_name(choice.device) if cuda else _cpu_name(),
        "device_reason": choice.device_reason,
        "dtype": choice.dtype_name,
        "dtype_reason": choice.dtype_reason,
        "threads": choice.threads,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_cores": psutil.cpu_count(logical=True),
        "memory_mb": round(psutil.virtual_memory().total / 1e6),
        "code_version": code_version(),
    }


@functools.cache
def code_version() -> str:
    """The package's version and, in a git checkout, `+<commit>` and `-dirty` if files were changed."""
    root = Path(__file__).parents[3]
    git = ("git", "-C", str(root))
    commit = _output(*git, "rev-parse", "--short=8", "HEAD") if (root / ".git").exists() else None
    if not commit:
        return __version__
    dirty = "-dirty" if _output(*git, "status", "--porcelain", "--untracked-files=no") else ""
    return f"{__version__}+{commit}{dirty}"


@functools.cache
def _cpu_name() -> str:
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def _output(*command: str) -> str | None:
    """What a command prints, or None if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

"""Device, dtype and threads are decided once, with reasons, and absent ones are refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdsuite.errors import SettingsError
from kdsuite.runtime import device

CPU = torch.device("cpu")
PROBE = device.bfloat16_speedup  # before the fixture that stands in for it


def test_auto_takes_the_best_device_there_is():
    choice = device.choose()
    assert str(choice.device) == device.available()[0]
    assert choice.device_reason
    assert choice.dtype_reason


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What torch says is there: MPS, so many GPUs of a compute capability."""

    def there(mps: bool = False, gpus: int = 0, capability: tuple[int, int] = (8, 0)) -> None:
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", lambda fraction: None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return there


def test_auto_takes_mps_before_cuda_before_the_cpu(hardware):
    hardware(mps=True, gpus=2)
    assert device.available() == ["mps", "cuda", "cuda:0", "cuda:1", "cpu"]
    assert device.choose().device.type == "mps"
    hardware(gpus=2)
    assert str(device.choose().device) == "cuda" and device.choose("cuda:1").device.index == 1
    hardware()
    assert device.choose().device == CPU


@pytest.mark.parametrize(
    ("there", "dtype"),
    [
        ({"gpus": 1, "capability": (9, 0)}, "bfloat16"),
        ({"gpus": 1, "capability": (8, 0)}, "bfloat16"),
        ({"gpus": 1, "capability": (7, 5)}, "float32"),
        ({"mps": True}, "float32"),
    ],
)
def test_bfloat16_is_for_gpus_that_have_it_and_not_for_mps(hardware, there: dict, dtype: str):
    hardware(**there)
    assert device.choose().dtype_name == dtype


def test_a_cpu_of_a_mac_computes_in_float32(hardware, monkeypatch: pytest.MonkeyPatch):
    hardware()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(device, "bfloat16_speedup", lambda: 5.0)
    assert device.choose().dtype_name == "float32"


@pytest.mark.parametrize(("faster", "dtype"), [(0.1, "float32"), (1.2, "float32"), (2.0, "bfloat16")])
def test_the_cpu_computes_in_bfloat16_only_where_that_is_faster(monkeypatch, faster: float, dtype: str):
    monkeypatch.setattr(device, "bfloat16_speedup", lambda: faster)
    choice = device.choose("cpu")
    assert (choice.device, choice.dtype_name) == (CPU, dtype)
    assert dtype in str(choice) and "faster" in choice.dtype_reason


def test_the_probe_multiplies_in_both_precisions_and_only_once():
    probe = PROBE
    assert probe() == probe() > 0
    assert probe.cache_info().misses == 1


def test_an_explicit_dtype_is_taken():
    choice = device.choose("cpu", "bfloat16")
    assert (choice.dtype, choice.dtype_reason) == (torch.bfloat16, "as configured")


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "cpu:0", ""])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str):
    with pytest.raises(SettingsError, match=r"not available here; choose auto or one of .*cpu"):
        device.choose(name)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(SettingsError, match="unknown dtype 'float64'; choose auto or one of float32"):
        device.choose("cpu", "float64")


def test_threads_are_set_when_asked_for_and_left_alone_otherwise():
    before = torch.get_num_threads()
    try:
        assert device.choose("cpu", threads=1).threads == torch.get_num_threads() == 1
        assert device.choose("cpu").threads == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["PYTORCH_ENABLE_MPS_FALLBACK", "THP_MEM_ALLOC_ENABLE"])
@pytest.mark.parametrize(("own", "told"), [(None, "1"), ("0", "0")])
def test_what_torch_reads_when_it_is_loaded_is_set_before_unless_the_reader_says_otherwise(name, own, told):
    """Operators that MPS lacks fall back to the CPU; large tensors ask for large pages."""
    code = (
        "import importlib.abc, os, sys\n"
        "class Watch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == 'torch': print(os.environ['{name}']); os._exit(0)\n"
        "sys.meta_path.insert(0, Watch())\n"
        "from kdsuite.runtime import device; device.available()\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != name}
    environment |= {"PYTHONUNBUFFERED": "1"} | ({name: own} if own else {})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == told


@pytest.mark.parametrize(("own", "limits"), [(None, [1.0]), ("0.0", [])])
def test_mps_may_use_what_is_recommended_and_no_more_unless_the_reader_says_otherwise(
    own: str | None, limits: list[float], monkeypatch: pytest.MonkeyPatch
):
    """The policy only; there is no such hardware here."""
    told: list[float] = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", told.append)
    monkeypatch.delenv(device.MPS_LIMIT, raising=False)
    if own is not None:
        monkeypatch.setenv(device.MPS_LIMIT, own)
    choice = device.choose("auto")
    assert (choice.device.type, choice.dtype) == ("mps", torch.float32)
    assert told == limits
    assert device.bucket(choice.device) == device.MPS_BUCKET
    device.choose("cpu")
    assert told == limits
    assert device.bucket(CPU) == 1


def test_memory_is_what_the_machine_has_and_what_of_it_is_free():
    total, free = device.memory_bytes(CPU)
    assert 0 < free < total
    assert total > 1e9


GROUPS = {  # what Linux says in a container, under Slurm, and of version 1, where no limit is a huge number
    "v2": ("0::/\n", {"": ("max", "current", 900, 500, "inactive_file 100")}, [(900, 500)]),
    "v2 without a limit": ("0::/a\n", {"a": ("max", "current", "max", 500, "inactive_file 100")}, []),
    "a job of many steps": (
        "0::/slurm/job/step\n",
        {
            "slurm/job/step": ("max", "current", "max", 10, "anon 1"),
            "slurm/job": ("max", "current", 300, 200, "inactive_file 50"),
            "slurm": ("max", "current", 1000, 250, "inactive_file 50"),
        },
        [(300, 150), (1000, 800)],
    ),
    "v1": (
        "5:cpuset:/x\n4:memory:/job\n0::/\n",
        {"memory/job": ("limit_in_bytes", "usage_in_bytes", 800, 600, "inactive_file 1\ntotal_inactive_file 200")},
        [(800, 400)],
    ),
    "v1 of which the host's path is told": (
        "4:cpu,memory:/docker/abc\n",
        {"memory": ("limit_in_bytes", "usage_in_bytes", 800, 600, "total_inactive_file 0")},
        [(800, 200)],
    ),
}


@pytest.mark.parametrize("case", GROUPS)
def test_what_a_container_or_a_job_may_use_of_the_memory(tmp_path: Path, monkeypatch, case: str):
    told, groups, found = GROUPS[case]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(told)
    for name, (limit, use, most, used, stat) in groups.items():
        folder = tmp_path / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in ((limit, most), (use, used), ("stat", stat)):
            (folder / f"memory.{file}").write_text(f"{content}\n")
    assert list(device.group_memory(tmp_path)) == found
    assert list(device.group_memory(tmp_path / "nowhere")) == []
    monkeypatch.setattr(device, "group_memory", lambda: found)
    total, free = device.memory_bytes(CPU)
    assert not found or (total, free) == tuple(map(min, zip(*found, strict=True)))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux binds a process to cores")
def test_cores_are_those_that_a_process_is_bound_to():
    code = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); print(device.cores())"
    assert in_new_process(code) == 1 <= device.cores()


def in_new_process(code: str) -> float:
    """What `code` prints, run where no earlier test has reached a higher peak."""
    setup = "import torch; from kdsuite.runtime import device; cpu = torch.device('cpu')\n"
    done = subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_peak_memory_sees_an_allocation_that_is_gone():
    code = (
        "before = device.peak_memory_mb(cpu)\n"
        "x = torch.ones(50_000_000); del x\n"
        "print(device.peak_memory_mb(cpu) - before)"
    )
    assert in_new_process(code) == pytest.approx(200, rel=0.2)


@pytest.mark.skipif(not device.CLEAR_REFS.exists(), reason="only Linux can begin a new peak")
def test_the_peak_can_begin_anew():
    code = (
        "x = torch.ones(50_000_000); del x; high = device.peak_memory_mb(cpu)\n"
        "device.reset_peak_memory(cpu); print(high - device.peak_memory_mb(cpu))"
    )
    assert in_new_process(code) > 150


def test_there_is_a_peak_where_linux_tells_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in gVisor, whose status has no VmHWM."""
    told = device.peak_memory_mb(CPU)
    (tmp_path / "status").write_text("Name:\tpython\nVmSize:\t900000 kB\nVmRSS:\t400000 kB\n")
    monkeypatch.setattr(device, "PROCESS_STATUS", tmp_path / "status")
    assert device.peak_memory_mb(CPU) > told / 2


def test_a_big_parent_process_does_not_count():
    ballast = torch.ones(250_000_000)  # 1 GB; a child's ru_maxrss would begin there
    assert in_new_process("print(device.peak_memory_mb(cpu))") < 800
    assert len(ballast) == 250_000_000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_memory_is_the_allocators_peak():
    choice = device.choose("cuda")
    device.reset_peak_memory(choice.device)
    before = device.peak_memory_mb(choice.device)
    del_me = torch.ones(25_000_000, device=choice.device)
    del del_me
    device.now(choice.device)
    device.empty_cache(choice.device)
    assert device.peak_memory_mb(choice.device) == pytest.approx(before + 100, abs=5)


def test_waiting_and_releasing_do_nothing_on_a_cpu():
    device.now(CPU)
    device.empty_cache(CPU)

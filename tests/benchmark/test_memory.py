"""Each test starts a Python with torch and transformers, which takes seconds; so there are few of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kdsuite.benchmark import memory
from kdsuite.benchmark.memory import JOBS, MEMORY, Job, measure_memory
from kdsuite.benchmark.variants import Variant
from kdsuite.models.source import ModelSource

TIME = Path("/usr/bin/time")
SIZES = [(2, 40), (1, 10)]


def variant(folder: Path) -> Variant:
    return Variant(folder.name, ModelSource(folder.name, str(folder)), "sst2", "S1", "B0")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not TIME.exists(), reason="needs GNU time")
def test_the_peak_is_the_one_that_time_reports_for_a_process_with_this_variant_alone(models: Path):
    job = Job(variant(models / "teacher"), SIZES, 4, "cpu", "float32", 1)
    done = subprocess.run(
        [str(TIME), "-v", sys.executable, "-m", "kdsuite.benchmark.memory"],
        input=JOBS.dump_json([job]).decode(),
        capture_output=True,
        text=True,
        check=True,
    )
    reported = re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)
    assert reported is not None
    peak_mb = int(reported[1]) * 1024 / 1e6
    alone = MEMORY.validate_json(done.stdout)
    assert alone.peak_mb[0] == pytest.approx(peak_mb, rel=0.02)
    ballast = b"x" * 600_000_000  # what the calling process holds is not the variant's
    forked, missing = measure_memory([job, replace(job, variant=variant(models / "lost"))])
    del ballast
    assert forked.peak_mb[0] == pytest.approx(peak_mb, rel=0.1)
    assert forked.peak_mb[0] >= forked.peak_mb[1]
    assert missing.peak_mb == []
    assert "lost" in str(missing.reason)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_variant_that_the_system_kills_for_its_memory_leaves_a_reason(models: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_measure", lambda job: os.kill(os.getpid(), signal.SIGKILL))
    found = memory._measure_in_a_child(Job(variant(models / "teacher"), SIZES, 4, "cpu", "float32", 1))
    assert found.reason == "the measuring process ended with status -9"

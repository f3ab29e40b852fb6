"""Every benchmark program runs at tiny shapes and ends in a table; what it measures is asserted inside it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdsuite.models.offline import tiny_qwen2

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def quick(name: str, *options: str) -> str:
    command = [sys.executable, str(BENCHMARKS / name), "--quick", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kd_loss_finds_both_losses_equal() -> None:
    printed = quick("kd_loss.py")
    assert "equal to" in printed
    assert "| quick, whole sequences " in printed


def test_cache_io_reads_the_same_from_every_kind() -> None:
    printed = quick("cache_io.py")
    assert all(f"| {kind} " in printed for kind in ("kdsuite, float32", "dense bfloat16", "JSON top-64"))


def test_cache_io_says_what_the_others_take_against_ours(tmp_path: Path) -> None:
    quick("cache_io.py", "--findings", str(tmp_path / "found"))
    found = [json.loads(line) for line in (tmp_path / "found").read_text(encoding="utf-8").splitlines()]
    bytes_of = {f["against"]: f["median"] for f in found if f["figure"] == "bytes on disk"}
    assert bytes_of["dense bfloat16 / kdsuite, float32"] > 50
    assert len(found) == 6 and all(f["unit"] == "×" and f["at_least"] is None for f in found)


def test_growth_goes_through_every_step_at_every_size() -> None:
    printed = quick("growth.py")
    assert "evaluation ms" in printed and "evaluation MB (kept)" in printed
    assert printed.count("| 200 ") == printed.count("| 400 ") == 2


def test_report_builds_one_from_made_up_results() -> None:
    assert "| 200 " in quick("report.py")


def test_startup_times_help_and_status() -> None:
    printed = quick("startup.py")
    assert "| kdsuite --help |" in printed and "| kdsuite status |" in printed


@pytest.fixture
def models(tmp_path: Path, qwen_model, qwen_chat) -> tuple[str, str]:
    """Folders of two models with one tokenizer."""
    torch.manual_seed(3)
    for name, model in (
        ("teacher", qwen_model),
        ("student", tiny_qwen2(qwen_chat.tokenizer, width=16, layers=1, heads=2)),
    ):
        for part in (model, qwen_chat.tokenizer):
            part.save_pretrained(tmp_path / name)
    return str(tmp_path / "teacher"), str(tmp_path / "student")


def test_sparsity_never_adds_to_a_kl_and_loses_less_with_more_tokens(models, tmp_path: Path) -> None:
    teacher, student = models
    printed = quick("sparsity.py", "--teacher", teacher, "--student", student, "--output", str(tmp_path))
    assert "| squad " in printed and "| sst2 " in printed
    assert (tmp_path / "kd1_sparsity.png").stat().st_size > 10_000
    rows = list(csv.DictReader((tmp_path / "kd1_sparsity.csv").open(encoding="utf-8")))
    shares = [float(row["kl_share"]) for row in rows]
    assert len(shares) == 2 * 4 * 5
    for at in range(0, len(shares), 5):
        assert shares[at] > 0 and shares[at : at + 5] == sorted(shares[at : at + 5]) and shares[at + 4] < 1

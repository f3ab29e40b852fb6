"""Every benchmark program runs at tiny shapes and ends in a table; what it measures is asserted inside it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from kdsuite.models.offline import tiny_qwen2

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PEERS = ("TRL GKD", "Liger chunked JSD", "TRL chunked divergence")


def quick(name: str, *options: str) -> str:
    command = [sys.executable, str(BENCHMARKS / name), "--quick", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


WITHOUT_PEERS = """
import runpy, sys
sys.modules |= {"trl": None, "liger_kernel": None}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def without_peers(name: str, *options: str) -> str:
    """What it prints where nothing to compare with is installed."""
    program = str(BENCHMARKS / name)
    command = [sys.executable, "-c", WITHOUT_PEERS, program, "--quick", *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "trl is not installed" in done.stdout and "TRL" not in done.stdout
    return done.stdout


def found(path: Path) -> dict[tuple[str, str], float | None]:
    """The targets of a program's findings."""
    findings = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {(f["against"], f["figure"]): f["at_least"] for f in findings}


def test_kd_loss_finds_all_losses_equal_that_are_installed(tmp_path: Path) -> None:
    printed = quick("kd_loss.py", "--findings", str(tmp_path / "found"))
    assert "equal to within" in printed
    assert "| quick, whole sequences " in printed
    targets = found(tmp_path / "found")
    assert targets["whole sequences", "CPU time"] is None
    if find_spec("trl") and find_spec("liger_kernel"):
        assert "the whole vocabulary, too: TRL GKD" in printed
        assert [targets[peer, "CPU time"] for peer in PEERS] == [12, 12, 2.5]


def test_kd_loss_runs_without_peers() -> None:
    printed = without_peers("kd_loss.py")
    assert "liger_kernel is not installed" in printed and "Liger" not in printed
    assert "| quick, whole sequences " in printed


def test_losses_across_tokenizers_are_zero_for_equal_models(tmp_path: Path) -> None:
    printed = quick("cross_tokenizer.py", "--findings", str(tmp_path / "found"))
    assert "zero for two equal models" in printed
    assert "| byte_map " in printed and "| hybrid " in printed
    if find_spec("trl"):
        assert found(tmp_path / "found") == {
            ("TRL GOLD", "CPU time"): 10,
            ("TRL GOLD, answers only", "CPU time"): None,
            ("TRL GOLD hybrid", "CPU time"): 10,
            ("TRL GOLD hybrid, answers only", "CPU time"): None,
        }


def test_cross_tokenizer_runs_without_peers() -> None:
    assert "| hybrid " in without_peers("cross_tokenizer.py")


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


def test_trainers_runs_without_peers() -> None:
    printed = without_peers("trainers.py")
    assert "tiny student, batch 4: kdsuite " in printed and "kdsuite, teacher asked once" in printed


def test_costs_compares_methods_with_a_bare_loop(tmp_path: Path) -> None:
    printed = quick("costs.py", "--findings", str(tmp_path / "found"))
    assert all(f"batch 4: {side} " in printed for side in ("bare loop", "B0", "KD1", "KD3"))
    findings = map(json.loads, (tmp_path / "found").read_text(encoding="utf-8").splitlines())
    assert {(f["question"].partition(" ")[0], f["against"]): f["at_most"] for f in findings} == {
        ("B0", "bare loop"): 1.05,
        ("KD1", "B0"): 1.05,
        ("KD3", "B0"): 1.10,
    }


def test_limit_is_a_share_of_what_the_machine_multiplies(tmp_path: Path) -> None:
    quick("limit.py", "--findings", str(tmp_path / "found"))
    findings = [json.loads(line) for line in (tmp_path / "found").read_text(encoding="utf-8").splitlines()]
    assert [f["question"].partition(",")[0] for f in findings] == ["training", "caching"]
    assert all(f["median"] > 0 and f["unit"] == "%" for f in findings)


def test_answers_are_the_same_one_by_one_and_in_batches() -> None:
    assert "the same answers" in quick("answers.py")

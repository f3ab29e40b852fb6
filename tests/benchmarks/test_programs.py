"""Every benchmark program runs at tiny shapes and ends in a table; what it measures is asserted inside it.

In this process where that is possible: a fresh one imports for longer than it runs. What is compared with need not
be installed.
"""

from __future__ import annotations

import csv
import importlib
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from kdsuite.extras.offline.models import tiny_qwen2

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PEERS = ("TRL GKD", "Liger chunked JSD", "TRL chunked divergence")
PEERS_ARE_THERE = bool(find_spec("trl") and find_spec("liger_kernel"))
Quick = Callable[..., str]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Quick:
    """Run a program with some options; what it prints."""

    def run(name: str, *options: str) -> str:
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        monkeypatch.setattr(sys, "argv", [name, "--quick", *options])
        threads = torch.get_num_threads()
        try:
            runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
        finally:
            torch.set_num_threads(threads)
        return capsys.readouterr().out

    return run


@pytest.fixture
def without_peers(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> Quick:
    """The same where nothing to compare with is installed."""
    for peer in ("trl", "liger_kernel"):
        monkeypatch.setitem(sys.modules, peer, None)
    return quick


def found(path: Path) -> dict[tuple[str, str], float | None]:
    """The targets of a program's findings."""
    findings = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {(f["against"], f["figure"]): f["at_least"] for f in findings}


def test_kd_loss_finds_all_losses_equal_that_are_installed(quick: Quick, tmp_path: Path) -> None:
    printed = quick("kd_loss.py", "--findings", str(tmp_path / "found"))
    assert "equal to within" in printed
    assert "| quick, whole sequences " in printed
    targets = found(tmp_path / "found")
    assert targets["whole sequences", "CPU time"] is None
    if PEERS_ARE_THERE:
        assert "the whole vocabulary, too: TRL GKD" in printed
        assert [targets[peer, "CPU time"] for peer in PEERS] == [12, 12, 2.5]


@pytest.mark.skipif(not PEERS_ARE_THERE, reason="they are not there anyway")
@pytest.mark.parametrize("name", ["kd_loss.py", "cross_tokenizer.py"])
def test_loss_programs_run_without_peers(without_peers: Quick, name: str) -> None:
    printed = without_peers(name)
    assert "trl is not installed" in printed and "| TRL" not in printed


def test_losses_across_tokenizers_are_zero_for_equal_models(quick: Quick, tmp_path: Path) -> None:
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


def test_cache_io_reads_the_same_from_every_kind_and_says_what_they_take(quick: Quick, tmp_path: Path) -> None:
    printed = quick("cache_io.py", "--findings", str(tmp_path / "found"))
    assert all(f"| {kind} " in printed for kind in ("kdsuite, float32", "dense bfloat16", "JSON top-64"))
    found = [json.loads(line) for line in (tmp_path / "found").read_text(encoding="utf-8").splitlines()]
    bytes_of = {f["against"]: f["median"] for f in found if f["figure"] == "bytes on disk"}
    assert bytes_of["dense bfloat16 / kdsuite, float32"] > 50
    assert len(found) == 6 and all(f["unit"] == "×" and f["at_least"] is None for f in found)


@pytest.mark.slow
def test_growth_goes_through_every_step_at_every_size() -> None:
    command = [sys.executable, str(BENCHMARKS / "growth.py"), "--quick"]  # it forks, so in a process of its own
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    assert "evaluation ms" in printed and "evaluation MB (kept)" in printed
    assert printed.count("| 200 ") == printed.count("| 400 ") == 2


def test_report_builds_one_from_made_up_results(quick: Quick) -> None:
    assert "| 200 " in quick("report.py")


def test_startup_times_help_and_status(quick: Quick) -> None:
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


def test_sparsity_never_adds_to_a_kl_and_loses_less_with_more_tokens(quick: Quick, models, tmp_path: Path) -> None:
    teacher, student = models
    printed = quick("sparsity.py", "--teacher", teacher, "--student", student, "--output", str(tmp_path))
    assert "| squad " in printed and "| sst2 " in printed
    assert (tmp_path / "kd1_sparsity.png").stat().st_size > 10_000
    rows = list(csv.DictReader((tmp_path / "kd1_sparsity.csv").open(encoding="utf-8")))
    shares = [float(row["kl_share"]) for row in rows]
    assert len(shares) == 2 * 4 * 5
    for at in range(0, len(shares), 5):
        assert shares[at] > 0 and shares[at : at + 5] == sorted(shares[at : at + 5]) and shares[at + 4] < 1


def test_trainers_runs_without_peers(without_peers: Quick) -> None:
    printed = without_peers("trainers.py")
    assert "tiny student, batch 4: kdsuite " in printed and "kdsuite, teacher asked once" in printed
    assert "on-policy, SQuAD, tiny student of a tiny teacher, batch 4: kdsuite" in printed


@pytest.mark.skipif(not PEERS_ARE_THERE, reason="there is nothing to compare with")
def test_trainers_finds_losses_gradients_and_samples_equal(quick: Quick, tmp_path: Path) -> None:
    assert "losses and gradients: B0 and SFT equal to " in quick("trainers.py", "--findings", str(tmp_path / "found"))
    findings = [json.loads(line) for line in (tmp_path / "found").read_text(encoding="utf-8").splitlines()]
    live = [f for f in findings if f["question"].startswith("GKD, on-policy") and f["figure"] == "CPU time"]
    assert [f["against"] for f in live] == ["TRL GKDTrainer", "TRL DistillationTrainer"]
    assert all(f["median"] > 0 and f["at_least"] is None for f in live)


def test_costs_compares_methods_with_a_bare_loop(quick: Quick, tmp_path: Path) -> None:
    printed = quick("costs.py", "--findings", str(tmp_path / "found"))
    assert all(f"batch 4: {side} " in printed for side in ("bare loop", "B0", "KD1", "KD3"))
    findings = map(json.loads, (tmp_path / "found").read_text(encoding="utf-8").splitlines())
    assert {(f["question"].partition(" ")[0], f["against"]): f["at_most"] for f in findings} == {
        ("B0", "bare loop"): 1.05,
        ("KD1", "B0"): 1.05,
        ("KD3", "B0"): 1.10,
    }


def test_limit_is_a_share_of_what_the_machine_multiplies(quick: Quick, tmp_path: Path) -> None:
    quick("limit.py", "--findings", str(tmp_path / "found"))
    findings = [json.loads(line) for line in (tmp_path / "found").read_text(encoding="utf-8").splitlines()]
    assert [f["question"].partition(",")[0] for f in findings] == ["training", "caching"]
    assert all(f["median"] > 0 and f["unit"] == "%" for f in findings)


def test_answers_are_the_same_one_by_one_and_in_batches(quick: Quick) -> None:
    assert "the same answers" in quick("answers.py")


@pytest.mark.slow
def test_answers_from_a_url_are_those_that_plain_requests_get(quick: Quick) -> None:
    assert "the same answers" in quick("served.py")


@pytest.mark.slow
def test_drawn_entries_cost_a_student_less_than_truncation_where_the_tail_is_large(quick: Quick) -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in quick("drawn.py").splitlines()[2:]]
    header, _, small, large = rows
    assert header == ["tail beyond 8", "whole", "truncated", "topk_tail", "topk_sampled", "sampled", "best of 8"]
    assert small[0] == "1%" and large[0] == "70%"
    whole, truncated, tail, half, sampled = map(float, large[1:6])
    assert whole < sampled < half < tail < truncated and large[6] == "sampled"


@pytest.mark.slow
def test_placing_asserts_that_what_is_done_is_not_done_again_and_is_a_table(quick: Quick) -> None:
    assert "| serial " in quick("placing.py")


def test_adapters_costs_are_a_ratio_to_pefts_with_and_without_dropout(quick: Quick) -> None:
    printed = quick("adapters.py")
    assert all(f"| B0 with adapters, SST-2, tiny, dropout {share}," in printed for share in ("0", "0.05"))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_compiled_layers_give_the_losses_of_eager_ones(quick: Quick) -> None:
    printed = quick("compiled.py")
    assert "| compiled " in printed and "eager / compiled: " in printed


@pytest.mark.slow
def test_forecast_is_held_against_what_the_tiny_model_takes(quick: Quick, tmp_path: Path) -> None:
    quick("forecast.py", "--findings", str(tmp_path / "found"))
    findings = [json.loads(line) for line in (tmp_path / "found").read_text(encoding="utf-8").splitlines()]
    stages = [f["question"] for f in findings if f["against"] == "squad"]
    assert stages == [f"forecast of {stage}, tiny" for stage in ("training", "evaluation", "caching")]


@pytest.mark.slow
def test_the_summary_is_a_table_and_a_file_of_what_programs_found(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS), "--quick", "--only", "startup", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "summary.csv").open(encoding="utf-8")))
    assert [row["question"] for row in rows] == ["kdsuite --help", "kdsuite status"]
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") in done.stdout


def test_gpu_goes_through_all_sections_at_tiny_shapes(quick: Quick, tmp_path: Path) -> None:
    assert "failed: none" in quick("gpu.py", "--findings", str(tmp_path / "found"))
    findings = [json.loads(line) for line in (tmp_path / "found").read_text(encoding="utf-8").splitlines()]
    assert all(f["median"] > 0 for f in findings)
    kinds = {(f["question"].partition(",")[0], f["unit"]) for f in findings}
    learned = {(name, unit) for name in ("B0", "KD1", "caching") for unit in ("tokens/s", "%", "MB")}
    assert kinds >= learned | {("GKD", "tokens/s"), ("GKD", "MB"), ("answers", "answers/s"), ("matmul peak", "TFLOP/s")}
    assert kinds >= {("KD1 step", "×"), ("float32", "×")}


def test_gpu_tells_what_fails_and_what_the_time_does_not_hold_and_goes_on(monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = importlib.import_module("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="^no CUDA device here; --quick"):
            gpu.bench_of(quick=False, repeats=1)
    bench = gpu.bench_of(quick=True, repeats=1)
    broken = replace(bench, cases=[replace(bench.cases[0], batch=0)])
    sections = {"training": (60, lambda: gpu.learning(broken)), "TRL": (600, list), "answers": (60, lambda: [1])}
    assert gpu.each(sections, lambda: 100.0) == ([1], ["training"])
    printed = capsys.readouterr().out
    assert "training FAILED: " in printed and "TRL: left out, it may take 600 s and 100 are left" in printed

"""The commands: exit codes, one clear line for what goes wrong, and a quick start."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdsuite import __version__, cli, pipeline
from kdsuite.config import CONFIGS
from kdsuite.config.plugins import METHODS, plugins
from kdsuite.errors import DataError
from kdsuite.pipeline import Outcome
from kdsuite.store.files import atomic_write_json
from kdsuite.store.records import Registry

YAML = """
seeds: [42, 123]
tasks: {sst2: {}, squad: {}}
models: {teacher: {name: offline-teacher}, students: {S1: {name: offline-student}}}
"""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(YAML)


def pipeline_that(monkeypatch: pytest.MonkeyPatch, result: Outcome | BaseException) -> list[dict]:
    """Put a stage function in place that returns or raises `result`; what it was called with is returned."""
    calls: list[dict] = []

    def run(settings: object, results: Path, stages: tuple[str, ...], **options: object) -> Outcome:
        calls.append({"results": results, "stages": stages} | options)
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(pipeline, "run", run)
    return calls


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["run", "-h"], ["status", "--help"], [], ["--version"]])
def test_help_and_version_are_no_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert ("kdsuite" in out, err) == (True, "")
    assert arguments != ["--version"] or out == f"kdsuite {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "too"), [(["--help"], {"pydantic"}), (["status", "--results", "."], {"rich.progress"})]
)
def test_help_and_status_do_not_wait_for_the_heavy_libraries(arguments: list[str], too: set[str]):
    atomic_write_json(Path("raw_runs/plan.json"), {"runs": []})
    heavy = {"torch", "transformers", "pandas", "pyarrow", "matplotlib", "numpy", "scipy"} | too
    code = f"import sys; from kdsuite import cli\nprint(cli.main({arguments}), sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trian"], "Did you mean 'train'"),
        (["run", "--mthod", "B0"], "--method"),
        (["run", "--set"], "--set"),
        (["run", "surplus"], "surplus"),
        (["plan", "--config", "absent.yaml"], "absent.yaml"),
        (["plan", "--config", "c.yaml", "--task", "sst"], "did you mean 'sst2'"),
        (["plan", "--config", "c.yaml", "--method", "KD11"], "did you mean 'KD1'"),
        (["plan", "--config", "c.yaml", "--mode", "fast"], "no modes"),
        (["plan", "--config", "c.yaml", "--set", "sedes=[1]"], "seeds"),
        (["plan", "--config", "c.yaml", "--set", "tasks.sst2.train_sise=1"], "train_size"),
        (["run", "--config", "c.yaml", "--task", "sst"], "did you mean 'sst2'"),
        (["run", "--config", "c.yaml", "--results", "c.yaml"], "'--results': dir 'c.yaml' is a file"),
        (["status", "--results", "c.yaml"], "'--results': dir 'c.yaml' is a file"),
        (["cache", "--inspect", "--results", "c.yaml"], "'--results': dir 'c.yaml' is a file"),
        (["export", "B0_sst2_S1_seed42", "out", "--results", "c.yaml"], "'--results': dir 'c.yaml' is a file"),
        (["study", "verify", "c.yaml"], "'DIR': dir 'c.yaml' is a file"),
        (["report", "--compare", "c.yaml", "c.yaml"], "'--compare': dir 'c.yaml' is a file"),
        (["task", "\U0001f600.yaml"], "file \U0001f600.yaml cannot be read (No such file"),
        (["export", "B0_sst2_S1_seed42"], "DIR"),
        (["export", "B0_sst2_S1_seed42", "out"], "no run 'B0_sst2_S1_seed42' in results"),
        (["export", "../B0", "out"], "not a run id"),
        (["export", "B0_sst2_S1_seed42", "out", "--quantize", "int3"], "'int8', 'int4'"),
        (["export", "B0_sst2_S1_seed42", "out", "--format", "onnx"], "'gguf', 'gguf-f32'"),
        (["report", "--compare", "one"], "2 arguments"),
        (["report", "--compare", "one", "two"], "one: no results here"),
        (["benchmark", "--models"], "--models"),
    ],
)
def test_usage_and_settings_errors_are_one_line_with_a_hint_and_exit_2(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert hint in err


def test_plan_counts_the_runs_and_says_what_they_cost(capsys: pytest.CaptureFixture[str]):
    narrow = ["--task", "sst2", "--method", "B0", "--method", "KD2", "--set", "threads=1"]
    assert cli.main(["plan", "--config", "c.yaml", *narrow]) == 0
    out = capsys.readouterr().out
    assert "squad" not in out and "KD1" not in out
    assert re.search(r"sst2 +KD2 +S1 +42, 123 +2 ", out)
    for heading in ("device cpu", "Once, with the teacher", "Disk", "Peak memory", "Basis", "6 runs: about"):
        assert heading in out


def test_plan_as_json_names_every_run(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["plan", "--config", "c.yaml", "--task", "sst2", "--set", "threads=1", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert {"B0_sst2_S1_seed42", "teacher_sst2"} <= {id for row in tree["runs"] for id in row["run_ids"]}
    assert tree["seconds"] > 0 and tree["machine"]["memory_bytes"] > 0


@pytest.mark.slow
def test_plan_of_the_thesis_needs_neither_network_nor_the_libraries_that_take_seconds_to_import():
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('a plan needs no network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from kdsuite import cli\n"
        f"code = cli.main(['plan', '--config', {str(CONFIGS / 'experiment.yaml')!r}, '--mode', 'full'])\n"
        "heavy = {'transformers', 'datasets', 'peft', 'pandas', 'matplotlib', 'huggingface_hub'}\n"
        "print(code, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "118 runs: about" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 []"


def test_options_reach_the_pipeline_and_the_summary_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    calls = pipeline_that(monkeypatch, Outcome(completed=3, skipped=2, failed=[], summary_lines=["best: KD1"]))
    assert cli.main(["run", "--config", "c.yaml", "--task", "sst2", "--method", "KD1", "--results", "r"]) == 0
    (call,) = calls
    assert (call["results"], call["stages"]) == (Path("r"), pipeline.STAGES)
    assert (call["tasks"], call["methods"]) == (["sst2"], ["KD1"])
    out = capsys.readouterr().out
    assert out == "3 completed, 2 done before, 0 failed\nbest: KD1\nresults: r\n"


def test_models_of_the_command_line_reach_the_benchmark(monkeypatch: pytest.MonkeyPatch):
    calls = pipeline_that(monkeypatch, Outcome())
    assert cli.main(["benchmark", "--config", "c.yaml", "--models", "org/one", "--models", "./two"]) == 0
    assert (calls[0]["stages"], calls[0]["models"]) == (("benchmark",), ["org/one", "./two"])


def test_two_results_folders_are_printed_side_by_side(capsys: pytest.CaptureFixture[str]):
    for name, accuracy in (("a", 50.0), ("b", 100.0)):
        _one_run(Path(name), accuracy)
    assert cli.main(["report", "--config", "c.yaml", "--compare", "a", "b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["A: a", "B: b"]
    assert any("S1 zero-shot" in line and "+50.0" in line for line in lines)
    assert not Path("results").exists()


def _one_run(results: Path, accuracy: float) -> None:
    """A results folder with the untrained student's answers to two examples."""
    registry, run_id = Registry(results), "zero-shot_sst2_S1"
    spec = {"method": "zero-shot", "task": "sst2", "student": "S1", "seed": None, "point": {}}
    folder = registry.start(run_id, "f", spec)
    right = (1.0, 2 * accuracy / 100 - 1)
    rows = [{"id": str(i), "prediction": "positive", "references": ["positive"]} for i in (0, 1)]
    lines = [json.dumps(r | {"scores": {"accuracy": s}}) for r, s in zip(rows, right, strict=True)]
    (folder / "predictions.jsonl").write_text("\n".join(lines))
    registry.complete(run_id, metrics={"validation": {"accuracy": accuracy, "f1": accuracy}})
    about = {"title": "SST-2", "metric": "accuracy", "secondary_metric": "f1", "labels": None, "licence": None}
    runs = [{"run_id": run_id, "fingerprint": "f", "spec": spec}]
    atomic_write_json(results / "raw_runs/plan.json", {"runs": runs, "tasks": {"sst2": about}, "methods": {}})


@pytest.mark.parametrize("stage", pipeline.STAGES)
def test_each_stage_is_a_command(stage: str, monkeypatch: pytest.MonkeyPatch):
    calls = pipeline_that(monkeypatch, Outcome(completed=0, skipped=0, failed=[], summary_lines=[]))
    assert cli.main([stage, "--config", "c.yaml"]) == 0
    assert calls[0]["stages"] == (stage,)


def test_a_failed_run_is_named_and_the_exit_code_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    failed = [("KD1_sst2_S1_T4_a0.5_seed42", "loss is nan at step 3")]
    pipeline_that(monkeypatch, Outcome(completed=3, skipped=0, failed=failed, summary_lines=[]))
    assert cli.main(["run", "--config", "c.yaml"]) == 1
    assert capsys.readouterr().err == "failed: KD1_sst2_S1_T4_a0.5_seed42: loss is nan at step 3\n"


def test_an_expected_error_is_its_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pipeline_that(monkeypatch, DataError("train.tsv: no column 'label'"))
    assert cli.main(["run", "--config", "c.yaml"]) == 2
    assert capsys.readouterr().err == "error: train.tsv: no column 'label'\n"


def test_an_unexpected_error_is_one_line_and_its_traceback_a_file_without_the_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    pipeline_that(monkeypatch, ZeroDivisionError("division of hf_planted\nby zero"))
    assert cli.main(["run", "--config", "c.yaml", "--results", "r"]) == 1
    err = capsys.readouterr().err
    log = Path("r/error.log")
    assert err == f"error: unexpected ZeroDivisionError: division of <HF_TOKEN>; the traceback is in {log}\n"
    assert "Traceback" in log.read_text()
    assert "by zero" in log.read_text()
    assert "hf_planted" not in log.read_text()


def test_an_unexpected_error_of_init_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("kdsuite.extras.starter.write", lambda *_: 1 / 0)
    assert cli.main(["init", "--data", "none.csv"]) == 1
    assert capsys.readouterr().err.startswith("error: unexpected ZeroDivisionError")


@pytest.mark.parametrize("command", ["plan", "doctor", "train"])
def test_a_method_of_another_package_that_raises_is_one_line_in_every_command(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(type(plugins(METHODS)["B0"]), "points", lambda self, settings: [{"epsilon": "high"}])
    assert cli.main([command, "--config", "c.yaml"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: unexpected ValueError") and err.endswith("error.log\n")


@pytest.mark.parametrize("command", ["plan", "doctor"])
def test_what_a_method_needs_and_no_teacher_has_is_told_at_plan_time(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(type(plugins(METHODS)["KD3"]), "needs", frozenset({"telepathy"}))
    assert cli.main([command, "--config", "c.yaml"]) == 2
    assert "KD3 on sst2 needs the teacher's telepathy" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on_and_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pipeline_that(monkeypatch, KeyboardInterrupt())
    assert cli.main(["run", "--config", "c.yaml"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on where it stopped\n"


def test_status_of_an_empty_folder_says_how_to_begin(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["status", "--results", "nowhere"]) == 1
    assert "start with `kdsuite run`" in capsys.readouterr().err

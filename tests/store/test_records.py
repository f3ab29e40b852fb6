"""Run records: what is completed is skipped, what failed or died is done again, nothing is overwritten."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from kdsuite.errors import KdsuiteError
from kdsuite.store import records
from kdsuite.store.records import STALE, Registry

RUN, SPEC = "B0_sst2_S1_seed42", {"method": "B0", "task": "sst2", "student": "S1", "seed": 42}
ONE, OTHER = "1" * 64, "2" * 64


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


def test_a_run_goes_from_pending_over_running_to_completed(registry: Registry):
    assert registry.state(RUN, ONE) == "pending"
    folder = registry.start(RUN, ONE, SPEC, environment={"device": "cpu"})
    assert registry.state(RUN, ONE) == "running"
    registry.complete(RUN, metrics={"validation": {"accuracy": 90.0}})
    assert registry.state(RUN, ONE) == "completed"
    record = json.loads((folder / "run.json").read_text())
    assert record["spec"] == SPEC
    assert record["environment"] == {"device": "cpu"}
    assert record["metrics"] == {"validation": {"accuracy": 90.0}}
    assert (record["status"], record["reason"]) == ("completed", None)
    assert record["started"] <= record["finished"]
    assert "process" not in record


def test_a_failure_keeps_its_reason_on_one_line(registry: Registry):
    registry.start(RUN, ONE, SPEC)
    registry.fail(RUN, "loss is nan\n at step 3")
    assert registry.state(RUN, ONE) == "failed"
    assert registry.records()[0]["reason"] == "loss is nan at step 3"


def test_metrics_that_are_not_finite_cannot_be_recorded_as_completed(registry: Registry):
    registry.start(RUN, ONE, SPEC)
    with pytest.raises(ValueError, match="not a finite number"):
        registry.complete(RUN, metrics={"dev": {"accuracy": float("nan")}})
    assert registry.state(RUN, ONE) == "running"


def test_changed_settings_make_a_new_run_and_keep_the_old_record(registry: Registry):
    folder = registry.start(RUN, ONE, SPEC)
    (folder / "predictions.jsonl").write_text("old")
    registry.complete(RUN)
    assert registry.state(RUN, OTHER) == "pending"
    registry.start(RUN, OTHER, SPEC)
    kept = folder.with_name(f"{RUN}--11111111")
    assert (kept / "predictions.jsonl").read_text() == "old"
    assert json.loads((kept / "run.json").read_text())["run_id"] == RUN
    assert not (folder / "predictions.jsonl").exists()
    assert [r["fingerprint"] for r in registry.records()] == [OTHER]


def test_settings_that_come_and_go_never_overwrite_a_kept_record(registry: Registry):
    for fingerprint in (ONE, OTHER, ONE, OTHER):
        registry.start(RUN, fingerprint, SPEC)
        registry.complete(RUN)
    names = sorted(p.name for p in registry.layout.runs.iterdir())
    assert names == [RUN, f"{RUN}--11111111", f"{RUN}--11111111-2", f"{RUN}--22222222"]


def test_a_second_attempt_starts_from_checkpoints_only(registry: Registry):
    folder = registry.start(RUN, ONE, SPEC)
    (folder / "history.csv").write_text("half")
    (folder / "cache").mkdir()
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "state").write_text("kept")
    registry.fail(RUN, "out of memory")
    registry.start(RUN, ONE, SPEC)
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-10", "run.json"]
    assert (folder / "checkpoint-10" / "state").read_text() == "kept"


@pytest.mark.parametrize("content", [b'{"run_id": "B0', b"", b"[]", b'{"run_id": "other", "status": "completed"}'])
def test_a_corrupt_record_is_set_aside_and_the_run_done_again(tmp_path: Path, content: bytes):
    said: list[str] = []
    registry = Registry(tmp_path, said.append)
    for number in (1, 2):
        folder = registry.start(RUN, ONE, SPEC)
        registry.complete(RUN)
        (folder / "run.json").write_bytes(content)
        assert registry.state(RUN, ONE) == "pending"
        assert registry.state(RUN, ONE) == "pending"
        assert (folder / f"run.json.corrupt-{number}").read_bytes() == content
        assert len(said) == number
        assert f"set aside as run.json.corrupt-{number}" in said[-1]


def test_a_run_of_a_killed_process_counts_as_interrupted(tmp_path: Path, registry: Registry):
    code = (
        "import os, sys; from pathlib import Path; from kdsuite.store.records import Registry\n"
        "r = Registry(Path(sys.argv[1])); r.start(sys.argv[2], sys.argv[3], {})\n"
        "print(r.state(sys.argv[2], sys.argv[3]), flush=True); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), RUN, ONE]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "running\n"
    assert registry.state(RUN, ONE) == "interrupted"
    assert registry.records()[0]["status"] == "interrupted"


def test_a_living_process_with_a_dead_ones_number_is_not_mistaken_for_it(registry: Registry):
    mine = psutil.Process()
    for since, state in ((mine.create_time(), "running"), (mine.create_time() - 1000, "interrupted")):
        process = {"pid": mine.pid, "host": socket.gethostname(), "since": since}
        registry.start(RUN, ONE, SPEC, process=process)
        assert registry.state(RUN, ONE) == state


def test_another_hosts_run_is_left_alone_until_nothing_was_written_for_long(registry: Registry):
    folder = registry.start(RUN, ONE, SPEC, process={"pid": 1, "host": "another-host", "since": 0.0})
    assert registry.state(RUN, ONE) == "running"
    record = folder / "run.json"
    long_ago = record.stat().st_mtime - STALE - 1
    os.utime(record, (long_ago, long_ago))
    assert registry.state(RUN, ONE) == "interrupted"


def test_every_state_is_counted(registry: Registry):
    for run_id in ("a", "b", "c", "d"):
        registry.start(run_id, ONE, SPEC)
    registry.complete("a")
    registry.fail("b", "why")
    registry.interrupt("c")
    expected = [(run_id, ONE) for run_id in "abcde"]
    assert registry.counts(expected) == dict.fromkeys(("completed", "running", "interrupted", "failed", "pending"), 1)


def test_a_run_that_was_never_started_cannot_be_finished(registry: Registry):
    with pytest.raises(KdsuiteError, match="never started"):
        registry.complete(RUN)


@pytest.mark.parametrize("run_id", ["", ".", "..", "../x", "a/b", "/etc", "a\\b", ".hidden"])
def test_a_run_id_cannot_leave_the_results_folder(registry: Registry, run_id: str):
    with pytest.raises(KdsuiteError, match="is not a run id"):
        registry.start(run_id, ONE, SPEC)


def test_a_run_of_another_host_is_judged_by_what_is_left_of_it(registry: Registry):
    folder = registry.start(RUN, ONE, SPEC, process={"pid": 1, "host": "another-host", "since": 0.0})
    (folder / ".tmp-12-0a1b2c3d-run.json").symlink_to("gone")  # listed, and gone when it is looked at
    (folder / "checkpoint-10").symlink_to("gone")
    assert registry.state(RUN, ONE) == "running"
    record = registry.read(RUN) or {}
    folder.rename(folder.with_name("elsewhere"))  # it began anew, with other settings
    assert registry._status(record) == "interrupted"


def test_a_corrupt_record_that_another_process_set_aside_first_is_gone(registry: Registry, monkeypatch):
    path = registry.start(RUN, ONE, SPEC) / "run.json"
    path.write_text("{")

    def first(problem: str) -> dict[str, Any]:
        path.unlink(missing_ok=True)
        raise ValueError(problem)

    monkeypatch.setattr(records, "read_json", first)
    assert registry.read(RUN) is None

"""A long task's teacher is asked in parts, by whoever has time: the same files as by one, nothing is asked twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kdsuite import pipeline
from kdsuite.config import Settings, changed
from kdsuite.errors import RunError
from kdsuite.executors.processes import processes
from kdsuite.jobs import asking
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.job import Job, do
from kdsuite.plan import RunSpec
from kdsuite.runtime import device
from kdsuite.runtime.progress import Progress
from kdsuite.teacher.local import LocalTeacher

CLOCKED = "seconds.json"


@pytest.fixture(params=["labels", "answers"])
def settings(request: pytest.FixtureRequest, one_task: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two dozen examples in parts of ten, for KD1, KD2 and KD3."""
    monkeypatch.setattr("kdsuite.teacher.shards.SHARD", 10)
    sizes = one_task.tasks["mine"].model_dump(include={"train_size", "dev_size", "validation_size", "training"})
    preset = {"labels": "sst2", "answers": "squad"}[request.param]
    task = {"preset": preset, "max_new_tokens": 4, "quality_floor": 0, **sizes}
    return changed(one_task, {"methods": ["B0", "KD1", "KD2", "KD3"], "tasks": {"mine": task}})


def cached(results: Path) -> dict[str, bytes]:
    [folder] = (results / "teacher_cache" / "mine").iterdir()
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != CLOCKED}


def cache(settings: Settings, results: Path, **options: Any) -> pipeline.Outcome:
    return pipeline.run(settings, results, ["prepare", "cache"], progress=Progress.silent(), **options)


def bench_in(results: Path, settings: Settings) -> Bench:
    choice = device.choose(settings.device, settings.dtype, settings.threads)
    return Bench(settings, results, choice, Progress.silent())


def test_parts_leave_what_one_process_does(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = cache(settings, tmp_path / "parts")
    assert (outcome.completed, outcome.failed) == (1, [])
    monkeypatch.setattr(pipeline, "parts_of", lambda bench, name: 0)
    assert cache(settings, tmp_path / "whole").completed == 1
    assert cached(tmp_path / "parts") == cached(tmp_path / "whole")
    assert len([name for name in cached(tmp_path / "parts") if name.startswith("part-")]) == 3


def test_two_processes_ask_for_each_part_once_and_the_tasks_own_job_for_nothing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()
    for what in ("outputs", "score", "answers"):
        plain = getattr(LocalTeacher, what)

        def counting(self: LocalTeacher, examples: Any, what: str = what, plain: Any = plain) -> Any:
            asked.update(f"{'answers' if what == 'answers' else 'outputs'} {e.id}" for e in examples)
            return plain(self, examples)

        monkeypatch.setattr(LocalTeacher, what, counting)
    cache(changed(settings, {"methods": ["B0"]}), tmp_path)  # the data
    first, second = bench_in(tmp_path, settings), bench_in(tmp_path, settings)
    jobs = [Job(settings, tmp_path, RunSpec("teacher", "mine"), "teach", part) for part in (2, 0, 1)]
    for job, bench in zip(jobs, (first, second, first), strict=True):
        do(job, bench)
    free = not asking.task(first, "mine").labels
    assert set(asked.values()) == {1}
    assert len(asked) == 24 * (1 + free)
    do(jobs[0], second)  # once more
    do(Job(settings, tmp_path, RunSpec("teacher", "mine"), "teach"), second)
    assert set(asked.values()) == {1}
    assert not [name for name in cached(tmp_path) if name.startswith("answers-")]
    do(jobs[1], bench_in(tmp_path, settings))  # when all is there
    assert set(asked.values()) == {1}


def test_a_part_that_fails_is_the_tasks_failure_told_once(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(bench: Bench, name: str, number: int) -> None:
        if number:
            raise RunError("the teacher's topk_logprobs are not finite")

    monkeypatch.setattr("kdsuite.jobs.job.build_part", broken)
    outcome = cache(settings, tmp_path)
    assert outcome.failed == [("teacher of mine", "the teacher's topk_logprobs are not finite")]
    assert outcome.completed == 0


def test_a_short_task_a_server_and_inputs_without_targets_are_one_job(
    settings: Settings, one_task: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache(changed(settings, {"methods": ["B0"]}), tmp_path)
    bench = bench_in(tmp_path, settings)
    assert asking.parts_of(bench, "mine") == 3
    monkeypatch.setattr("kdsuite.teacher.shards.SHARD", 24)
    assert asking.parts_of(bench, "mine") == 0
    monkeypatch.setattr("kdsuite.teacher.shards.SHARD", 10)
    served = {"url": "http://localhost:1/v1", "model": "m", "tokenizer": one_task.models.teacher.name}
    for change in ({"models.teacher": served}, {"tasks.mine.unlabeled": "more.jsonl"}):
        assert asking.parts_of(bench_in(tmp_path, changed(settings, change)), "mine") == 0


@pytest.mark.slow
def test_worker_processes_share_a_task(one_task: Settings, tmp_path: Path) -> None:
    settings = changed(one_task, {"methods": ["B0", "KD1", "KD2"], "tasks.mine.train_size": 1030})
    cache(settings, tmp_path / "one")
    cache(settings, tmp_path / "two", executor=lambda bench: processes(bench, 2))
    assert cached(tmp_path / "one") == cached(tmp_path / "two")
    assert {"part-00000.safetensors", "part-00001.safetensors"} < set(cached(tmp_path / "two"))

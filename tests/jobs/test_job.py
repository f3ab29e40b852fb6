"""A job is plain data: any process does it from settings, results folder and spec alone."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from kdsuite.config import Settings
from kdsuite.errors import RunError
from kdsuite.jobs.job import Job, do
from kdsuite.plan import RunSpec, expand
from kdsuite.store.records import Registry

ELSEWHERE = "import pickle, sys; from kdsuite.jobs.job import do; print(do(pickle.load(sys.stdin.buffer)).line)"


def elsewhere(job: Job) -> str:
    """What a new process says that has nothing but the pickled job."""
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], input=pickle.dumps(job), capture_output=True, check=True, env=os.environ
    )
    return done.stdout.decode()


def test_a_job_comes_back_from_a_pickle_as_it_was(one_task: Settings, tmp_path: Path) -> None:
    for spec in expand(one_task):
        job = Job(one_task, tmp_path, spec)
        assert pickle.loads(pickle.dumps(job)) == job


@pytest.mark.slow
def test_jobs_are_done_by_other_processes_in_the_order_of_their_needs(one_task: Settings, tmp_path: Path) -> None:
    [kd1] = [spec for spec in expand(one_task) if spec.method == "KD1"]
    run = Job(one_task, tmp_path, kd1)
    with pytest.raises(RunError, match="the teacher outputs of mine are not complete; run `kdsuite cache`"):
        do(run)
    teaching = Job(one_task, tmp_path, RunSpec("teacher", "mine"), "teach")
    assert elsewhere(teaching).startswith("teacher_mine: accuracy")
    line = elsewhere(run)
    assert line.startswith("KD1_mine_little_T2_a0.5_seed42: accuracy")
    assert do(run).skipped
    record = Registry(tmp_path).read(kd1.run_id)
    assert record is not None and record["spec"] == kd1.as_dict()


def test_the_teachers_job_and_its_run_have_locks_of_their_own(one_task: Settings, tmp_path: Path) -> None:
    spec = RunSpec("teacher", "mine")
    names = {Job(one_task, tmp_path, spec, "teach").name, Job(one_task, tmp_path, spec).name}
    assert names == {"teacher-mine", "teacher_mine"}

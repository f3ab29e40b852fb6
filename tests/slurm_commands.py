#!/usr/bin/env python3
"""sbatch, srun, sacct, scancel and scontrol of a cluster that is this machine: scripts are really run, arrays too.

Linked under these names into a folder of PATH; FAKE_SLURM names a folder of files <number>_<task>.{pid,state,again}.
At most SLOTS tasks run at once. It has no partitions, limits and accounting, and knows the options that are given.
"""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

HOME = Path(os.environ.get("FAKE_SLURM", "."))
SLOTS = 2
SIGNALS = {"TERM": signal.SIGTERM, "USR2": signal.SIGUSR2}


def sbatch(script: str) -> None:
    """Begin every task of a script's array and print the number; what was asked for is kept."""
    text = Path(script).read_text()
    if os.environ.get("SBATCH_PARTITION") == "none":
        sys.exit("sbatch: error: invalid partition specified: none")
    number = str(1 + len(list(HOME.glob("*.script"))))
    (HOME / f"{number}.script").write_text(text)
    array = re.search(r"--array=0-(\d+)", text)
    for task in range(int(array[1]) + 1) if array else [None]:
        name = number if task is None else f"{number}_{task}"
        (HOME / f"{name}.state").write_text("PENDING")
        command = [sys.executable, __file__, "task", name]
        subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"Submitted batch job {number}")


def task(name: str) -> None:
    """Run a task when there is a slot, and again as long as it was put into the queue again."""
    number, _, index = name.partition("_")
    about = {"SLURM_JOB_ID": str(1000 * int(number) + int(index)) if index else number, "SLURM_JOB_NUM_NODES": "1"}
    about |= {"SLURM_NTASKS": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    about |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": index} if index else {}
    state, again, text = HOME / f"{name}.state", HOME / f"{name}.again", (HOME / f"{number}.script").read_text()
    while state.read_text() == "PENDING":
        with _slot() as free:
            if not free:
                time.sleep(0.1)
                continue
            state.write_text("RUNNING")
            with subprocess.Popen(["bash", "-c", text], env=os.environ | about) as process:
                (HOME / f"{name}.pid").write_text(str(process.pid))
            ended = "COMPLETED" if process.returncode == 0 else "FAILED"
            if state.read_text() == "RUNNING":
                state.write_text("PENDING" if again.exists() else ended)
            if again.exists():
                again.rename(HOME / f"{name}.requeued")


class _slot:
    """Whether one was free, which is held while the block lasts."""

    def __enter__(self) -> bool:
        for n in range(SLOTS):
            self.stream = (HOME / f"slot-{n}").open("w")
            with suppress(BlockingIOError):
                fcntl.flock(self.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            self.stream.close()
        return False

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def srun(*arguments: str) -> None:
    """Become the command, with its output where it is to go."""
    options, words = {}, list(arguments)
    while words[0].startswith("--"):
        option = words.pop(0)
        if option != "--unbuffered":
            options[option] = words.pop(0)
    number, index = os.environ.get("SLURM_ARRAY_JOB_ID", ""), os.environ.get("SLURM_ARRAY_TASK_ID", "")
    marks = {"%A": number, "%a": index, "%j": os.environ["SLURM_JOB_ID"], "%t": "0"}
    for stream, option in ((1, "--output"), (2, "--error")):
        path = re.sub("%[Aajt]", lambda found: marks[found[0]], options[option])
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.execvp(words[0], words)


def sacct(*arguments: str) -> None:
    """The states of the tasks of these numbers."""
    numbers = [arguments[at + 1] for at, word in enumerate(arguments) if word == "-j"]
    print("JobID|State|NodeList")
    for path in sorted(HOME.glob("*.state")):
        if path.stem.partition("_")[0] in numbers:
            print(f"{path.stem}|{path.read_text()}|localhost")


def scancel(*arguments: str) -> None:
    """End the tasks of a number: all, or those that wait; or send one task a signal."""
    number = next(word for word in arguments if word[0].isdigit())
    sent = next((word.partition("=")[2] for word in arguments if word.startswith("--signal")), None)
    for path in (path for path in HOME.glob("*.state") if number in (path.stem, path.stem.partition("_")[0])):
        state = path.read_text()
        if state == "PENDING" and sent is None:
            path.write_text("CANCELLED by 0")
        elif state == "RUNNING" and "--state=PENDING" not in arguments:
            if sent is None:
                path.write_text("CANCELLED by 0")
            _signal(path.stem, SIGNALS[sent or "TERM"])


def scontrol(requeue: str, number: str) -> None:
    (HOME / f"{number}.again").touch()


def _signal(name: str, number: signal.Signals) -> None:
    """To what a task's script has begun."""
    pid = int((HOME / f"{name}.pid").read_text())
    with suppress(ProcessLookupError, ValueError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split() or [str(pid)]
        for child in children:
            os.kill(int(child), number)


if __name__ == "__main__":
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    name, *arguments = words[1:] if words[1] == "task" else words
    {f.__name__: f for f in (sbatch, task, srun, sacct, scancel, scontrol)}[name](*arguments)

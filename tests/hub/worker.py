"""One process that meets the stand-in as a user's would, and prints what came of it as JSON.

The hub library reads its address when it is imported, hence a process of its own; importing takes seconds,
hence a single one for all that is tried. `python worker.py <folder>`; the folder holds `hub/`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from standin import STRANGER, TOKEN, serve

Result = dict[str, Any]
TASK = (
    "{source: open/glue, train_size: 24, dev_size: 8, validation_size: 12, max_length: 400, quality_floor: 0,"
    " max_new_tokens: 4, training: {epochs: 1, batch_size: 8}}"
)
SQUAD = TASK.replace("open/glue", "open/squad")
YAML = f"""
threads: 1
seeds: [42]
methods: [B0, KD1]
kd1: {{temperatures: [2], alphas: [0.5], top_k: 8}}
tasks: {{sst2: {TASK}, squad: {SQUAD}}}
models:
  teacher: {{name: gated/teacher}}
  students: {{S1: {{name: open/student}}}}
  lora: {{r: 2}}
"""
FALLBACK = ("--set", "models.teacher.fallback=open/teacher")


def command(*arguments: str, token: str | None = None) -> Result:
    """What a command with the configuration says and returns; the token goes through `.env`, as a user's does."""
    return bare(arguments[0], "--config", "c.yaml", *arguments[1:], token=token)


def bare(*arguments: str, token: str | None = None) -> Result:
    from kdsuite import cli

    started = time.perf_counter()
    os.environ.pop("HF_TOKEN", None)
    Path(".env").write_text(f"HF_TOKEN={token}\n" if token else "")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([*arguments])
    print(f"{time.perf_counter() - started:.2f} s {arguments}", file=sys.stderr)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def sets(*items: str) -> list[str]:
    return [word for item in items for word in ("--set", item)]


def train(name: str, *items: str, **options: Any) -> Result:
    """`kdsuite train` with one method, into a results folder of its own, and the records it left."""
    arguments = ["train", "--task", "sst2", "--method", "B0", "--results", f"results-{name}", *sets(*items)]
    result = command(*arguments, **options)
    return result | {"left": sorted(p.name for p in Path(f"results-{name}").rglob("run.json"))}


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """The hub library waits a second between its attempts; here it does not."""
    sleep, time.sleep = time.sleep, lambda seconds: None
    try:
        yield
    finally:
        time.sleep = sleep


def online() -> dict[str, Result]:
    return {
        "doctor without a token": command("doctor"),
        "doctor with a wrong token": command("doctor", token="hf_planted_wrong"),
        "doctor with another's token": command("doctor", token=STRANGER),
        "doctor of what is not there": command("doctor", *sets("models.students.S1.name=open/absent")),
        "doctor with a token": command("doctor", token=TOKEN),
        "gated without a token": train("no-token"),
        "gated for this token": train("stranger", token=STRANGER),
        "wrong model id": train("wrong", "models.teacher.name=open/absent"),
        "wrong revision": train("revision", "models.students.S1.revision=nowhere", token=TOKEN),
        "wrong data set id": train("data", "tasks.sst2.source=open/absent"),
        "gated data set": train("gated-data", "tasks.sst2.source=gated/glue"),
        "shaky connection": train("shaky", "models.students.S1.name=shaky/student", token=TOKEN),
        "fallback, cache": command("cache", "--results", "results", *FALLBACK),
        "fallback, train": command("train", "--results", "results", *FALLBACK),
        "with access": command("cache", "--results", "results-access", token=TOKEN),
    }


def pushed() -> dict[str, Result]:
    """A run that is exported and pushed, with and without the right to; by both ways the hub library has."""
    from huggingface_hub import constants

    export = ["export", "B0_sst2_S1_seed42", "--results", "results"]
    constants.HF_HUB_DISABLE_XET = False
    streamed = bare(*export, "card", "--card", "--push", "open/card", token=TOKEN)
    constants.HF_HUB_DISABLE_XET = True
    return {
        "push": bare(*export, "out", "--push", "open/pushed", token=TOKEN),
        "push of a card": streamed,
        "push by a stranger": bare(*export, "not-mine", "--card", "--push", "open/other", token=STRANGER),
    }


def without_network() -> dict[str, Result]:
    unseen, cached = sets("models.students.S1.name=open/never-seen"), sets("models.teacher.name=open/teacher")
    return {
        "cached, no network": command("cache", "--results", "results-offline", *cached),
        "not cached, no network": train("offline", unseen[1]),
        "doctor, no network": command("doctor", *unseen, token=TOKEN),
        "doctor, no network, all cached": command("doctor", *cached),
    }


def main(folder: Path) -> None:
    os.chdir(folder)
    Path("c.yaml").write_text(YAML)
    results: dict[str, Result] = {}
    with serve(folder / "hub") as hub:
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
        results |= online()
        results |= pushed() | {"created": {"seen": hub.created}}
        with impatient():
            dropped = train("dropped", "models.students.S1.name=dropped/student", token=TOKEN)
        results |= {"broken connection": dropped, "requests": {"seen": hub.requests}}
    print(json.dumps(results | without_network()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

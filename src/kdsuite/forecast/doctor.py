"""Is this machine ready for a plan? Software, device, memory, disk, token, access to every model and data set.

Models that are on this machine are loaded and tried on a few tokens, as at the start of a run. Of the hub nothing
is fetched but configurations. What cannot be found out without the network is said to be unknown. The token is
used, never shown.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from huggingface_hub import (
    DatasetInfo,
    HfApi,
    ModelInfo,
    constants,
    get_token,
    hf_hub_download,
)

from kdsuite.config import GENERATED, ModelSettings, Settings, TaskSettings, looks_local
from kdsuite.errors import KdsuiteError, ModelError
from kdsuite.forecast.build import forecast, this_machine
from kdsuite.forecast.rows import Forecast
from kdsuite.forecast.text import amount
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.data import task
from kdsuite.jobs.models import let_go_of_models, source
from kdsuite.jobs.trials import is_trained, label_mass, refuse_unless_fits, try_model
from kdsuite.models import downloads
from kdsuite.models.source import missing_files
from kdsuite.plan import TEACHER, RunSpec
from kdsuite.runtime import hub
from kdsuite.runtime.device import DeviceChoice, memory_bytes
from kdsuite.runtime.environment import capture
from kdsuite.runtime.progress import Progress
from kdsuite.store.files import free_bytes

State = Literal["ok", "note", "unknown", "problem"]
SECONDS = 10.0  # to wait for an answer of the hub
LITTLE = 0.5  # share of the probability on a task's label words that is worth a note
MODEL_FILES = (".safetensors", ".json", ".model", ".txt", ".jinja")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: a line, with what to do unless it is all right."""

    state: State
    text: str
    remedy: str = ""
    bytes: int = 0  # still to be downloaded

    def __str__(self) -> str:
        return f"{self.state:8} {self.text}{f'; {self.remedy}' if self.remedy else ''}"


def examine(
    settings: Settings, specs: Sequence[RunSpec], choice: DeviceChoice, results: Path
) -> Iterator[Finding]:
    """Findings in the order in which a reader wants them, each as soon as it is known."""
    yield from _software(choice)
    names_hub = bool(downloads.hub_models(settings) or downloads.hub_data(settings))
    online = names_hub and hub.reachable()
    yield from _network(names_hub, online)
    yield _token(online)
    sources = [*_models(settings, online), *(_data(settings, name, online) for name in settings.tasks)]
    yield from sources
    try:
        expected = forecast(settings, specs, this_machine(choice))
    except KdsuiteError as error:
        yield Finding("problem", str(error))
        return
    yield from _memory(expected, choice)
    yield from _disk(expected, sum(source.bytes for source in sources), results)
    yield from _trials(settings, choice, results)


def _software(choice: DeviceChoice) -> Iterator[Finding]:
    environment = capture(choice)
    versions = {name: version for name, version in environment["libraries"].items() if version}
    yield Finding("ok", ", ".join([f"python {environment['python']}", *map(" ".join, versions.items())]))
    for name in environment["libraries"].keys() - versions.keys():
        yield Finding("problem", f"{name} is not installed", "run `make setup`")
    yield Finding("ok", f"{choice} on {environment['platform']}, {environment['device_name']}")


def _network(needed: bool, online: bool) -> Iterator[Finding]:
    if not needed:
        yield Finding("ok", "hub: not needed, all models and data are on this machine")
    elif online:
        yield Finding("ok", f"hub: {constants.ENDPOINT} is reached")
    else:
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "no network"
        yield Finding(
            "unknown",
            f"hub: not reached ({why}), so access, sizes and the token are not checked",
            "connect and run `kdsuite doctor` again",
        )


def _token(online: bool) -> Finding:
    where = ".env is read" if Path(".env").exists() else "no .env"
    token = get_token()
    if token is None:
        return Finding("ok", f"token: absent ({where}); only gated and private models need one")
    if not online:
        return Finding("unknown", f"token: present ({where}), not checked")
    try:
        HfApi().whoami(token=token)
    except (OSError, hub.HTTP_ERROR) as error:
        if getattr(getattr(error, "response", None), "status_code", None) == 401:
            return Finding(
                "problem", "token: present, but the hub does not know it", "put a valid HF_TOKEN into .env"
            )
        return Finding("unknown", f"token: present ({where}), not checked", _remedy(error))
    return Finding("ok", f"token: present ({where}) and valid")


# --- models


def _models(settings: Settings, online: bool) -> list[Finding]:
    """Of every model; a teacher that cannot be had is no problem where its fallback can."""
    teacher = settings.models.teacher
    named = {"teacher": teacher} | {name: settings.models.students[name] for name in settings.students}
    found = {role: _model(role, model, online) for role, model in named.items()}
    if teacher.fallback is not None:
        found["fallback"] = _model("fallback teacher", ModelSettings(name=teacher.fallback), online)
        if found["teacher"].state == "problem" and found["fallback"].state == "ok":
            instead = f"; the fallback {teacher.fallback} will be taken"
            found["teacher"] = replace(
                found["teacher"], state="note", text=found["teacher"].text + instead, bytes=0
            )
        elif found["teacher"].state == "ok":
            found["fallback"] = replace(found["fallback"], bytes=0)  # is not needed
            if found["fallback"].state == "problem":
                found["fallback"] = replace(found["fallback"], state="note")
    return list(found.values())


def _model(role: str, model: ModelSettings, online: bool) -> Finding:
    what = f"{role} {model.name}"
    if model.name in downloads.OFFLINE_MODELS:
        return Finding("ok", f"{what}: built on the spot")
    folder = Path(model.name)
    if folder.exists():
        return _folder(what, folder, online)
    if looks_local(model.name):
        return Finding(
            "problem", f"{what}: there is no such folder", "give a save_pretrained folder or a hub id"
        )
    if not online:
        return _in_cache(what, model)
    try:
        info = HfApi().model_info(model.name, revision=model.revision, files_metadata=True, timeout=SECONDS)
        HfApi().auth_check(model.name)
        hf_hub_download(model.name, "config.json", revision=model.revision)  # for the plan
    except (OSError, ValueError, hub.HTTP_ERROR) as error:
        return _refused(what, error)
    if not any(name.endswith(".safetensors") for name, _ in _files(info)):
        return Finding("problem", f"{what}: has no safetensors weights", "take a model that has")
    needed = [(name, size) for name, size in _files(info) if "/" not in name and name.endswith(MODEL_FILES)]
    return _reachable(what, model.name, info, needed, None)


def _folder(what: str, folder: Path, online: bool) -> Finding:
    """Whether all of a model is in its folder, and the base of an adapter where it is said to be."""
    from kdsuite.models.loading import (
        ModelSource,
        load_chat,
    )  # as everything with transformers, not for the rest

    if missing := missing_files(folder):
        return Finding(
            "problem", f"{what}: lacks {', '.join(missing)}", "give a complete save_pretrained folder"
        )
    below = Finding("ok", "")
    try:
        source = ModelSource.at(str(folder))
        if source.base:
            below = _model(
                "adapter of", ModelSettings(name=source.base.where, revision=source.base.revision), online
            )
        if source.tokenizing.is_folder:
            load_chat(source)
    except ModelError as error:
        return Finding("problem", f"{what}: {error}")
    return replace(below, text=f"{what}: {below.text or 'on disk'}")


def _in_cache(what: str, model: ModelSettings) -> Finding:
    if hub.has_weights(model.name, model.revision):
        return Finding("ok", f"{what}: in the hub's cache")
    return Finding(
        "problem", f"{what}: not in the hub's cache, and the hub is not reached",
        "connect once, or give a folder on disk",
    )  # fmt: skip


def _trials(settings: Settings, choice: DeviceChoice, results: Path) -> Iterator[Finding]:
    """What a trial says of every model that is on this machine."""
    bench = Bench(settings, results, choice, Progress.silent())
    named = {name: settings.models.students[name] for name in settings.students}
    for role, model in (named | {TEACHER: settings.models.teacher}).items():
        built = model.name in downloads.OFFLINE_MODELS
        if not built and _model(role, model, online=False).state != "problem":  # else it was told above
            yield from _trial(bench, role)
            let_go_of_models(bench)


def _trial(bench: Bench, role: str) -> Iterator[Finding]:
    try:
        refuse_unless_fits(bench, role)
        try_model(bench, role)
        step = ", a step of training is finite" if is_trained(bench, role) else ""
        yield Finding(
            "ok", f"trial of {role} {source(bench, role).name}: its logits are finite and causal{step}"
        )
        for name in bench.settings.tasks:
            data = bench.settings.tasks[name].source
            if task(bench, name).labels and (data == GENERATED or Path(data).expanduser().is_dir()):
                yield _label_words(bench, role, name)
    except KdsuiteError as error:
        models = bench.settings.models
        asked = models.teacher if role == TEACHER else models.students[role]
        yield Finding("problem", f"{role} {Path(asked.name).name}: {error}")


def _label_words(bench: Bench, role: str, task: str) -> Finding:
    mass, favourite = label_mass(bench, role, task)
    text = f"{role}: prompts of {task} leave {mass:.0%} of the probability to its label words"
    if mass >= LITTLE:
        return Finding("ok", text)
    return Finding(
        "note", f"{text}; the likeliest answer begins with {favourite!r}",
        f"if that is a label, spelled otherwise, set tasks.{task}.labels_text",
    )  # fmt: skip


# --- data


def _data(settings: Settings, name: str, online: bool) -> Finding:
    task = settings.tasks[name]
    what = f"data of {name}, {task.source}"
    if task.source == GENERATED:
        return Finding("ok", f"data of {name}: generated")
    folder = Path(task.source)
    if folder.is_dir():
        missing = [file for file in (task.train_file, task.validation_file) if not (folder / file).is_file()]
        if missing:
            remedy = f"set tasks.{name}.train_file and validation_file"
            return Finding("problem", f"{what}: lacks {', '.join(missing)}", remedy)
        return Finding("ok", f"{what}: on disk")
    if not online:
        if hub.cached(task.source, "README.md", task.revision, "dataset"):
            return Finding("ok", f"{what}: in the hub's cache")
        remedy = "connect once, or give a folder with the official files"
        return Finding("problem", f"{what}: no folder here, and the hub is not reached", remedy)
    return _hub_data(what, task)


def _hub_data(what: str, task: TaskSettings) -> Finding:
    api = HfApi()
    try:
        info = api.dataset_info(task.source, revision=task.revision, files_metadata=True, timeout=SECONDS)
        api.auth_check(task.source, repo_type="dataset")
    except (OSError, ValueError, hub.HTTP_ERROR) as error:
        return _refused(what, error)
    files = [(name, size) for name, size in _files(info) if name.endswith(".parquet")]
    if "glue" in task.source:
        files = [(name, size) for name, size in files if name.startswith("sst2/")]
    return _reachable(what, task.source, info, files, "dataset")


# --- of the hub


def _files(info: ModelInfo | DatasetInfo) -> list[tuple[str, int]]:
    return [(sibling.rfilename, sibling.size or 0) for sibling in info.siblings or ()]


def _reachable(
    what: str, repo: str, info: ModelInfo | DatasetInfo, files: Sequence[tuple[str, int]], kind: str | None
) -> Finding:
    """Access is there: how much is still to be downloaded."""
    missing = sum(size for name, size in files if not hub.cached(repo, name, info.sha, kind))
    whole = sum(size for _, size in files)
    if not missing:
        return Finding("ok", f"{what}: in the hub's cache ({amount(whole)})")
    have = f", {amount(whole - missing)} are in the cache" if missing < whole else ""
    return Finding("ok", f"{what}: reachable, {amount(missing)} to download{have}", bytes=missing)


def _refused(what: str, error: Exception) -> Finding:
    reason, remedy = hub.explain(error) or (str(error).splitlines()[0], "check the name")
    return Finding("problem", f"{what}: {reason}", remedy)


def _remedy(error: Exception) -> str:
    meaning = hub.explain(error)
    return meaning[1] if meaning else "try again later"


# --- against the plan


def _memory(expected: Forecast, choice: DeviceChoice) -> Iterator[Finding]:
    total, free = memory_bytes(choice.device)
    peak = max((row.bytes or 0 for row in expected.memory), default=0)
    if any(row.fits is False for row in expected.memory):
        yield Finding("problem", f"memory: the plan needs {amount(peak)}, {choice.device} has {amount(total)}",
                      "; ".join(expected.advice))  # fmt: skip
        return
    for line in expected.advice:
        yield Finding("note", f"memory: {line}")
    if peak > free:
        yield Finding("note", f"memory: the plan needs {amount(peak)} of {amount(total)}, but {amount(free)} are free",
                      "close other programs")  # fmt: skip
    else:
        yield Finding(
            "ok", f"memory: the plan needs {amount(peak)}, {amount(free)} of {amount(total)} are free"
        )
    if any(row.bytes is None for row in expected.memory):
        yield Finding("unknown", "memory: a model's configuration is not on this machine",
                      "connect and run `kdsuite doctor` again")  # fmt: skip


def _disk(expected: Forecast, download: int, results: Path) -> Iterator[Finding]:
    """Results and downloads each on the disk they go to; together where that is one."""
    written = sum(row.bytes or 0 for row in expected.disk if row.kind != "download")
    cache = Path(os.path.expandvars(constants.HF_HUB_CACHE)).expanduser()
    if not download or _disk_of(cache) == _disk_of(results):
        yield _room("results and downloads" if download else "results", results, written + download)
        return
    yield _room("results", results, written)
    yield _room("downloads", cache, download, "set HF_HOME to a folder on a larger disk")


def _room(
    what: str, path: Path, needed: int, remedy: str = "free some, or give --results on a larger disk"
) -> Finding:
    free = free_bytes(path)
    text = f"disk: {what} need {amount(needed)}, {amount(free)} are free at {path}"
    return Finding("problem", text, remedy) if needed > free else Finding("ok", text)


def _disk_of(path: Path) -> int:
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists()).stat().st_dev

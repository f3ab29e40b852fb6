"""Is this machine ready for a plan? Software, device, memory, disk, token, access to every model and data set.

Models that are on this machine are loaded and tried on a few tokens, as at the start of a run. Of the hub nothing
is fetched but configurations. What cannot be found out without the network is said to be unknown. The token is
used, never shown.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, constants, get_token, hf_hub_download

from kdsuite.config import GENERATED, ModelSettings, ServedTeacherSettings, Settings, TeacherSettings, looks_local
from kdsuite.errors import DataError, KdsuiteError, ModelError, first_line
from kdsuite.forecast.build import forecast, this_machine
from kdsuite.forecast.rows import Forecast, amount
from kdsuite.forecast.scene import Machine, Scene
from kdsuite.jobs.bench import Bench
from kdsuite.jobs.models import let_go_of_models, source
from kdsuite.jobs.trials import is_trained, label_mass, refuse_unless_fits, tried_here, try_model
from kdsuite.models.loading import load_chat
from kdsuite.models.source import OFFLINE_MODELS, ModelSource, hub_models, missing_files
from kdsuite.plan import TEACHER, RunSpec
from kdsuite.runtime import hub
from kdsuite.runtime.device import DeviceChoice, memory_bytes, refuse_fewer
from kdsuite.runtime.environment import capture
from kdsuite.runtime.progress import Progress
from kdsuite.runtime.tracking import refuse_missing
from kdsuite.store.files import free_bytes
from kdsuite.tasks.example import task_of
from kdsuite.tasks.sizes import hub_data, is_here
from kdsuite.tasks.sources import is_local
from kdsuite.teacher.dialects import find

SECONDS = 10.0  # to wait for an answer of the hub
LITTLE = 0.5  # share of the probability on a task's label words that is worth a note
MODEL_FILES = (".safetensors", ".json", ".model", ".txt", ".jinja")
AGAIN = "connect and run `kdsuite doctor` again"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: a line, with what to do unless it is all right."""

    state: Literal["ok", "note", "unknown", "problem"]
    text: str
    remedy: str = ""
    bytes: int = 0  # still to be downloaded

    def __str__(self) -> str:
        return f"{self.state:8} {self.text}{f'; {self.remedy}' if self.remedy else ''}"


def examine(settings: Settings, specs: Sequence[RunSpec], choice: DeviceChoice, results: Path) -> Iterator[Finding]:
    """Findings in the order in which a reader wants them, each as soon as it is known."""
    environment = capture(choice)
    versions = {name: version for name, version in environment["libraries"].items() if version}
    yield Finding("ok", ", ".join([f"python {environment['python']}", *map(" ".join, versions.items())]))
    for name in environment["libraries"].keys() - versions.keys():
        yield Finding("problem", f"{name} is not installed", "run `make setup`")
    try:
        refuse_missing(settings.tracking)
    except KdsuiteError as error:
        yield Finding("problem", str(error))
    yield Finding("ok", f"{choice} on {environment['platform']}, {environment['device_name']}")
    wanted = hub_models(settings) or hub_data(settings)
    online = bool(wanted) and hub.reachable()
    if online:
        yield Finding("ok", f"hub: {constants.ENDPOINT} is reached")
    elif wanted:
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "no network"
        text = f"hub: not reached ({why}), so access, sizes and the token are not checked"
        yield Finding("unknown", text, AGAIN)
    else:
        yield Finding("ok", "hub: not needed, all models and data are on this machine")
    yield _token(online)
    machine = this_machine(choice)
    sources = [*_models(settings, online, machine), *(_data(settings, name, online) for name in settings.tasks)]
    yield from sources
    try:
        refuse_fewer(choice.device, settings.devices_per_job)
        expected = forecast(settings, specs, machine)
    except KdsuiteError as error:
        yield Finding("problem", str(error))
        return
    yield from _memory(expected, choice)
    yield from _disk(expected, sum(source.bytes for source in sources), results)
    yield from _trials(settings, choice, results)


def _token(online: bool) -> Finding:
    where = ".env is read" if Path(".env").exists() else "no .env"
    token = get_token()
    if token is None:
        return Finding("ok", f"token: absent ({where}); only gated and private models need one")
    unknown = Finding("unknown", f"token: present ({where}), not checked")
    if not online:
        return unknown
    try:
        HfApi().whoami(token=token)
    except (OSError, hub.HTTP_ERROR) as error:
        if getattr(getattr(error, "response", None), "status_code", None) == 401:
            text = "token: present, but the hub does not know it"
            return Finding("problem", text, "put a valid HF_TOKEN into .env")
        _, remedy = hub.explain(error) or ("", "try again later")
        return replace(unknown, remedy=remedy)
    return Finding("ok", f"token: present ({where}) and valid")


def _models(settings: Settings, online: bool, machine: Machine) -> list[Finding]:
    """Of every model; a teacher that cannot be had, or held, is no problem where its fallback can."""
    students = [_model(name, settings.models.students[name], online) for name in settings.students]
    if not isinstance(settings.models.teacher, TeacherSettings):
        return [*_server(settings.models.teacher, online), *students]
    teacher = _model("teacher", settings.models.teacher, online)
    if (name := settings.models.teacher.fallback) is None:
        return [teacher, *students]
    fallback = _model("fallback teacher", ModelSettings(name=name), online)
    too_large = Scene(settings, machine, (), {}).model(TEACHER) is not settings.models.teacher
    if too_large or (teacher.state == "problem" and fallback.state == "ok"):
        why = ", as its weights alone are more than the memory" if too_large else ""
        text = f"{teacher.text}; the fallback {name} will be taken{why}"
        teacher = replace(teacher, state="note", text=text, bytes=0)
    elif teacher.state == "ok":  # the fallback is not needed
        fallback = replace(fallback, bytes=0, state="note" if fallback.state == "problem" else fallback.state)
    return [teacher, *students, fallback]


def _server(teacher: ServedTeacherSettings, online: bool) -> list[Finding]:
    """Whether the teacher's server is reached and what it was found to be; and its tokenizer."""
    tokenizer = replace(_model("teacher's tokenizer", ModelSettings(name=teacher.tokenizer), online), bytes=0)
    try:
        _, found = find(teacher)
    except ModelError as error:
        return [Finding("problem", str(error)), tokenizer]
    offers = ", ".join(found.offers)
    return [Finding("ok", f"teacher {teacher.model}: {found} at {teacher.url} offers {offers}"), tokenizer]


def _model(role: str, model: ModelSettings, online: bool) -> Finding:
    what, folder = f"{role} {model.name}", Path(model.name)
    if model.name in OFFLINE_MODELS:
        return Finding("ok", f"{what}: built on the spot")
    if folder.exists():
        return _folder(what, folder, online)
    if looks_local(model.name):
        remedy = "give a save_pretrained folder or a hub id"
        return Finding("problem", f"{what}: there is no such folder", remedy)
    if online:
        return _on_hub(what, model.name, model.revision, "model")
    if hub.has_weights(model.name, model.revision):
        return Finding("ok", f"{what}: in the hub's cache")
    text = f"{what}: not in the hub's cache, and the hub is not reached"
    return Finding("problem", text, "connect once, or give a folder on disk")


def _folder(what: str, folder: Path, online: bool) -> Finding:
    """Whether all of a model is in its folder, and the base of an adapter where it is said to be."""
    below = Finding("ok", "on disk")
    try:
        if missing := missing_files(folder):
            return Finding("problem", f"{what}: lacks {', '.join(missing)}", "give a complete save_pretrained folder")
        source = ModelSource.at(str(folder))
        if source.base:
            base = ModelSettings(name=source.base.where, revision=source.base.revision)
            below = _model("adapter of", base, online)
        if source.tokenizing.is_folder:
            load_chat(source)
    except ModelError as error:
        return Finding("problem", f"{what}: {error}")
    return replace(below, text=f"{what}: {below.text}")


def _data(settings: Settings, name: str, online: bool) -> Finding:
    task = settings.tasks[name]
    what = f"data of {name}, {task.source}"
    if task.source == GENERATED:
        return Finding("ok", f"data of {name}: generated")
    if is_local(task):
        try:
            for split in ("train", "validation"):
                task_of(name, task).load(split)
        except DataError as error:
            return Finding("problem", f"{what}: {error}")
        return Finding("ok", f"{what}: on disk")
    if online:
        return _on_hub(what, task.source, task.revision, "dataset", name)
    if hub.cached(task.source, "README.md", task.revision, "dataset"):
        return Finding("ok", f"{what}: in the hub's cache")
    remedy = "connect once, or give a folder with the official files"
    return Finding("problem", f"{what}: no folder here, and the hub is not reached", remedy)


def _on_hub(what: str, repo: str, revision: str | None, kind: str, task: str | None = None) -> Finding:
    """Whether there is access to a model or to the data set of a task, and how much is still to be downloaded."""
    api = HfApi()
    try:
        ask = api.model_info if kind == "model" else api.dataset_info
        info = ask(repo, revision=revision, files_metadata=True, timeout=SECONDS)
        api.auth_check(repo, repo_type=kind)
        if kind == "model":
            hf_hub_download(repo, "config.json", revision=revision)  # for the plan
    except (OSError, ValueError, hub.HTTP_ERROR) as error:
        reason, remedy = hub.explain(error) or (first_line(error), "check the name")
        return Finding("problem", f"{what}: {reason}", remedy)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    if kind == "model":
        if not any(name.endswith(".safetensors") for name in sizes):
            return Finding("problem", f"{what}: has no safetensors weights", "take a model that has")
        needed = [name for name in sizes if "/" not in name and name.endswith(MODEL_FILES)]
    else:
        parquet = [name for name in sizes if name.endswith(".parquet")]
        of_task = [name for name in parquet if name.startswith(f"{task}/")]  # of several in there
        needed = of_task or parquet
    whole = sum(sizes[name] for name in needed)
    missing = sum(sizes[name] for name in needed if not hub.cached(repo, name, info.sha, kind))
    if not missing:
        return Finding("ok", f"{what}: in the hub's cache ({amount(whole)})")
    have = f", {amount(whole - missing)} are in the cache" if missing < whole else ""
    return Finding("ok", f"{what}: reachable, {amount(missing)} to download{have}", bytes=missing)


def _memory(expected: Forecast, choice: DeviceChoice) -> Iterator[Finding]:
    total, free = memory_bytes(choice.device)
    peak = max((row.bytes or 0 for row in expected.memory), default=0)
    needs, advice = f"memory: the plan needs {amount(peak)}", expected.advice
    if any(row.fits is False for row in expected.memory):
        yield Finding("problem", f"{needs}, {choice.device} has {amount(total)}", "; ".join(advice))
        return
    yield from (Finding("note", f"memory: {line}") for line in advice)
    if peak > free:
        text = f"{needs} of {amount(total)}, but {amount(free)} are free"
        yield Finding("note", text, "close other programs")
    else:
        yield Finding("ok", f"{needs}, {amount(free)} of {amount(total)} are free")
    if any(row.bytes is None for row in expected.memory):
        yield Finding("unknown", "memory: a model's configuration is not on this machine", AGAIN)


def _disk(expected: Forecast, download: int, results: Path) -> Iterator[Finding]:
    """Results and downloads each on the disk they go to; together where that is one."""
    written = sum(row.bytes or 0 for row in expected.disk if row.kind != "download")
    cache = Path(os.path.expandvars(constants.HF_HUB_CACHE)).expanduser()
    rooms = [("results", results, written, "free some, or give --results on a larger disk")]
    if download and _disk_of(cache) == _disk_of(results):
        rooms = [("results and downloads", results, written + download, rooms[0][-1])]
    elif download:
        rooms.append(("downloads", cache, download, "set HF_HOME to a folder on a larger disk"))
    for what, path, needed, remedy in rooms:
        free = free_bytes(path)
        text = f"disk: {what} need {amount(needed)}, {amount(free)} are free at {path}"
        yield Finding("problem", text, remedy) if needed > free else Finding("ok", text)


def _disk_of(path: Path) -> int:
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists()).stat().st_dev


def _trials(settings: Settings, choice: DeviceChoice, results: Path) -> Iterator[Finding]:
    """What a trial says of every model that is on this machine; where one is not, that was told above."""
    if settings.devices_per_job > 1:
        text = f"models are not tried here, but over {settings.devices_per_job} devices at the beginning of a run"
        yield Finding("note", text, "`kdsuite cache` tells what cannot be used before it asks anything")
        return
    bench = Bench(settings, results, choice, Progress.silent())
    models: dict[str, Any] = {**settings.models.students, TEACHER: settings.models.teacher}
    for role in tried_here(bench):
        model = models[role]
        built = model.name in OFFLINE_MODELS
        if built or _model(role, model, online=False).state == "problem":
            continue
        try:
            refuse_unless_fits(bench, role)
            try_model(bench, role)
            step = ", a step of training is finite" if is_trained(bench, role) else ""
            text = f"trial of {role} {source(bench, role).name}: its logits are finite and causal{step}"
            yield Finding("ok", text)
            for task, section in settings.tasks.items():
                if task_of(task, section).labels and is_here(section):
                    mass, favourite = label_mass(bench, role, task)
                    text = f"{role}: prompts of {task} leave {mass:.0%} of the probability to its label words"
                    remedy = f"if that is a label, spelled otherwise, set tasks.{task}.labels_text"
                    likely = f"; the likeliest answer begins with {favourite!r}"
                    yield Finding("ok", text) if mass >= LITTLE else Finding("note", text + likely, remedy)
        except KdsuiteError as error:
            yield Finding("problem", f"{role} {Path(model.name).name}: {error}")
        let_go_of_models(bench)

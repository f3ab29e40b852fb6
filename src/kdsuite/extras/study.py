"""Results that travel: a folder small enough for a repository, from which anyone can recompute every table.

<date>-<name>/
  README.md        what was found, with its limits; the part between the marks is written here
  config.yaml      the settings, models and data by paths relative to where kdsuite is run
  summary/         the tables (CSV, LaTeX) and the paragraph on them
  figures/  report.html   as in the results folder; a page of more than 2 MB is left out
  results.tar.xz   what the report reads of the results folder: plan, records, histories and predictions, and of the
                   reported split ids and groups; no weights, no caches
  study.json       versions, machine, models, sizes, what each run's settings come to, hashes of the files; sealed
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import re
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from pydantic import ValidationError

from kdsuite.config import GENERATED, TEACHER, Settings
from kdsuite.config.files import load as load_settings
from kdsuite.errors import DataError, KdsuiteError, SettingsError
from kdsuite.extras import study_page
from kdsuite.extras.study_page import FACTS, FORMAT, read_facts
from kdsuite.plan import expand, run_fingerprint
from kdsuite.report.analysis import Analysis, TaskAnalysis, analyse
from kdsuite.report.build import summarised
from kdsuite.report.load import flatten, load, read_manifest
from kdsuite.report.tables import all_tables
from kdsuite.store.files import (
    atomic_folder,
    atomic_write_record,
    atomic_write_text,
    content_fingerprint,
    folder_bytes,
    listed,
    sha256_file,
)
from kdsuite.store.layout import CACHES, HISTORY, MANIFEST, PREDICTIONS, QUALITY, RECORD, Layout

CONFIG, ARCHIVE, PAGE = "config.yaml", "results.tar.xz", "README.md"
LARGEST_PAGE = 2_000_000  # bytes of report.html
ALWAYS = ("seeds", "methods")  # keys that a reader looks for, also where they are the default
ASKED = ("system", "prompt")  # texts that may begin with a slash, as /no_think
MACHINE = "device device_name cpu cpu_cores memory_mb dtype threads platform python libraries".split()


def save(folder: Path, results: Path) -> str:
    """Write or renew the study of a results folder, and check it; what else lies in `folder` is kept.

    DataError where there is no report, or one of other runs; SettingsError for a path that only this machine has, or
    for a config.yaml in `folder` that says otherwise than the plan. Returns a line that says what was written.
    """
    folder, at = folder.absolute(), Layout(results)
    there = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if folder.is_file() or (there - {CONFIG, PAGE} and FACTS not in there):
        raise SettingsError(f"{folder} holds something else than a study; give a new folder")
    analysis, settings, texts = _recomputed(results)
    for problem in _differences(texts, at.summary):
        raise DataError(f"{at.summary}: {problem}; build the report again with `kdsuite report`")
    for problem in _replanned({run.run_id: "" for run in analysis.results.runs}, dict.fromkeys(_prints(settings), "")):
        raise DataError(f"{results}: {problem}; plan anew with `kdsuite report`")
    with atomic_folder(folder) as new:
        if folder.is_dir():
            shutil.copytree(folder, new, dirs_exist_ok=True)
        for old in (new / "summary", new / "figures"):
            shutil.rmtree(old, ignore_errors=True)
        for name, text in texts.items():
            atomic_write_text(new / "summary" / name, text)
        (new / "figures").mkdir()
        for figure in sorted(at.figures.glob("*")):
            if figure.suffix in (".png", ".csv"):
                shutil.copy(figure, new / "figures")
        (new / at.page.name).unlink(missing_ok=True)
        if at.page.exists() and at.page.stat().st_size <= LARGEST_PAGE:
            shutil.copy(at.page, new)
        _write_config(new / CONFIG, settings)
        _write_archive(new / ARCHIVE, dict(_archived(results, analysis)))
        names = [f"figures/{file.name}" for file in sorted((new / "figures").iterdir())]
        names += [name for name in (at.page.name, ARCHIVE) if (new / name).exists()]
        about = _facts(analysis, settings, folder) | {"files": {name: sha256_file(new / name) for name in names}}
        atomic_write_record(new / FACTS, about)
        about = read_facts(new)  # in the order in which it is read again
        study_page.write(new / PAGE, folder.name, about, texts, analysis)
        _refuse_paths(new, results)
        if problems := verify(new)[1]:
            raise KdsuiteError(f"the study does not verify, and is not written: {problems[0]}")
    counts = f"{len(texts)} tables and texts, {len(about['runs'])} runs, {folder_bytes(folder):,} bytes"
    said = f"saved {folder.name}: {counts}"
    try:
        study_page.renew_overview(folder.parent / PAGE)
    except DataError as error:
        raise DataError(f"{said}; but the table in {PAGE} beside it is as it was: {error}") from None
    return said


def verify(folder: Path) -> tuple[list[str], list[str]]:
    """Recompute a study from its predictions: what holds, and a line per difference. DataError where it is no study."""
    about, problems = read_facts(folder), []
    for name, expected in about["files"].items():
        found = content_fingerprint(folder / name)
        if found != expected:
            problems.append(f"{name}: missing" if found is None else f"{name}: damaged, or altered since it was saved")
    good = []
    with TemporaryDirectory() as temporary:
        if not any(problem.startswith(ARCHIVE) for problem in problems):
            try:
                _unpack(folder / ARCHIVE, Path(temporary))
                analysis, _, texts = _recomputed(Path(temporary))
                differing = [f"summary/{problem}" for problem in _differences(texts, folder / "summary")]
                differing += study_page.differences(folder / PAGE, about, texts)
                problems += differing
                runs = sum(bool(run.record) for run in analysis.results.runs)
                good += [f"{len(texts)} tables and texts from {runs} runs: equal in every digit"] * (not differing)
            except KdsuiteError as error:
                problems.append(f"{ARCHIVE}: {error}")
    try:
        settings = load_settings(folder / CONFIG, env_file=None)
        differing = list(_replanned(about["runs"], _prints(settings)))
        good += [f"{len(about['runs'])} planned runs: {CONFIG} asks for the same ones"] * (not differing)
        problems += differing
    except KdsuiteError as error:
        problems.append(f"{CONFIG}: {error}")
    return good, problems


def _recomputed(results: Path) -> tuple[Analysis, Settings, dict[str, str]]:
    """What the report's own code makes of records and predictions, under the settings of the plan."""
    loaded = load(results)
    try:
        settings = Settings.model_validate(loaded.plan.get("settings"))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataError(
            f"{results}: the settings in plan.json are missing, or not of this version of kdsuite ({where}); plan anew"
        ) from None
    analysis = analyse(loaded, settings.report)
    return analysis, settings, summarised(analysis, all_tables(analysis))


# --- what is written


def _write_config(path: Path, settings: Settings) -> None:
    """The keys that differ from their default; a file that says the same in another way is left as it is."""
    if path.exists():
        kept = load_settings(path, env_file=None)
        one, other = (dict(flatten(s.model_dump(mode="json"))) for s in (kept, settings))
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key):
                raise SettingsError(
                    f"{path.name} says {key}: {one.get(key)}, the plan {other.get(key)}; remove the file, or run again "
                    "with it"
                )
        return
    tree, whole = settings.model_dump(mode="json"), settings.model_dump(mode="json")

    def same() -> bool:
        try:
            return Settings.model_validate(tree).model_dump(mode="json") == whole
        except ValidationError:
            return False

    _prune(tree, same, ALWAYS)
    atomic_write_text(
        path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    )


def _prune(branch: dict[str, Any], same: Callable[[], bool], keep: tuple[str, ...] = ()) -> None:
    """Take out of a tree of settings what it says the same without; the order of the others stays."""
    for key in list(branch):
        value = branch.pop(key)
        if key not in keep and same():
            continue
        branch[key] = value
        if isinstance(value, dict):
            _prune(value, same)


def _archived(results: Path, analysis: Analysis) -> Iterator[tuple[str, bytes]]:
    """The files of a results folder that its tables and its page are made of, by name; of examples, no texts."""
    at = Layout(results)
    files = [at.plan, at.looks, *listed(at.benchmarks, "*.json")]
    for run in analysis.results.runs:
        files += [run.folder / name for name in (RECORD, PREDICTIONS, HISTORY)]
    for task in analysis.tasks:
        files += [at.processed(task.name) / MANIFEST, *(results / CACHES / task.name).glob(f"*/{QUALITY}")]
        rows = [
            json.dumps({"id": name, "group": str(group), "inputs": {}}) + "\n"
            for name, group in zip(task.ids, task.groups, strict=True)
        ]
        if task.examples:
            yield f"processed_data/{task.name}/validation.jsonl", "".join(rows).encode()
    for file in files:
        if file.exists():
            yield file.relative_to(results).as_posix(), file.read_bytes()


def _write_archive(path: Path, contents: Mapping[str, bytes]) -> None:
    """A tar of equal bytes for equal contents: in order, without times and owners."""
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(contents, key=lambda name: (Path(name).name, name)):  # what is alike lies together
            about = tarfile.TarInfo(name)
            about.size = len(contents[name])
            archive.addfile(about, io.BytesIO(contents[name]))
    path.write_bytes(lzma.compress(tarred.getvalue(), preset=9))


def _unpack(path: Path, folder: Path) -> None:
    try:
        with tarfile.open(path, mode="r:xz") as archive:
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise DataError(f"cannot be unpacked ({error})") from None


def _facts(analysis: Analysis, settings: Settings, folder: Path) -> dict[str, Any]:
    """What a reader asks of a study besides its numbers, from plan and records."""
    plan, records = analysis.results.plan, [run.record for run in analysis.results.runs if run.record]
    machines = [{key: (record.get("environment") or {}).get(key) for key in MACHINE} for record in records]
    timings = [record.get("timing") or {} for record in records]
    models = {run.configuration.student or TEACHER: run.record.get("model") for run in analysis.results.runs}
    manifests = {task.name: read_manifest(analysis.results.root, task.name) for task in analysis.tasks}
    students = {name: settings.models.students[name].name for name in settings.students}
    return {
        "format": FORMAT,
        "created": plan["created"],
        "code": sorted({record["code_version"] for record in records if record.get("code_version")}),
        "command": f"kdsuite run --config studies/{folder.name}/{CONFIG} --results results-{folder.name} "
        "--executor processes",
        "machines": [json.loads(text) for text in sorted({json.dumps(m, sort_keys=True) for m in machines})],
        "seconds": round(sum((t.get("train_seconds") or 0) + (t.get("evaluate_seconds") or 0) for t in timings)),
        "models": {TEACHER: settings.models.teacher.name} | students,
        "parameters": {role: model.get("parameters") for role, model in models.items() if model},
        "seeds": list(settings.seeds),
        "sizes": {name: manifest.get("sizes") or {} for name, manifest in manifests.items()},
        "titles": {task.name: task.title for task in analysis.tasks},
        "data": {task.name: _origin(task, settings.tasks[task.name].source) for task in analysis.tasks},
        "level": analysis.level,
        "runs": _prints(settings),
    }


def _origin(task: TaskAnalysis, source: str) -> dict[str, str | None]:
    """Where a task's data come from; those that were generated here are nobody else's."""
    known = {} if source == GENERATED else {key: task.about.get(key) for key in ("citation", "licence")}
    return {"source": source, **known}


def _prints(settings: Settings) -> dict[str, str]:
    """Of each planned run, its fingerprint as far as settings decide it: without data, models and machine."""
    return {spec.run_id: run_fingerprint(settings, spec, defaultdict(str), ()) for spec in expand(settings)}


def _refuse_paths(folder: Path, results: Path) -> None:
    """SettingsError for a path that only this machine has, in what was written."""
    here = {str(path) for path in (Path.home(), Path.cwd(), results.absolute(), results.resolve())} - {"/"}
    private = re.compile("|".join(rf"(?<![\w.-]){re.escape(path)}(?![\w-])" for path in sorted(here)))
    texts: dict[str, str] = {}
    with TemporaryDirectory() as temporary:  # first, since it says by which key
        _unpack(folder / ARCHIVE, Path(temporary))
        for path in sorted(Path(temporary).rglob("*.json*")):
            texts[path.relative_to(temporary).as_posix()] = path.read_text("utf-8")
    plain = [
        folder / FACTS,
        folder / CONFIG,
        *(p for kind in ("md", "csv", "tex", "html") for p in folder.rglob(f"*.{kind}")),
    ]
    texts |= {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in plain}
    advice = "name models and data relative to where kdsuite is run (./models/qwen0.5b; a link will do), and run again"
    for name, text in texts.items():
        for key, value in flatten(json.loads(text)) if name.endswith(".json") else ():
            if Path(value).is_absolute() and key.rpartition(".")[2] not in ASKED:
                raise SettingsError(f"{name}: {key} is a path of this machine ({value}); {advice}")
        if found := private.search(text):
            raise SettingsError(f"{name} holds a path of this machine ({found[0]}); {advice}")


# --- what is compared


def _differences(texts: Mapping[str, str], folder: Path) -> Iterator[str]:
    """Where texts that were recomputed and the files of that name are not the same."""
    for name, text in sorted(texts.items()):
        try:
            saved = (folder / name).read_text("utf-8")
        except FileNotFoundError:
            yield f"{name}: missing"
            continue
        except (OSError, UnicodeDecodeError):
            yield f"{name}: cannot be read"
            continue
        if saved != text:
            yield from _cells(name, saved, text) if name.endswith(".csv") else _lines(name, saved, text)
    if folder.is_dir():
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix in (".csv", ".tex", ".md")}
        yield from (f"{name}: not among the tables that are recomputed" for name in sorted(found - texts.keys()))


def _cells(name: str, saved: str, text: str) -> Iterator[str]:
    """The cells of a table that differ, named by what stands in its row; rows or columns that it has not."""
    one, other = (list(csv.reader(io.StringIO(table))) for table in (saved, text))
    if len(one) != len(other) or not one or one[0] != other[0]:
        yield f"{name}: {len(one)} lines saved, {len(other)} recomputed, or other columns"
        return
    for row, again in zip(one[1:], other[1:], strict=True):
        key = " ".join(filter(None, again[:3]))
        for column, was, now in zip_longest(one[0], row, again, fillvalue=""):
            if was != now:
                yield f"{name}: {key}, {column}: {was!r} saved, {now!r} recomputed"


def _lines(name: str, saved: str, text: str) -> Iterator[str]:
    pairs = zip_longest(saved.split("\n"), text.split("\n"))
    line = next(number for number, (was, now) in enumerate(pairs, 1) if was != now)
    yield f"{name}: line {line} differs from the recomputed one"


def _replanned(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """Which runs the settings ask for no more, ask for in addition, or mean otherwise; three of each by name."""
    kinds = {
        "asked for no more": [name for name in then if name not in now],
        "asked for, but not in the plan": [name for name in now if name not in then],
        "of other settings than then": [name for name in then if now.get(name, then[name]) != then[name]],
    }
    for kind, names in kinds.items():
        if names:
            yield f"{CONFIG}: {len(names)} runs {kind}: {', '.join(names[:3])}{' …' if names[3:] else ''}"

"""What the pages promise in passing is so: command lines, options, settings, numbers, names of files and folders."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kdsuite import cli
from kdsuite.config import load, whole_tree
from kdsuite.config.tree import ServedTeacherSettings
from kdsuite.forecast.paper import GPUS
from kdsuite.runtime.tracking import PACKAGES
from kdsuite.tasks.splits import default_validation_size

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "kdsuite"
README = (ROOT / "README.md").read_text("utf-8")
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS, *sorted((ROOT / "studies").rglob("*.md"))]
OTHERS = [
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "configs").glob("*.yaml")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # pyright: ignore[reportAttributeAccessIssue]
OPTIONS = {option for command in COMMANDS.values() for one in command.params for option in one.opts}
FOREIGN = {"--cpus-per-task", "--apply_chat_template", "--cache-type-k"}  # of sbatch, lm_eval, llama.cpp


def said(name: str) -> str:
    """A page in one line."""
    return " ".join((ROOT / name).read_text("utf-8").split())


def prose(path: Path) -> str:
    return BLOCK.sub("", path.read_text("utf-8"))


# --- command lines


def command_lines(path: Path) -> Iterator[str]:
    """Whole lines of blocks and comments, with those that they go on in, and what stands in running text as code."""
    text = path.read_text("utf-8")
    whole = "\n".join(block for _, block in BLOCK.findall(text)) if path.suffix == ".md" else text
    joined = re.sub(r"\\\n[#\s]*", "", whole)
    for line in re.findall(r"^(?:#\s+)?(?:\.venv/bin/)?(kdsuite [a-z].*)$", joined, re.MULTILINE):
        yield re.split(r"\s{2,}|\s#", line)[0]
    yield from re.findall(r"`(kdsuite [a-z][^`\n]*)`", text)


def variants_of(line: str) -> Iterator[list[str]]:
    """`--format md|html` is two commands, `prepare | cache` as many as there are names."""
    words = shlex.split(line.replace(" | ", "|"))[1:]
    count = max(word.count("|") for word in words) + 1
    for n in range(count):
        yield [word.split("|")[min(n, word.count("|"))] for word in words]


LINES = sorted({(path.name, line) for path in [*PAGES, *OTHERS] for line in command_lines(path)})


def test_the_pages_have_commands() -> None:
    assert len({line for _, line in LINES}) > 40 and {page for page, _ in LINES} > {
        "README.md",
        "scale.md",
        "small.yaml",
    }


def misunderstood(line: str) -> Iterator[str]:
    """What the command line says against it; that something is left out is no fault of running text."""
    for name, *arguments in variants_of(line):
        if name not in COMMANDS:
            yield f"{line}: no such command"
            continue
        try:
            COMMANDS[name].make_context(name, arguments)
        except typer.TyperException as error:
            if not re.search("Missing argument|requires an argument", error.format_message()):
                yield f"{line}: {error.format_message()}"


def test_every_command_of_a_page_is_understood() -> None:
    assert [(page, fault) for page, line in LINES for fault in misunderstood(line)] == []


def test_a_command_that_there_is_not_would_be_noticed() -> None:
    for line in ("kdsuite cash", "kdsuite run --exekutor ray", "kdsuite export a b --format pdf", "kdsuite train B0"):
        assert len(list(misunderstood(line))) == 1, line


def test_every_option_that_a_page_names_is_one() -> None:
    named = {(path.name, one) for path in [*PAGES, OTHERS[0]] for one in re.findall(r"`(--[a-z][\w-]*)", prose(path))}
    assert len(named) > 20 and [one for one in named if one[1] not in OPTIONS | FOREIGN] == []


def test_the_commands_that_take_an_executor_are_those_that_the_pages_name() -> None:
    able = {name for name, command in COMMANDS.items() if "--executor" in [o for p in command.params for o in p.opts]}
    [scale] = re.findall(r"The executor of (.*?) only says where", said("docs/scale.md"))
    [durability] = re.findall(r"`--executor processes` \(of (.*?)\)", said("docs/durability.md"))
    assert (
        able
        == set(re.findall(r"`(\w+)`", scale))
        == set(re.findall(r"`(\w+)`", durability))
        == {"run", "cache", "train"}
    )


def test_the_executors_of_the_help_are_those_of_the_page() -> None:
    [shown] = [one.metavar for one in COMMANDS["run"].params if one.name == "executor"]
    rows = re.findall(r"^\| `([a-z]+(?:\[:.*?\])?)` \| ", (ROOT / "docs" / "scale.md").read_text("utf-8"), re.MULTILINE)
    assert shown.split("|") == rows[:4]


def test_exit_codes_are_told_alike() -> None:
    [page] = re.findall(r"Exit codes: (.*?)\.? \*\*", said("README.md"))
    epilog = cli.app.info.epilog or ""
    assert re.findall(r"\d+", page) == re.findall(r"\d+", epilog) == ["0", "1", "2", "130"]


# --- settings


def fields(section: type[BaseModel], place: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All keys below a section, with `*` for what has a name of the user's."""
    for key, field in section.model_fields.items():
        yield place + key, field
        named = "*." if "dict[" in str(field.annotation) else ""
        for one in sections_in(field.annotation):
            yield from fields(one, f"{place}{key}.{named}")


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from sections_in(argument)


FIELDS = dict(fields(whole_tree()))
KEYS = [key.split(".") for key in FIELDS]
LATER = {"tasks.NAME", "models.students.NAME", "teacher.quality.targets"}  # names of any; a part of a record


def is_key(name: str) -> bool:
    """Whether it is a key, from the root or from a section on, with names of tasks and students as they come."""
    parts = name.split(".")
    return any(
        len(key) >= len(parts) and all(a in (b, "*") for a, b in zip(key[-len(parts) :], parts, strict=True))
        for key in KEYS
    )


def test_every_setting_that_a_page_names_is_a_key() -> None:
    sections = {part for key in KEYS for part in key[:-1]}
    code = [text for path in PAGES for text in re.findall(r"`([^`\n]+)`", prose(path))]
    named = {n for text in code for n in re.findall(r"(?<![\w./:-])([a-z_]\w*(?:\.\w+)+)(?![\w(/])", text)}
    of_ours = {n for n in named if n.split(".")[0] in sections and not n.endswith((".py", ".json", ".gguf", ".md"))}
    assert len(of_ours) > 30 and [name for name in sorted(of_ours - LATER) if not is_key(name)] == []


def test_the_keys_are_looked_for_where_they_are() -> None:
    assert is_key("kd1.top_k") and is_key("tasks.any.training.epochs") and is_key("training.checkpoint_minutes")
    assert not is_key("kd1.topk") and not is_key("tasks.any.epochs")


SNIPPETS = [
    (path.name, text)
    for path in PAGES
    if path.name not in ("tasks.md", "extending.md", "configuration.md")  # done in tests of their own, generated
    for kind, text in BLOCK.findall(path.read_text("utf-8"))
    if kind == "yaml"
]


@pytest.mark.parametrize(("page", "text"), SNIPPETS)
def test_every_piece_of_a_configuration_is_understood(page: str, text: str, tmp_path: Path) -> None:
    given = yaml.safe_load(text)
    models = {"teacher": {"name": "a/teacher"}, "students": {"S1": {"name": "a/student"}}}
    models |= given.pop("models", {}) | {key: given.pop(key) for key in ("teacher",) if key in given}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"tasks": {"squad": {}}, "models": models} | given))
    settings = load(tmp_path / "c.yaml", env_file=None)
    assert all(getattr(settings, key) == value for key, value in given.items() if isinstance(value, int))


# --- numbers

WORDS = {3: "three", 4: "four", 5: "five", 7: "seven", 8: "eight", 10: "ten", 50: "fifty"}


def constant(place: str) -> Any:
    """A constant of the source by `file.py::NAME`, without the libraries that the file imports."""
    file, name = place.split("::")
    for node in ast.parse((SOURCE / file).read_text("utf-8")).body:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            pairs = zip(target.elts, value.elts, strict=True) if isinstance(target, ast.Tuple) else [(target, value)]
            for one, its in pairs:  # pyright: ignore[reportGeneralTypeIssues]
                if isinstance(one, ast.Name) and one.id == name:
                    return ast.literal_eval(its)
    raise AssertionError(f"no constant {place}")


def number(place: str) -> str:
    found = constant(place)
    return f"{found:,}" if found >= 1000 else f"{found:g}"


def word(place: str, unit: int = 1) -> str:
    return WORDS[constant(place) / unit]


TWICE = {0.5: "twice"}
BEAT, STALE = number("store/locks.py::BEAT"), word("store/locks.py::STALE", 60)
DEATHS, SHARD = word("executors/processes.py::DEATHS"), number("teacher/shards.py::SHARD")
BUCKET, MINUTES = constant("runtime/device.py::MPS_BUCKET"), FIELDS["tasks.*.training.checkpoint_minutes"].default
NUMBERS = [
    ("README.md", f"at least two seeds and {word('report/pilot.py::FEWEST_GROUPS')} examples"),
    ("README.md", f"Fewer than {word('evaluate/crossed.py::FEWEST_SEEDS')} seeds never show anything"),
    ("README.md", f"at most {WORDS[MINUTES]} minutes of a training are lost (`training.checkpoint_minutes`)"),
    ("docs/tracking.md", f"it has {number('runtime/tracking.py::PATIENCE')} seconds for what is still to be written"),
    ("docs/durability.md", f"each shard of {SHARD} examples"),
    ("docs/durability.md", f"a checkpoint every `checkpoint_minutes` ({MINUTES:g})"),
    ("docs/durability.md", f"answers and reasons, every {number('store/parts.py::EVERY')} seconds"),
    ("docs/durability.md", f"touches every {BEAT} seconds"),
    ("docs/durability.md", f"taken over after {STALE} minutes without a heartbeat"),
    ("docs/durability.md", f"taken over after {STALE} minutes and {BEAT} seconds"),
    ("docs/durability.md", f"a job that kills {DEATHS} workers has failed"),
    ("docs/scale.md", f"and has failed after {DEATHS}."),
    ("docs/scale.md", f"at the address within {word('executors/ray.py::KNOCK')} seconds"),
    ("docs/scale.md", f"reads them {TWICE[constant('executors/exchange.py::LOOK')]} a second"),
    ("docs/scale.md", f"The default is {FIELDS['models.lora.dropout'].default};"),
    ("docs/devices.md", f"at least {number('runtime/device.py::WORTHWHILE')} times as fast counts"),
    ("docs/devices.md", f"has more than {number('runtime/device.py::MPS_TOKENS')} tokens"),
    ("docs/devices.md", f"multiples of {BUCKET} tokens (`MPS_BUCKET`): at most {512 // BUCKET} lengths up to 512"),
    ("docs/devices.md", f"every {number('train/loop.py::MPS_RELEASE_STEPS')} training steps"),
    ("docs/devices.md", f"a difference of more than {constant('models/check.py::GRADIENTS') * 100:.0f} %"),
    ("docs/cache.md", f"{SHARD} examples each"),
    ("docs/teachers.md", f"`kd1.top_k` ({FIELDS['kd1.top_k'].default})"),
    ("docs/teachers.md", f"up to {word('teacher/client.py::ATTEMPTS')} times in all"),
    ("docs/teachers.md", f"longer than {constant('teacher/client.py::DEADLINE') / 60:g} minutes"),
    ("docs/tasks.md", f"({default_validation_size(100)} %, at most {default_validation_size(10**6):,}, or `validation"),
    ("docs/tasks.md", f"first of {', '.join(f'`{name}`' for name in constant('tasks/sources.py::VALIDATION'))};"),
    ("docs/splits.md", f"if it has {word('tasks/overlap.py::LONG')} words or more (`tasks/overlap.py::LONG`)"),
    ("docs/splits.md", f"{constant('tasks/overlap.py::MOST') * 100:.0f} % and more of its runs of"),
    ("docs/splits.md", f"of its runs of {word('tasks/overlap.py::RUN')} words"),
    ("docs/splits.md", f"drawn from {word('tasks/splits.py::ORIGINS')} articles and more"),
    ("docs/statistics.md", f"more than {number('report/doubts.py::FALLEN')} points below the median"),
]


def test_numbers_in_running_text_are_those_of_the_code() -> None:
    assert [(page, phrase) for page, phrase in NUMBERS if phrase not in said(page)] == []


def test_slurm_is_told_to_send_the_signal_as_long_before_the_end_as_the_page_says() -> None:
    slurm = pytest.importorskip("submitit.slurm.slurm")
    seconds = inspect.signature(slurm._make_sbatch_string).parameters["signal_delay_s"].default
    assert f"{seconds} seconds before its time is over a worker gets a signal (USR2)" in said("docs/scale.md")


def test_the_harness_that_the_page_names_is_the_one_that_is_pinned() -> None:
    [pinned] = re.findall(r"^lm_eval==(\S+)", (ROOT / "requirements-lm-eval.txt").read_text(), re.MULTILINE)
    assert f"lm-evaluation-harness) {pinned} computes" in said("docs/models.md")


# --- lists


def column(page: str, head: str, number: int = 0) -> list[str]:
    """The code in a column of the first table of a page whose first head is this, row by row."""
    lines = (ROOT / page).read_text("utf-8").split("\n")
    at = next(n for n, line in enumerate(lines) if line.startswith(f"| {head} |"))
    rows = takewhile(lambda line: line.startswith("|"), lines[at + 2 :])
    return [found for row in rows for found in re.findall(r"`([^`]+)`", row.split(" | ")[number])]


def test_trackers_are_those_that_there_are_and_extras_of_the_package() -> None:
    installed = column("docs/tracking.md", "tracker", 1)
    assert [name for name in installed if name != "mlflow"] == list(PACKAGES.values())  # mlflow: with its pages
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name: extras[name] for name in PACKAGES} == {name: [package] for name, package in PACKAGES.items()}
    folders = column("docs/tracking.md", "tracker", 2)
    assert [Path(folder).parts[:3] for folder in folders] == [("results", "tracking", name) for name in PACKAGES]
    assert f"tracking: [tensorboard] # {', '.join(list(PACKAGES)[1:])}" in said("docs/tracking.md")


def test_servers_are_those_that_can_be_named() -> None:
    known = set(get_args(ServedTeacherSettings.model_fields["api"].annotation)) - {"auto"}
    assert set(column("docs/teachers.md", "server", 1)) == known


def test_machines_on_paper_are_those_of_the_table() -> None:
    [listed] = re.findall(r"machines are (.*?), so many of them as are said", said("docs/scale.md"))
    assert set(re.findall(r"`([^`]+)`", listed)) == set(GPUS)


def test_extras_that_a_page_says_how_to_install_are_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for path in PAGES for name in re.findall(r"kdsuite\[(\w+)\]", path.read_text("utf-8"))}
    assert named >= {"ray", "slurm", "wandb"} and named <= set(extras)


def test_the_rooms_and_the_pages_are_all_named() -> None:
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()} | {
        path.name for path in SOURCE.glob("*.py") if path.name != "__init__.py"
    }
    layout = README[README.index("## Layout") : README.index("## What was not run")]
    table = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for room in rooms:
        assert re.search(rf"(?<![\w/]){re.escape(room)}", layout) and re.search(rf"`{re.escape(room)}/?`", table), room
    assert [page.stem for page in DOCS if page.stem not in layout] == []
    assert [path.name for path in (ROOT / "configs").iterdir() if path.name not in layout] == []

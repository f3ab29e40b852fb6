"""Every command and code block of README and docs is done, in order, as a reader would; small where it would take long.

A command without `--config` runs on `tiny.yaml` instead of the offline configuration. One that needs the hub or
folders that are not here is planned with the same options instead. `make` is asked what it would do.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.torch import load_file

from kdsuite import cli
from kdsuite.config import CONFIGS, GENERATED, Settings, changed, load
from kdsuite.forecast.build import forecast
from kdsuite.forecast.evidence import evidence
from kdsuite.forecast.rows import Forecast, amount
from kdsuite.forecast.scene import Machine
from kdsuite.models.source import hub_models
from kdsuite.plan import expand
from kdsuite.tasks.sizes import hub_data
from machines import Rates

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [(page.name, kind, text) for page in PAGES for kind, text in BLOCK.findall(page.read_text("utf-8"))]
APPLIED = ("extending.md", "tasks.md")  # done in tests of their own: test_extending.py, test_tasks_page.py
PLANNED = ("--config", "--mode", "--task", "--method", "--set")


def commands(text: str) -> list[list[str]]:
    """The commands of a block, without comments, lines that go on joined."""
    lines = text.replace("\\\n", " ").split("\n")
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a checkout's, with a small offline run in it."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "configs", root / "configs")
    for name in (
        ".env.example",
        "Makefile",
        "requirements.txt",
        "requirements-bench.txt",
        "requirements-notebooks.txt",
        "pyproject.toml",
    ):
        shutil.copy(ROOT / name, root)
    shutil.copy(ROOT / "tests" / "tiny.yaml", root)
    assert cli.main(["run", "--config", f"{root}/tiny.yaml", "--results", f"{root}/results"]) == 0
    return root


def do(words: list[str]) -> None:
    """Do one command of a page in the working folder."""
    program, *arguments = words
    if program == "make":
        done = subprocess.run(["make", "--dry-run", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    elif program == "cp":
        shutil.copy(*arguments)
    else:
        assert Path(program).name == "kdsuite", f"no test knows how to do {program!r}"
        assert cli.main(small(arguments)) == 0, shlex.join(words)


def small(arguments: list[str]) -> list[str]:
    """The command as it is if it can be done here, else the plan of what it would do."""
    if "--config" in arguments and arguments[0] != "plan":
        pairs = zip(arguments, arguments[1:], strict=False)
        return ["plan", *(word for pair in pairs if pair[0] in PLANNED for word in pair)]
    return arguments if arguments[0] in ("plan", "status", "export") else [*arguments, "--config", "tiny.yaml"]


def test_every_block_is_of_a_kind_that_something_is_done_with():
    kinds = {kind for page, kind, _ in BLOCKS if page not in APPLIED}
    assert kinds <= {"bash", "python", "yaml", ""}
    commandlike = [text for _, kind, text in BLOCKS if not kind and re.search(r"^(make|\S*bin/|cp) ", text, re.M)]
    assert commandlike == [], "a block with commands is marked bash, so that it is done"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("timed_once")
def test_commands_and_code_do_what_the_page_says(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(project)
    count = 0
    for page, kind, text in BLOCKS:
        if page not in APPLIED and kind == "bash":
            for words in commands(text):
                do(words)
                count += 1
        elif page not in APPLIED and kind == "python":
            exec(compile(text, page, "exec"), {})
            count += 1
    assert count > 8


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_pages_say_of_a_results_folder_lies_in_it(project: Path):
    results, page = project / "results", (ROOT / "docs" / "cache.md").read_text("utf-8")
    places = re.findall(r"^\| `(results/\S+)` \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    there = [place.replace("<run_id>", "KD2_sst2_S1_seed42") for place in places if place != "results/report.md"]
    assert len(there) == 6 and [place for place in there if not (project / place).exists()] == []
    left = {path.name for path in (results / "raw_runs" / "KD2_sst2_S1_seed42").iterdir()}
    assert left == {"run.json", "predictions.jsonl", "history.csv"}
    assert {path.suffix for path in (results / "figures").iterdir()} >= {".png", ".pdf", ".csv"}
    assert (results / "summary" / "narrative.md").exists() and (results / "summary" / "latex").is_dir()
    tree = re.findall(r"^  ([\w*.-]+\.\w+) ", page, re.MULTILINE)
    [cache] = (results / "teacher_cache" / "squad").iterdir()
    assert {path.name for path in cache.iterdir()} - {"seconds.json"} <= set(tree)
    assert [name for name in tree if not list(cache.glob(name))] == ["rationales-*.jsonl", "rationales-*.json"]  # DSS's
    shapes = dict(re.findall(r"^\| `([\w<>]+)` \| `.*?` \| (.*?) \|", page, re.MULTILINE))
    for name, tensor in load_file(cache / "part-00000.safetensors").items():
        kind = shapes[re.sub(r"_\d+$", "_<layer>", name)]
        assert str(tensor.dtype).removeprefix("torch.") in kind, name


def test_the_list_of_commands_names_real_commands_and_options(capsys: pytest.CaptureFixture[str]):
    (listing,) = [t for page, kind, t in BLOCKS if page == "README.md" and not kind and t.startswith("kdsuite run")]
    for line in listing.splitlines():
        usage = re.sub(r"^kdsuite |  .*?(?=\[--|$)", "", line)
        names = re.findall(r"(?<![-\w])[a-z]+\b", usage.split("[")[0].split("--")[0])
        assert names, line
        for name in names:
            assert cli.main([name, "--help"]) == 0
            offered = capsys.readouterr().out
            assert [o for o in re.findall(r"--[a-z]+", line) if o not in offered] == [], line
    for name in re.findall(r"^def (\w+)\(", (ROOT / "src/kdsuite/cli.py").read_text(), re.M):
        if not name.startswith("_") and name not in ("main", "about"):
            assert re.search(rf"\b{name}\b", listing), f"{name} is not in the list of commands"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_a_page_advises_is_one(page: Path):
    advised = re.findall(r"--set (?!k=v)(\w[\w.]*=[^\s`;,]+(?:,\d+)*\]?)", page.read_text("utf-8"))
    load(CONFIGS / "experiment.yaml", sets=advised, env_file=None)
    assert page.name != "README.md" or len(advised) > 8


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "studies").rglob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere_and_figures_are_there(page: Path):
    text = page.read_text("utf-8")
    links = [*re.findall(r"\]\((?!https?:)([^)#]+)", text), *re.findall(r'src="([^"]+)"', text)]
    assert [link for link in links if not (page.parent / link).exists()] == []


README = (ROOT / "README.md").read_text("utf-8")
REAL_PAIR = ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct")


def rows(head: str) -> dict[str, dict[str, str]]:
    """A table of the README by its rows' first cells, then by its columns' heads; `head` begins one of its rows."""
    lines = README.split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith(f"| {head} |"))
    first = max(i for i in range(at) if lines[i].startswith("| | "))
    table = [re.split(r"\s*\|\s*", line.strip("| ")) for line in takewhile(bool, lines[first:])]
    return {name: dict(zip(table[0], cells, strict=True)) for name, *cells in table[2:]}


def configurations() -> dict[str, Settings]:
    """By the heads of the tables' columns."""
    thesis = {f"thesis, {mode}": load(CONFIGS / "experiment.yaml", mode, env_file=None) for mode in ("fast", "full")}
    return {"offline": load(env_file=None), "small": load(CONFIGS / "small.yaml", env_file=None)} | thesis


def test_the_table_of_modes_is_what_the_configurations_say():
    table, every = rows("KD1 grid"), configurations()
    for head, settings in every.items():
        kd1, tasks = settings.kd1, settings.tasks
        sizes, epochs = (
            list(dict.fromkeys(f"{value or 'all'}" for value in values))
            for values in (
                (tasks["sst2"].train_size, tasks["squad"].train_size),
                (f"{tasks['sst2'].training.epochs:g}", f"{tasks['squad'].training.epochs:g}"),
            )
        )
        said = {name: cells[head] for name, cells in table.items()}
        assert said["SST-2 / SQuAD training examples"] == (
            "generated" if tasks["sst2"].source == GENERATED else " / ".join(sizes)
        )
        assert said["epochs"] == " / ".join(epochs)
        assert said["KD1 grid"] == f"T {listed(kd1.temperatures)} × α {listed(kd1.alphas)}"
        assert said["seeds"] == listed(settings.seeds)
        assert said["runs"] == str(len(expand(settings)))


def listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def planned(settings: Settings, dtype: str, gigabytes: float = 1000) -> Forecast:
    machine = Machine("cpu", dtype, round(gigabytes * 1e9), Rates(1e11, 1e11, 2.5e-10))
    return forecast(changed(settings, {"dtype": dtype}), expand(settings), machine)


def test_what_the_thesis_can_show_is_what_its_plan_says():
    thesis = configurations()["thesis, full"]
    sst2, _ = evidence(planned(thesis, "float32"), thesis.report, {}, gain=3)
    said = re.sub(r"\\\n> |\n> ", " ", README)
    assert " ".join(map(str.strip, sst2.lines[:2])) + "\n" in said


class Cost(NamedTuple):
    """What a plan says of disk and memory, as it prints it."""

    download: str
    kept: str
    peak: str
    training: str


def cost(settings: Settings, dtype: str) -> Cost:
    told = planned(settings, dtype)
    fetched = sum(row.bytes or 0 for row in told.disk if row.kind == "download")
    kept = sum(row.bytes or 0 for row in told.disk) - fetched
    training = next(row.bytes or 0 for row in told.memory if row.stage == "train")
    return Cost(*map(amount, (fetched, kept, max(row.bytes or 0 for row in told.memory), training)))


def test_what_small_costs_is_what_its_plan_says():
    small, said = (configurations()["small"], {name: cells["small"] for name, cells in rows("to download").items()})
    told, half = cost(small, "float32"), cost(small, "bfloat16")
    *shown, time = said.values()
    assert shown == [told.download, told.kept, told.peak, half.peak, f"{told.training} / {half.training}"]
    assert {row.fits for row in planned(small, "float32", gigabytes=16).memory} == {True}
    hours = float(re.fullmatch(r"(\d+) hours", time)[1])  # pyright: ignore
    assert 0.5 < planned(small, "float32").seconds / 3600 / hours < 2, "a core of 100 GFLOP/s"


def test_what_offline_costs_is_what_its_plan_says():
    told = cost(configurations()["offline"], "float32")
    _, kept, *memory, _ = (cells["offline"] for cells in rows("to download").values())
    tenths = [f"{float(size.removesuffix(' MB')) / 1e3:.1f} GB" for size in (told.peak, told.training)]
    assert (kept, memory) == (told.kept, [tenths[0], "–", tenths[1]])


def test_what_the_thesis_takes_on_a_core_is_days_and_years():
    fast, full = (planned(configurations()[f"thesis, {mode}"], "float32").seconds / 86400 for mode in ("fast", "full"))
    cells = rows("to download")["time on one CPU core"]
    days = float(re.fullmatch(r"(\d+) days", cells["thesis, fast"])[1])  # pyright: ignore
    assert 0.5 < fast / days < 2 and cells["thesis, full"].startswith("years") and full > 2 * 365


def test_the_runs_that_commands_name_are_there_after_make_run():
    named = {
        id for page, kind, text in BLOCKS if kind == "bash" for id in re.findall(r" (\w+_S\d_[\w.]*seed\d+)", text)
    }
    assert named and named <= {spec.run_id for spec in expand(load(env_file=None))}


@pytest.mark.parametrize("mode", ["fast", "full"])
def test_what_the_thesis_costs_is_what_its_plan_says(mode: str):
    settings, table = configurations()[f"thesis, {mode}"], rows("to download")
    smaller = changed(settings, {"models.teacher.name": "Qwen/Qwen2.5-3B-Instruct", "models.teacher.fallback": None})
    told, half, less = cost(settings, "float32"), cost(settings, "bfloat16"), cost(smaller, "float32")
    *shown, _ = (
        cells["thesis, fast"] if cells[f"thesis, {mode}"] == "the same" else cells[f"thesis, {mode}"]
        for cells in table.values()
    )
    assert shown == [
        f"{less.download} (3B teacher), {told.download} (8B)",
        told.kept if mode == "fast" else f"{half.kept} in bfloat16, {told.kept} in float32 (3B teacher: {less.kept})",
        f"{less.peak} with the 3B teacher, {told.peak} with the 8B",
        f"{half.peak} with the 8B teacher",
        f"{told.training.removesuffix(' GB')} / {half.training}",
    ]


def test_small_is_for_a_real_pair_and_local_for_tiny_models():
    small, local = (load(CONFIGS / name, env_file=None) for name in ("small.yaml", "local.yaml"))
    assert (small.models.teacher.name, small.models.students["S1"].name) == REAL_PAIR
    assert small.models.lora.enabled and not local.models.lora.enabled
    for name in small.tasks:
        assert 100 <= (small.tasks[name].train_size or 0) < 1000 <= (local.tasks[name].train_size or 0)
        assert (small.tasks[name].teacher_training.enabled, local.tasks[name].teacher_training.enabled) == (False, True)
    teacher, student = REAL_PAIR
    there = changed(local, {"models.teacher.name": teacher, "models.students.S1.name": student})
    [gigabytes] = re.findall(r"would need\s+more than (\d+) GB with it", README)
    assert max(row.bytes or 0 for row in planned(there, "float32").memory) > int(gigabytes) * 1e9


@pytest.mark.parametrize("name", ["small.yaml", "local.yaml"])
def test_own_files_and_folders_take_one_set_each_and_no_network(name: str, tmp_path: Path):
    [words] = [
        words
        for page, kind, text in BLOCKS
        if page == "README.md" and kind == "bash"
        for words in commands(text)
        if f"configs/{name}" in words and "--set" in words
    ]
    sets = [item for option, item in zip(words, words[1:], strict=False) if option == "--set"]
    assert [item.split("=")[0] for item in sets] == [
        "tasks.sst2.source", "tasks.squad.source", "models.teacher.name", "models.students.S1.name"
    ]  # fmt: skip
    here = [f"{item.split('=')[0]}={tmp_path}" for item in sets]
    settings = load(CONFIGS / name, sets=here, env_file=None)
    assert hub_models(settings) == [] and hub_data(settings) == {}
    assert hub_models(load(CONFIGS / "small.yaml", sets=here[:2], env_file=None)) != []

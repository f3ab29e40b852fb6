"""Every command and code block of README and docs is done, in order, as a reader would; small where it would take long.

A command without `--config` runs on `tiny.yaml` instead of the offline configuration. One that needs the hub or
folders that are not here is planned with the same options instead. `make` is asked what it would do.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from kdsuite import cli
from kdsuite.config import CONFIGS, load

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [(page.name, kind, text) for page in PAGES for kind, text in BLOCK.findall(page.read_text("utf-8"))]
APPLIED = "extending.md"  # its blocks are files and changes: see test_extending.py
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
    return (
        arguments if arguments[0] in ("plan", "status", "export") else [*arguments, "--config", "tiny.yaml"]
    )


def test_every_block_is_of_a_kind_that_something_is_done_with():
    kinds = {kind for page, kind, _ in BLOCKS if page != APPLIED}
    assert kinds <= {"bash", "python", "yaml", ""}
    commandlike = [
        text for _, kind, text in BLOCKS if not kind and re.search(r"^(make|\S*bin/|cp) ", text, re.M)
    ]
    assert commandlike == [], "a block with commands is marked bash, so that it is done"


@pytest.mark.timeout(600)
def test_commands_and_code_do_what_the_page_says(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(project)
    count = 0
    for page, kind, text in BLOCKS:
        if page != APPLIED and kind == "bash":
            for words in commands(text):
                do(words)
                count += 1
        elif page != APPLIED and kind == "python":
            exec(compile(text, page, "exec"), {})
            count += 1
    assert count > 8


def test_the_list_of_commands_names_real_commands_and_options(capsys: pytest.CaptureFixture[str]):
    (listing,) = [
        t for page, kind, t in BLOCKS if page == "README.md" and not kind and t.startswith("kdsuite run")
    ]
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_figures_are_there(page: Path):
    text = page.read_text("utf-8")
    links = [*re.findall(r"\]\((?!https?:)([^)#]+)", text), *re.findall(r'src="([^"]+)"', text)]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_table_of_modes_is_what_the_configurations_say():
    text = (ROOT / "README.md").read_text("utf-8")
    row = {
        cells[0]: cells[1:]
        for cells in (re.split(r"\s*\|\s*", line.strip("| ")) for line in text.split("\n"))
    }
    fast, full = (load(CONFIGS / "experiment.yaml", mode=mode, env_file=None) for mode in ("fast", "full"))
    offline = load(env_file=None)
    assert row["seeds"] == [", ".join(map(str, s.seeds)) for s in (offline, fast, full)]
    assert row["SST-2 / SQuAD training examples"][1] == " / ".join(
        str(fast.tasks[task].train_size) for task in ("sst2", "squad")
    )
    assert full.tasks["sst2"].train_size is full.tasks["squad"].train_size is None
    grid = f"T {', '.join(f'{t:g}' for t in full.kd1.temperatures)} × α {', '.join(f'{a:g}' for a in full.kd1.alphas)}"
    assert row["KD1 grid"][2] == grid
    from kdsuite.plan import expand

    assert row["runs"] == [str(len(expand(s))) for s in (offline, fast, full)]

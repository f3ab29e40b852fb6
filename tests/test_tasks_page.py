"""docs/tasks.md, done word by word: its data, its tasks and its commands; and `kdsuite init` and `task` beyond it."""

from __future__ import annotations

import io
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml

from kdsuite.cli import main
from kdsuite.config import load

PAGE = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = [
    line.split("#")[0].strip() for block in re.findall(r"^```sh\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]  # fmt: skip
SMALL = """
threads: 1
dtype: float32
seeds: [1]
models: {offline: {pretraining_steps: 4}}
benchmark: {batch_sizes: [1], new_tokens: 2, blocks: 1, memory: false, quantize: [], answers: 2}
kd1: {temperatures: [2], alphas: [0.5]}
tasks:
  tickets: {train_size: 24, validation_size: 16, training: {epochs: 1}}
  places: {train_size: 24, validation_size: 16, training: {epochs: 1}}
  sums: {train_size: 24, validation_size: 16, training: {epochs: 1}}
"""


def leaves(tree: dict, place: str = ""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{place}{key}.")
        else:
            yield f"{place}{key}={json.dumps(value)}"


SETS = [part for leaf in leaves(yaml.safe_load(SMALL)) for part in ("--set", leaf)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files and data."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    runpy.run_path(str(tmp_path / "make_data.py"))
    return tmp_path


def test_the_page_has_its_files_and_commands() -> None:
    assert set(FILES) == {"make_data.py", "tickets.yaml", "mine.yaml", "raw.yaml"}
    assert [c for c in COMMANDS if c.startswith("kdsuite run")] == [
        "kdsuite run --config mine.yaml", "kdsuite run --config mine.yaml --results results-mine",
        "kdsuite run --config raw.yaml --results results-raw"
    ]  # fmt: skip


def test_the_page_s_tasks_are_what_it_says(here: Path) -> None:
    tasks = load(here / "mine.yaml", env_file=None).tasks
    assert {name: task.kind for name, task in tasks.items()} == {
        "tickets": "classification", "places": "short_answer", "sums": "generation"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_s_commands_reach_the_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [*_, task, plan, run, raw] = [shlex.split(command)[1:] for command in COMMANDS]
    assert main(task) == 0
    shown = capsys.readouterr().out
    assert "shots 2 (validation is carved out of train, by group)" in shown and "<|im_end|>⟧" in shown
    assert main([*plan, *SETS]) == 0
    assert main([*run, *SETS]) == 0
    results = here / "results-mine"
    records = [json.loads(path.read_text()) for path in sorted(results.glob("raw_runs/*/run.json"))]
    assert len(records) == 3 * (1 + 1 + 4) and {record["status"] for record in records} == {"completed"}
    page = (results / "report.html").read_text(encoding="utf-8")
    assert all(title in page for title in ("Tickets", "places", "sums"))
    pairs = zip(SETS[::2], SETS[1::2], strict=True)
    tickets = [part for pair in pairs if not re.search("places|sums", pair[1]) for part in pair]
    assert main([*raw, *tickets]) == 0
    told = (here / "results-raw" / "report.html").read_text(encoding="utf-8")
    assert "learned from the teacher on up to 120 inputs without targets, too" in " ".join(told.split())
    assert (results / "summary" / "table_4_1_main_results.csv").read_text().count("\n") > 12


def test_init_writes_what_plan_can_read(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--teacher", "offline-teacher", "--student", "offline-student"]
    for data, kind in (
        ("tickets.csv", "classification"),
        ("places.jsonl", "short_answer"),
        ("sums.parquet", "generation"),
    ):
        columns = {
            "tickets.csv": ["--target", "queue", "--input", "subject", "--input", "body"],
            "sums.parquet": ["--target", "solution"],
        }
        assert main(["init", f"{kind}.yaml", "--data", data, *given, *columns.get(data, [])]) == 0
        [task] = load(here / f"{kind}.yaml", env_file=None).tasks.values()
        assert task.kind == kind
    assert "next: kdsuite task --config" in capsys.readouterr().out
    tickets = yaml.safe_load((here / "classification.yaml").read_text())["tasks"]["tickets"]
    assert tickets["labels"] == ["account", "billing", "other", "technical"]
    assert main(["plan", "--config", "classification.yaml"]) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["mine.yaml", "--data", "tickets.csv"], "mine.yaml is there already; give another name"),
        (["new.yaml"], "Give --data, as there is no terminal to ask at"),
        (["new.yaml", "--data", "absent.csv"], "no data file absent.csv"),
        (["new.yaml", "--data", "tickets.csv"], "Give --target, as there is no terminal to ask at"),
        (["new.yaml", "--data", "tickets.csv", "--target", "queue"], "Give --input, as there is no terminal to ask at"),
        (
            ["absent/new.yaml", "--data", "places.jsonl"],
            "absent/new.yaml cannot be written (No such file or directory)",
        ),
        (["new.yaml", "--data", "places.jsonl", "--device", "gpu"], "unknown device 'gpu'; take auto, mps, cuda"),
        (
            ["new.yaml", "--data", "sums.parquet", "--target", "problem", "--kind", "classification", "--input", "x"],
            "sums.parquet: no column 'x'",
        ),
        (
            ["new.yaml", "--data", "tickets.csv", "--target", "que"],
            "tickets.csv: no column 'que'; did you mean 'queue'?",
        ),
        (
            ["new.yaml", "--data", "tickets.csv", "--kind", "classify", "--target", "queue"],
            "unknown kind 'classify'; did you mean",
        ),
    ],
)
def test_init_refuses_in_one_line_and_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    before = sorted(path.name for path in here.iterdir())
    assert main(["init", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert told in line
    assert sorted(path.name for path in here.iterdir()) == before


def test_task_says_what_is_wrong_in_one_line_and_leaves_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "tickets.csv").write_text("subject,body,queue,Ticket,customer\na,b,billin,1,1\n")
    before = sorted(path.name for path in here.iterdir())
    assert main(["task", "tickets.yaml"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "tickets.csv, line 2: column 'queue': 'billin' is none of the labels; did you mean 'billing'?" in line
    assert main(["task", "absent.yaml"]) == 2
    assert "file absent.yaml cannot be read" in capsys.readouterr().err
    assert sorted(path.name for path in here.iterdir()) == before


def test_the_page_s_init_writes_its_configuration(here: Path) -> None:
    (here / "mine.yaml").unlink()
    [init] = [shlex.split(command)[1:] for command in COMMANDS if command.startswith("kdsuite init")]
    assert main(init) == 0
    assert load(here / "mine.yaml", env_file=None).tasks["tickets"].kind == "classification"


def test_init_asks_for_what_it_cannot_see(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO("tickets.csv\nqueue\n\nsubject, body\noffline-teacher\noffline-student\n\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("typer._click.termui.visible_prompt_func", lambda _: terminal.readline().rstrip("\n"))
    assert main(["init", "asked.yaml"]) == 0
    [task] = load(here / "asked.yaml", env_file=None).tasks.values()
    assert (task.kind, task.columns.target) == ("classification", "queue")  # the kind was proposed, and taken
    assert "Kind of task" in capsys.readouterr().out


def test_init_reads_every_file_and_split(here: Path) -> None:
    for name, labels in (("train-1", "ab"), ("train-2", "bc"), ("test", "ad")):
        rows = "".join(f"{name} {i},{labels[i % 2]}\n" for i in range(60))
        (here / f"{name}.csv").write_text(f"text,label\n{rows}")
    assert main(["init", "folder.yaml", "--data", "."]) == 0
    written = (here / "folder.yaml").read_text()
    assert yaml.safe_load(written)["tasks"]["mine"]["labels"] == ["a", "b", "c", "d"]
    assert "# reported split: 60 rows of its own" in written


def test_init_sees_conversations(here: Path) -> None:
    turns = [[{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": str(i)}] for i in range(60)]
    (here / "chat.jsonl").write_text("\n".join(json.dumps({"messages": turn}) for turn in turns))
    assert main(["init", "chat.yaml", "--data", "chat.jsonl", "--teacher", "offline-teacher"]) == 0
    task = yaml.safe_load((here / "chat.yaml").read_text())["tasks"]["chat"]
    assert (task["kind"], task["columns"]) == ("generation", {"messages": "messages"})


def test_task_tells_repetitions_lengths_and_absent_labels_and_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(f"word {i} \x1b[31m", "yes" if i % 2 else "no") for i in range(60)]
    rows += [(text, label) for text in ("again", "twice") for label in ("yes", "no")] * 2
    rows += [(f"{i} " + "long " * 200, "yes") for i in range(9)]
    (here / "held.csv").write_text("text,label\nword 7 \x1b[31m,no\n")
    (here / "odd.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    (here / "odd.yaml").write_text(
        "{kind: classification, source: odd.csv, splits: {validation: held.csv}, dev_size: 1, "
        "labels: ['yes', 'no', maybe], max_length: 64}"
    )
    before = sorted(path.name for path in here.iterdir())
    assert main(["task", "odd.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "note: no training example is 'maybe'" in shown
    assert re.search(r"have the inputs of another, [12] inputs several targets", shown)
    assert re.search(r"[89] are longer: the run would refuse them", shown)
    assert "validation 1\n" in shown and re.search(r"note: .*validation", shown)
    assert "\x1b" not in shown and "\\x1b" in shown
    assert sorted(path.name for path in here.iterdir()) == before


def test_task_says_that_a_model_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "gone.yaml").write_text(FILES["mine.yaml"].replace("offline-teacher", "./nowhere"))
    assert main(["task", "--config", "gone.yaml", "--task", "tickets"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "no model folder ./nowhere" in line

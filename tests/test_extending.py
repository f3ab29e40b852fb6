"""docs/extending.md, done word by word: a package outside is built and installed, and its tasks and methods are run."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from kdsuite.cli import main
from kdsuite.config.plugins import plugins
from kdsuite.config.tree import whole_tree
from kdsuite.tasks.example import Example

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:^`(?P<file>\S+)`:\n\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL | re.MULTILINE)
BLOCKS = [m.groupdict() for m in BLOCK.finditer((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))]
WORDS = ["awful", "poor", "fair", "good", "superb"]  # of one to five stars


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's package, installed into `installed`, its data and its configuration."""
    root = tmp_path_factory.mktemp("extended")
    (root / "package").mkdir()
    for block in BLOCKS:
        if block["file"]:
            (root / "package" / block["file"]).write_text(block["text"], encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps",
         "--no-build-isolation", "--target", str(root / "installed"), str(root / "package")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name, count in (("train", 60), ("test", 20)):
        written(root / "data" / "reviews" / f"{name}.jsonl", reviews(count, name))
        amounts = [{"question": f"How much is {i} times {name} 10?", "answer": 10 * i} for i in range(count)]
        written(root / "data" / "amounts" / f"{name}.jsonl", amounts)
    (root / "own.yaml").write_text(yaml.safe_dump(configuration()))
    return root


def written(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def reviews(count: int, seed: str) -> list[dict]:
    rng = random.Random(seed)
    stars = [rng.randint(1, 5) for _ in range(count)]
    return [{"text": f"A {WORDS[n - 1]} thing, {i} of {seed}", "stars": n} for i, n in enumerate(stars)]


def configuration() -> dict:
    """The page's own YAML and what makes it small."""
    tree: dict = {}
    for block in BLOCKS:
        tree |= yaml.safe_load(block["text"]) if block["kind"] == "yaml" else {}
    small = {"training": {"epochs": 1, "batch_size": 8}, "dev_size": 12}
    amounts = small | {"kind": "amounts", "title": "Amounts", "source": "data/amounts", "max_new_tokens": 4}
    return tree | {
        "tasks": {"reviews": tree["tasks"]["reviews"] | small, "amounts": amounts},
        "threads": 1,
        "seeds": [42],
        "models": {
            "teacher": {"name": "offline-teacher"},
            "students": {"small": {"name": "offline-student"}},
            "lora": {"enabled": False},
            "offline": {"pretraining_steps": 4},
        },
        "kd1": {"temperatures": [2], "alphas": [0.5]},
        "benchmark": {"batch_sizes": [1], "new_tokens": 2, "blocks": 1, "memory": False, "quantize": [], "answers": 2},
        "report": {"permutations": 100},
    }


@pytest.fixture
def installed(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process in the folder, with the page's package, which a new process would take seconds to import."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place / "installed"))
    plugins.cache_clear()
    whole_tree.cache_clear()
    yield
    plugins.cache_clear()
    whole_tree.cache_clear()


def kdsuite(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(place / "installed"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kdsuite.cli", *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def test_a_method_and_a_task_are_one_file_and_one_line_each() -> None:
    files = [block["file"] for block in BLOCKS if block["file"]]
    assert files == ["pyproject.toml", "stars.py", "amounts.py", "label_smoothing.py", "confidence.py"]
    lines = re.findall(r'^(\w+) = "(\w+):\w+"$', BLOCKS[0]["text"], re.MULTILINE)
    assert [f"{module}.py" for _, module in lines] == files[1:]


def test_a_kind_of_its_own_says_what_the_given_ones_cannot(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(place / "installed"))
    sections = yaml.safe_load((place / "own.yaml").read_text())["tasks"]
    kinds = {"reviews": import_module("stars").Stars, "amounts": import_module("amounts").Amounts}
    stars, amounts = (kind(name, kind.Settings.model_validate(sections[name])) for name, kind in kinds.items())
    assert stars.aggregate(["5", "4", "1", "2"], [("5",), ("5",), ("5",), ("1",)]) == {
        "accuracy": 25.0, "within_one": 75.0, "n": 4,
    }  # fmt: skip
    example = Example("a", {"question": "How much?"}, "1200", ("1200",), "g")
    assert amounts.clean("Three times 400 is 1,200.", example) == "1200" and amounts.clean("Much.", example) == ""
    assert amounts.score("1,200 euros", ("1200",)) == {"exact_match": 1.0, "close": 1.0}
    assert amounts.score("1150", ("1200",)) == {"exact_match": 0.0, "close": 1.0}
    assert amounts.score("much", ("1200",)) == amounts.score("12", ("1200",)) == {"exact_match": 0.0, "close": 0.0}


@pytest.mark.slow
def test_installed_tasks_and_methods_run_from_data_to_report(place: Path) -> None:
    done = kdsuite(place, "run", "--config", "own.yaml")
    assert done.returncode == 0, done.stderr
    raw, summary = place / "results" / "raw_runs", place / "results" / "summary"
    record = json.loads((raw / "CKD_reviews_small_g0.3_seed42" / "run.json").read_text())
    assert record["spec"]["point"] == {"gamma": 0.3}
    assert record["metrics"]["validation"].keys() == {"accuracy", "within_one", "n"}
    free = json.loads((raw / "LS_amounts_small_e0.1_seed42" / "run.json").read_text())
    assert free["metrics"]["validation"].keys() == {"exact_match", "close", "n", "cleaned_exact_match", "cleaned_close"}
    history = (raw / "CKD_reviews_small_g0.3_seed42" / "history.csv").read_text()
    assert "loss_kd" in history.split("\n")[0]
    with (summary / "table_4_1_main_results.csv").open() as file:
        rows = {(row["task"], row["method"]) for row in csv.DictReader(file)}
    assert rows >= {(task, method) for task in ("reviews", "amounts") for method in ("B0", "KD1", "LS", "CKD")}
    significance = (summary / "table_4_3_significance.csv").read_text()
    assert "LS vs B0" in significance and "CKD vs B0" in significance
    assert "CKD" in (place / "results" / "figures" / "fig_4_3_kd_comparison.csv").read_text()
    page = (place / "results" / "report.html").read_text(encoding="utf-8")
    for words in ("Reviews", "Amounts", "CKD γ=0."):
        assert words in page, words


@pytest.mark.slow
def test_they_are_known_to_the_command_line_and_to_the_plan(installed: None, capsys) -> None:
    assert main(["plan", "--config", "own.yaml", "--task", "reviews", "--method", "LS"]) == 0
    told = capsys.readouterr().out
    assert "LS" in told and "KD1" not in told.split("memory")[0]
    assert main(["plan", "--config", "own.yaml", "--method", "LSS"]) == 2
    assert "did you mean 'LS'?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("tasks.reviews.source=bad", "train.jsonl, line 2: column 'stars': '9' is none of the labels"),
        ("tasks.reviews.trainsize=3", "did you mean 'tasks.reviews.train_size'?"),
        ("tasks.reviews.kind=star", "did you mean 'stars'?"),
        ("confidence.threshold=[1]", "did you mean 'confidence.thresholds'?"),
        ("confidence.thresholds=[2]", "confidence.thresholds.0"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_place(place: Path, installed: None, capsys, change: str, said: str) -> None:
    for name in ("train", "test"):
        written(place / "bad" / f"{name}.jsonl", [{"text": "Rain", "stars": 1}, {"text": "Sun", "stars": 9}])
    assert main(["prepare", "--config", "own.yaml", "--results", "none", "--set", change]) == 2
    errors = capsys.readouterr().err
    told = [line for line in errors.strip().split("\n") if not line.startswith("device ")]
    assert len(told) == 1 and said in told[0], errors


def test_a_package_that_cannot_be_loaded_is_named(place: Path) -> None:
    broken = place / "broken"
    info = broken / "broken-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[kdsuite.methods]\nx = nowhere:X\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(broken), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "kdsuite.cli", "prepare", "--results", "none"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'x' of kdsuite.methods cannot be loaded from nowhere:X" in done.stderr

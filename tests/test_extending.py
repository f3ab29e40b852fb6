"""docs/extending.md, done word by word to a copy of the package, and run."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kdsuite.methods import losses
from kdsuite.methods.registry import METHODS
from kdsuite.tasks.presets import Squad, Sst2

TASKS = {"sst2": Sst2(), "squad": Squad()}

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"(?:^`(?P<file>\S+)`[^\n]*:\n\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL | re.MULTILINE
)
BLOCKS = [m.groupdict() for m in BLOCK.finditer((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))]
WORDS = {
    "business": ["shares", "rates", "merger", "profit"],
    "science": ["planet", "gene", "vaccine", "telescope"],
    "sports": ["final", "goal", "coach", "season"],
    "world": ["treaty", "border", "election", "summit"],
}


def apply(text: str, diff: str) -> str:
    """Change a text as a diff says: the old lines of each of its parts must be there exactly once."""
    for part in re.split(r"^@@.*\n", diff, flags=re.MULTILINE):
        lines = part.rstrip("\n").split("\n")
        old = "\n".join(line[1:] for line in lines if not line.startswith("+"))
        new = "\n".join(line[1:] for line in lines if not line.startswith("-"))
        if part:
            assert text.count(old) == 1, f"not there, or not once: {old}"
            text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the page's blocks done to it."""
    root = tmp_path_factory.mktemp("extended")
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for block in BLOCKS:
        if block["file"] is None:
            continue
        path = root / block["file"]
        changed = apply(path.read_text(), block["text"]) if block["kind"] == "diff" else block["text"]
        path.write_text(changed, encoding="utf-8")
    return root


def headlines(path: Path, count: int, seed: int) -> None:
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        label = rng.choice(sorted(WORDS))
        text = f"{rng.choice(WORDS[label])} and {rng.choice(WORDS[label])} {number + 1000 * seed}"
        rows.append(json.dumps({"text": text, "label": label}))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def configuration(root: Path) -> Path:
    """The page's own YAML and what makes it small."""
    tree = {}
    for block in BLOCKS:
        tree |= yaml.safe_load(block["text"]) if block["kind"] == "yaml" else {}
    tree["tasks"]["topics"] |= {"quality_floor": 0, "training": {"epochs": 1, "batch_size": 8}}
    tree |= {
        "threads": 1,
        "seeds": [42],
        "models": {
            "teacher": {"name": "offline-teacher"},
            "students": {"S1": {"name": "offline-student"}},
            "lora": {"enabled": False},
            "offline": {"pretraining_steps": 4},
        },
        "kd1": {"temperatures": [2], "alphas": [0.5]},
        "benchmark": {"batch_sizes": [1], "new_tokens": 2, "blocks": 1, "memory": False, "quantize": []},
        "report": {"bootstrap_samples": 100, "permutations": 100},
    }
    path = root / "topics.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def kdsuite(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kdsuite.cli", *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def test_the_page_has_a_whole_task_and_a_whole_method():
    files = [Path(block["file"]).name for block in BLOCKS if block["file"]]
    assert files == ["topics.py", "registry.py", "tree.py", "losses.py", "registry.py"]
    assert [block["kind"] for block in BLOCKS] == ["python", "diff", "diff", "yaml", "diff", "diff", "yaml"]


def test_the_new_task_and_the_new_method_run_from_data_to_report(extended: Path):
    (extended / "data" / "topics").mkdir(parents=True)
    headlines(extended / "data" / "topics" / "train.jsonl", 60, seed=1)
    headlines(extended / "data" / "topics" / "test.jsonl", 20, seed=2)
    config = str(configuration(extended))
    done = kdsuite(extended, "run", "--config", config)
    assert done.returncode == 0, done.stderr
    record = json.loads((extended / "results/raw_runs/LS_topics_S1_seed42/run.json").read_text())
    assert record["metrics"]["validation"].keys() == {"accuracy", "macro_f1", "n"}
    table = (extended / "results/summary/table_4_1_main_results.csv").read_text()
    assert [f"topics,S1,{method}," in table for method in ("B0", "LS", "KD1")] == [True] * 3
    assert "LS vs B0" in (extended / "results/summary/table_4_3_significance.csv").read_text()


def test_the_new_task_names_the_line_of_a_bad_row_and_the_new_key_is_checked(extended: Path):
    (extended / "bad").mkdir()
    headlines(extended / "bad" / "test.jsonl", 3, seed=2)
    rows = [{"text": "Rain", "label": "world"}, {"text": "Sun", "label": "weather"}]
    (extended / "bad" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = str(configuration(extended))
    bad = kdsuite(extended, "prepare", "--config", config, "--set", "tasks.topics.source=bad")
    assert bad.returncode == 2
    assert "train.jsonl, line 2: no label 'weather'" in bad.stderr
    misspelt = kdsuite(extended, "plan", "--config", config, "--set", "tasks.topisc.source=bad")
    assert misspelt.returncode == 2
    assert "did you mean tasks.topics?" in misspelt.stderr.replace("'", "")


def test_settings_and_registry_name_the_same_tasks():
    assert set(TasksSettings.model_fields) == set(TASKS)


def test_every_method_names_a_loss_that_is_there():
    assert all(callable(getattr(losses, method.loss)) for method in METHODS.values())

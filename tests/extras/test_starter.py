"""What `kdsuite init` writes is what the data ask for, whatever they are called (its errors: `test_tasks_page.py`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from kdsuite.config import load
from kdsuite.extras.starter import Wishes, write

ROWS = "".join(f"film {i},scene {i},part {i},{'good' if i % 2 else 'bad'}\n" for i in range(60))


def written(path: Path, data: str, **wishes: object) -> dict[str, object]:
    """The one task of a configuration for these data."""
    write(path, Wishes(data, **wishes), None)  # pyright: ignore[reportArgumentType]
    load(path, env_file=None)
    [task] = yaml.safe_load(path.read_text(encoding="utf-8"))["tasks"].items()
    return dict([task])


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("2024.csv", "2024"),
        ("2024-01-01.csv", "2024-01-01"),
        ("no.csv", "no"),
        ("teacher.csv", "my-teacher"),
        (f"{'long-' * 20}.csv", ("long-" * 12)[:-1]),
        ("плохо.csv", "mine"),
        ("film reviews.csv", "film-reviews"),
    ],
)
def test_a_file_of_any_name_makes_a_task(file: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(file).write_text(f"title,scene,part,label\n{ROWS}", encoding="utf-8")
    assert list(written(Path("mine.yaml"), file, input=["title"], target="label")) == [name]


def test_columns_whose_names_become_the_same_word_are_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("films.csv").write_text(f"Title,title,2nd part,label\n{ROWS}")
    asked = written(Path("mine.yaml"), "films.csv", input=["Title", "title", "2nd part"], target="label")
    columns = asked["films"]["columns"]["input"]  # pyright: ignore[reportIndexIssue]
    assert list(columns.values()) == ["Title", "title", "2nd part"] and all(word.isidentifier() for word in columns)


def test_columns_that_the_first_row_lacks_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"q {i}", "answer": "a", **({"context": f"a {i}"} if i else {})} for i in range(60)]
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    [task] = written(Path("mine.yaml"), "asked.jsonl").values()
    assert task["kind"] == "short_answer"  # pyright: ignore[reportIndexIssue]

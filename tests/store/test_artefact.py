"""What was made is trusted when it is whole, unaltered and of these inputs, and made anew when not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdsuite.store.artefact import Artefact, altered
from kdsuite.store.files import atomic_write_json, content_fingerprint

KEY = {"model": "a", "sizes": (1, 2)}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path: Path, said: list[str]) -> Artefact:
    """A folder artefact that is there."""
    artefact = Artefact(tmp_path / "data", KEY, said.append, "the examples are made anew")
    artefact.build(fill)
    return artefact


def fill(folder: Path) -> dict[str, int]:
    (folder / "train.jsonl").write_text("one\ntwo\n")
    (folder / "deep").mkdir()
    (folder / "deep" / "weights").write_bytes(bytes(100))
    return {"examples": 2}


def refuse(folder: Path) -> None:
    raise AssertionError("it is there")


def test_a_folder_is_built_once_and_found_again(folder: Artefact, said: list[str]):
    record = Artefact(folder.path, {"sizes": [1, 2], "model": "a"}, said.append).get_or_build(refuse)
    assert (record["key"], record["examples"]) == ({"model": "a", "sizes": [1, 2]}, 2)
    assert sorted(record["files"]) == ["deep/weights", "train.jsonl"]
    assert said == []


def test_what_was_never_made_is_not_told(tmp_path: Path, said: list[str]):
    for name in ("data", "note.json"):
        assert Artefact(tmp_path / name, KEY, said.append).read() is None
    assert said == []


def test_another_key_is_another_artefact_and_replaces_the_folder_entirely(folder: Artefact, said: list[str]):
    other = Artefact(folder.path, "other", said.append)
    assert other.read() is None
    other.get_or_build(lambda empty: (empty / "new").write_text("x") and None)
    assert sorted(p.name for p in folder.path.iterdir()) == ["manifest.json", "new"]
    assert folder.read() is None
    assert said == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "emptied"])
@pytest.mark.parametrize("name", ["train.jsonl", "deep/weights", "manifest.json"])
def test_damage_is_told_and_the_folder_built_anew(folder: Artefact, said: list[str], name: str, damage: str):
    path, before = folder.path / name, content_fingerprint(folder.path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    match damage:
        case "cut":
            os.truncate(path, len(data) // 2)
        case "flipped":
            path.write_bytes(data)
        case "missing":
            path.unlink()
        case "emptied":
            path.write_bytes(b"")
    assert folder.read() is None
    folder.get_or_build(fill)
    assert len(said) == 2 and said[0] == said[1]
    assert said[0].startswith(f"{folder.path} is not used: ")
    assert said[0].endswith("; the examples are made anew")
    assert name == "manifest.json" or f"{name} missing or altered" in said[0]
    assert content_fingerprint(folder.path) == before


@pytest.mark.parametrize("content", [[], None, "text", {"files": {}}, {"key": "k"}, {"key": "k", "files": [1]}])
def test_json_that_is_no_record_is_told(tmp_path: Path, said: list[str], content: object):
    atomic_write_json(tmp_path / "note.json", content)
    assert Artefact(tmp_path / "note.json", "k", said.append).read() is None
    assert said == [f"{tmp_path / 'note.json'} is not used: not the record of an artefact; it is made anew"]


def test_a_build_that_fails_or_is_interrupted_leaves_the_old_folder(folder: Artefact):
    def interrupted(empty: Path) -> None:
        (empty / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.build(interrupted)
    assert folder.read() is not None
    assert [p.name for p in folder.path.parent.iterdir()] == ["data"]


@pytest.mark.parametrize("at", ["in the making", "before the seal"])
def test_a_process_killed_while_building_leaves_nothing_that_is_trusted(tmp_path: Path, at: str):
    code = (
        "import os, sys; from pathlib import Path; from kdsuite.store import artefact\n"
        "def make(folder):\n    (folder / 'half').write_text('x')\n    if sys.argv[2] == 'in the making': os._exit(9)\n"
        "artefact.atomic_write_record = lambda *about: os._exit(9)\n"
        "artefact.Artefact(Path(sys.argv[1]), 'key').build(make)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "data"), at])
    assert done.returncode == 9
    artefact = Artefact(tmp_path / "data", "key")
    assert artefact.read() is None
    assert len(list(tmp_path.glob(".tmp-*"))) == 1
    artefact.build(fill)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_record_seals_files_and_folders_wherever_they_lie(tmp_path: Path, said: list[str]):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").write_text("drawn")
    (tmp_path / "page.html").write_text("page")
    path = tmp_path / "summary" / "manifest.json"
    report = Artefact(path, "key", said.append, root=tmp_path)
    written = report.write(["figures", "page.html"], lines=["done"])
    assert report.read() == written and written["lines"] == ["done"]
    (tmp_path / "figures" / "b.png").write_text("added")
    assert report.read() is None
    assert said == [f"{path} is not used: figures missing or altered; it is made anew"]


def test_a_record_alone_holds_its_facts(tmp_path: Path):
    note = Artefact(tmp_path / "note.json", KEY)
    note.write(reason="out of memory")
    assert (note.read() or {})["reason"] == "out of memory"
    assert Artefact(note.path, "other").read() is None


def test_altered_names_what_is_not_as_it_was(tmp_path: Path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    files = {name: content_fingerprint(tmp_path / name) for name in ("a", "b", "absent")}
    (tmp_path / "b").write_text("3")
    assert altered(tmp_path, files) == ["b", "absent"]

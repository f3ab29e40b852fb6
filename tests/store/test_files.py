"""Files that are whole or not there, canonical JSON, and fingerprints that change with the content."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsuite.store import files

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a" / "run.json"
    files.atomic_write_text(path, "old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        files.atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["run.json"]


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "run.json"
    files.atomic_write_text(path, "old")
    code = (
        "import os, sys; from pathlib import Path; from kdsuite.store import files\n"
        "os.fsync = lambda descriptor: os._exit(9)\n"
        "files.atomic_write_text(Path(sys.argv[1]), 'new')"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 9
    assert path.read_text() == "old"
    assert len(list(tmp_path.glob(".tmp-*"))) == 1
    files.remove_temporaries(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_text_is_written_as_given(tmp_path: Path):
    files.atomic_write_text(tmp_path / "t", "é\r\n ü\n")
    assert (tmp_path / "t").read_bytes() == "é\r\n ü\n".encode()


@given(JSON)
def test_json_survives_the_round_trip(tmp_path_factory: pytest.TempPathFactory, obj: object):
    path = tmp_path_factory.mktemp("json") / "x.json"
    files.atomic_write_json(path, obj)
    assert files.read_json(path) == obj


def test_json_does_not_depend_on_the_order_of_keys(tmp_path: Path):
    files.atomic_write_json(tmp_path / "a", {"b": 1, "a": {"d": 1, "c": 2}})
    files.atomic_write_json(tmp_path / "b", {"a": {"c": 2, "d": 1}, "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_by_its_place(tmp_path: Path, number: float):
    with pytest.raises(ValueError, match=r"metrics\.dev\.0 \(.*\) is not a finite number"):
        files.atomic_write_json(tmp_path / "x.json", {"metrics": {"dev": [number]}})
    assert not (tmp_path / "x.json").exists()
    with pytest.raises(ValueError, match="not a finite number"):
        files.fingerprint(number)


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\xff\xfe\x00", b"\x00" * 64])
def test_broken_json_names_its_file(tmp_path: Path, content: bytes):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json: not valid JSON"):
        files.read_json(tmp_path / "x.json")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path):
    target = tmp_path / "cache" / "part"
    with files.atomic_folder(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_text("1")
        assert not target.exists()
    assert (target / "deep" / "a").read_text() == "1"

    def interrupted() -> None:
        with files.atomic_folder(target) as folder:
            (folder / "b").write_text("2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in target.parent.iterdir()] == ["part"]
    assert [p.name for p in target.iterdir()] == ["deep"]


def test_a_new_folder_replaces_the_old_one_entirely(tmp_path: Path):
    for name in ("old", "new"):
        with files.atomic_folder(tmp_path / "f") as folder:
            (folder / name).write_text(name)
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_only_what_is_half_written_of_that_very_name_is_removed(tmp_path: Path):
    long = "x" * 120
    with files.atomic_folder(tmp_path / "my-sst2") as another:
        for name in ("sst2", long[:100]):
            (tmp_path / f".tmp-12-0a1b2c3d-{name}").mkdir()
        files.remove_temporaries(tmp_path, "sst2")
        files.remove_temporaries(tmp_path, long)
        assert [p.name for p in tmp_path.iterdir()] == [another.name]
        (tmp_path / ".tmp-12-0a1b2c3d-any").touch()
    files.remove_temporaries(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["my-sst2"]


@given(JSON, JSON)
def test_equal_fingerprints_are_equal_contents(one: object, other: object):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (files.fingerprint(one) == files.fingerprint(other)) == same


def test_a_file_is_hashed_whole(tmp_path: Path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert files.sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folders_fingerprint_sees_names_sizes_and_both_ends(tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    weights = bytearray(3 * files.HASHED_WHOLE)
    seen = set()

    def note() -> None:
        (model / "model.safetensors").write_bytes(weights)
        seen.add(files.folder_fingerprint(model))

    note()
    for place in (0, -1):
        weights[place] = 1
        note()
    weights.append(0)
    note()
    (model / "config.json").write_text("[]")
    note()
    (model / "config.json").rename(model / "other.json")
    note()
    assert len(seen) == 6
    (model / ".cache").mkdir()
    (model / ".cache" / "x").write_text("does not count")
    (tmp_path / "elsewhere").mkdir()
    assert files.folder_fingerprint(model.rename(tmp_path / "elsewhere" / "m")) in seen


def test_a_fingerprint_of_nothing_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        files.folder_fingerprint(tmp_path / "absent")


def test_what_another_process_writes_and_removes_in_a_folder_does_not_stop_who_looks(tmp_path: Path, monkeypatch):
    (tmp_path / "a").write_text("1")
    for name in (".tmp-12-0a1b2c3d-a", "b"):  # listed, and gone when they are looked at
        (tmp_path / name).symlink_to("gone")
    assert files.changes(tmp_path) == {"a": (tmp_path / "a").stat().st_mtime_ns}
    assert files.changes(tmp_path / "absent") == {}
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    assert files.folder_bytes(tmp_path) == 1
    assert files.content_fingerprint(tmp_path) is None  # as it would be if there were nothing
    monkeypatch.setattr(Path, "exists", lambda self: True)
    assert files.content_fingerprint(tmp_path / "b") is None

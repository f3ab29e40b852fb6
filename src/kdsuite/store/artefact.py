"""What was made once and is trusted when it is found: whole, unaltered, and of these very inputs.

An artefact is a JSON record of its own, or a folder with such a record in it. The record has the `key` of all that
went into the artefact, the hash of every one of its `files`, and whatever facts its maker adds; it is sealed, and
written last. So a process that is killed leaves the old artefact, or none, but never half of one.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdsuite.store.files import atomic_folder, atomic_write_record, content_fingerprint, read_json, remove_temporaries
from kdsuite.store.layout import MANIFEST


@dataclass(frozen=True)
class Artefact:
    """A record (`path` ends in .json), or a folder whose record is the `manifest.json` in it.

    `key` is JSON-ready. `say` is told of damage, with `remedy`: what is done about it. `root` is what the names of
    the files are relative to, by default the record's folder. Who writes holds the artefact's lock.
    """

    path: Path
    key: Any
    say: Callable[[str], None] = lambda line: None
    remedy: str = "it is made anew"
    root: Path | None = None

    @property
    def record(self) -> Path:
        return self.path if self.path.suffix == ".json" else self.path / MANIFEST

    def read(self) -> dict[str, Any] | None:
        """The record, with its facts. None if there is nothing, it is of another key, or damaged (which is told)."""
        try:
            record = read_json(self.record)
            if record["key"] != json.loads(json.dumps(self.key)):
                return None
            bad = altered(self._root, record["files"])
            if not bad:
                return record
            problem = f"{', '.join(bad)} missing or altered"
        except FileNotFoundError:
            if not self.path.is_dir():
                return None
            problem = f"{MANIFEST} is missing"
        except ValueError as error:
            problem = str(error).removeprefix(f"{self.record}: ")
        except (KeyError, TypeError, AttributeError):
            problem = "not the record of an artefact"
        self.say(f"{self.path} is not used: {problem}; {self.remedy}")
        return None

    def write(self, files: Iterable[str] = (), **facts: Any) -> dict[str, Any]:
        """Write the record, sealing `files` (or whole folders) that are there by now; returned as `read` gives it."""
        return self._seal(self.record, self._root, files, facts)

    def build(self, make: Callable[[Path], Mapping[str, Any] | None]) -> dict[str, Any]:
        """Replace the folder by what `make` puts into an empty one, sealing all of it; `make` returns its facts."""
        remove_temporaries(self.path.parent, self.path.name)
        with atomic_folder(self.path) as folder:
            facts = make(folder) or {}
            files = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
            return self._seal(folder / MANIFEST, folder, files, facts)

    def get_or_build(self, make: Callable[[Path], Mapping[str, Any] | None]) -> dict[str, Any]:
        """The record of the folder that is there, else of the one that is built now."""
        return self.read() or self.build(make)

    @property
    def _root(self) -> Path:
        return self.root or self.record.parent

    def _seal(self, record: Path, root: Path, files: Iterable[str], facts: Mapping[str, Any]) -> dict[str, Any]:
        hashes = {name: content_fingerprint(root / name) for name in files}
        atomic_write_record(record, {"key": self.key, "files": hashes, **facts})
        return read_json(record)


def altered(root: Path, files: Mapping[str, str | None]) -> list[str]:
    """Which of the files or folders below `root` are missing, or no longer have the content with this hash."""
    return [name for name, content in files.items() if content is None or content_fingerprint(root / name) != content]

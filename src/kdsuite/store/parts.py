"""Results of long work, kept as they come: what is killed or interrupted loses a few seconds of it.

The work is a list of items that are done in batches. What is there is written every few seconds, and when the
work ends for whatever reason, into a further file `<name>-<number>.json`: whole or not there at all, sealed,
with the key of all that the results depend on. Who goes on with the same batches does those that are missing.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdsuite.store.artefact import Artefact

EVERY = 10.0  # seconds that a killed process loses at most, and the batch that it is at


@dataclass
class Parts:
    """The results so far of the work `name`, by item; JSON-ready, as they are read back from JSON.

    They lie in `folder`, which nobody else may be working in; without one they are only remembered. Files with
    another `key` are of other work under that name and are removed, and so are damaged ones.
    """

    folder: Path | None = None
    name: str = ""
    key: str = ""
    done: dict[int, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._unwritten: list[int] = []
        self._since = time.monotonic()
        for path in self._files():
            if kept := Artefact(path, self.key).read():
                self.done |= dict(kept["results"])
            else:
                path.unlink(missing_ok=True)

    def work(
        self,
        batches: Iterable[Sequence[int]],
        answer: Callable[[Sequence[int]], Sequence[Any]],
        advance: Callable[[int], None] = lambda count: None,
    ) -> dict[int, Any]:
        """All results, after `answer` gave those of every batch that is not there whole.

        `advance` is told how many items came new. Always cut the work into the same batches: then the results
        do not depend on where it was stopped.
        """
        try:
            for batch in batches:
                missing = [item for item in batch if item not in self.done]
                if not missing:
                    continue
                self.done |= zip(batch, answer(batch), strict=True)
                self._unwritten += batch
                if time.monotonic() - self._since >= EVERY:
                    self._write()
                advance(len(missing))
        finally:
            self._write()
        return self.done

    def clear(self) -> None:
        """Remove the files: the results are kept elsewhere now."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.name}-[0-9]*.json")) if self.folder else []

    def _write(self) -> None:
        self._since = time.monotonic()
        if self.folder is None or not self._unwritten:
            return
        last = max((int(path.stem.rsplit("-", 1)[1]) for path in self._files()), default=-1)
        results = [[item, self.done[item]] for item in self._unwritten]
        Artefact(self.folder / f"{self.name}-{last + 1:05d}.json", self.key).write(results=results)
        self._unwritten = []

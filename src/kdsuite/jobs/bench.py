"""Where the jobs of one process work: a results folder under given settings, on a device.

A job gathers what it needs by functions of a bench and hands it, as plain values, to the rooms below. What several
jobs need (tokenizers, encodings, models) is `kept`: made on first use, from nothing but the settings and the results
folder, so that a job can be done alone and by any process.
"""

import gc
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from kdsuite.config import Settings
from kdsuite.runtime.device import DeviceChoice, empty_cache
from kdsuite.runtime.progress import Progress
from kdsuite.store.artefact import Artefact
from kdsuite.store.files import fingerprint
from kdsuite.store.layout import Layout
from kdsuite.store.locks import Locks
from kdsuite.store.records import Registry

P = ParamSpec("P")
T = TypeVar("T")


class Bench:
    def __init__(self, settings: Settings, results: Path, choice: DeviceChoice, progress: Progress):
        self.settings, self.results, self.choice, self.progress = settings, results, choice, progress
        self.layout, self.registry = Layout(results), Registry(results, progress.say)
        self.locks = Locks(self.layout.locks, progress.say)  # who works on what, where several processes share them
        self.kept: dict[tuple[Any, ...], Any] = {}

    def artefact(self, path: Path, about: Any, remedy: str) -> Artefact:
        """What is made from all that `about` says and kept at `path`; damage is told, with its remedy."""
        return Artefact(path, fingerprint(about), self.progress.say, remedy)

    def forget(self, *makers: Callable[..., Any]) -> None:
        """Drop what these `kept` functions made, or everything; what needs it makes it again."""
        names = {maker.__wrapped__ for maker in makers}  # pyright: ignore[reportFunctionMemberAccess]
        self.kept = {key: value for key, value in self.kept.items() if names and key[0] not in names}
        self.free()

    def free(self) -> None:
        """Give back the memory of what nobody holds any more."""
        gc.collect()  # a training's parts refer to each other
        empty_cache(self.choice.device)


def kept(make: Callable[Concatenate[Bench, P], T]) -> Callable[Concatenate[Bench, P], T]:
    """A function of a bench and of plain names that is computed once per bench."""

    @wraps(make)
    def get(bench: Bench, *args: P.args, **kwargs: P.kwargs) -> T:
        key = (make, *args)
        if key in bench.kept:
            return bench.kept[key]
        made = make(bench, *args, **kwargs)
        return bench.kept.setdefault(key, made)  # of threads that make it at once, all have what was kept first

    return get

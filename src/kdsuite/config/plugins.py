"""Methods and tasks by name: those of this package and of any other that is installed, by entry point.

An entry point of the group `kdsuite.methods` is an object of `methods.base.Method`, one of `kdsuite.tasks` a class
derived from `tasks.example.Task`. Nothing else is registered anywhere; what is installed is there.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from kdsuite.errors import SettingsError

METHODS, TASKS = "kdsuite.methods", "kdsuite.tasks"


@cache
def plugins(group: str) -> dict[str, Any]:
    """What is registered under a group by name; this package's own first, in the order of its pyproject.toml.

    SettingsError for one that cannot be loaded, or two of one name.
    """
    found = sorted(entry_points(group=group), key=lambda point: not point.value.startswith("kdsuite."))
    loaded: dict[str, Any] = {}
    for point in found:
        try:
            plugin = point.load()
            name = plugin.name
        except (ImportError, AttributeError) as error:
            raise SettingsError(
                f"{point.name!r} of {group} cannot be loaded from {point.value}: {error}; mend or uninstall its package"
            ) from None
        if name in loaded:
            raise SettingsError(f"two packages register {name!r} under {group}; uninstall one of them")
        loaded[name] = plugin
    return loaded


def base_method(name: str) -> str | None:
    """The installed method that a name is of: its own, or of a variant (`KD1-uld`) what stands before the "-"."""
    known, words = plugins(METHODS), name.split("-")
    return next((base for n in range(len(words), 0, -1) if (base := "-".join(words[:n])) in known), None)

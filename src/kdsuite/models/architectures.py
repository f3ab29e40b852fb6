"""The shape of a model before anything of it is loaded: from its folder, from the package, or from the hub's cache.

Only `config.json` is read, with neither network nor transformers (whose import takes longer than a plan
should). `architectures.json` holds what the configurations of the thesis' and of the offline models say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsuite.models.costs import Shape

if TYPE_CHECKING:
    from kdsuite.models.source import ModelSource

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
KNOWN = Path(__file__).with_name("architectures.json")


def shape_of(name: str, revision: str | None = None) -> Shape | None:
    """The shape of a model by folder or hub id; None where its configuration is not on this machine,
    or not that of a Llama-like decoder."""
    config = _config(name, revision)
    try:
        return Shape.of(config) if config else None
    except (KeyError, TypeError):
        return None


def _base(folder: Path) -> ModelSource | None:
    """What an adapter in a folder belongs to, if that is there."""
    if not (folder / ADAPTER_CONFIG).exists():
        return None
    from kdsuite.errors import ModelError
    from kdsuite.models.source import base_of  # imports the hub, which others need not wait for

    try:
        return base_of(folder)
    except ModelError:
        return None


def _config(name: str, revision: str | None) -> dict[str, Any] | None:
    path = Path(name) / CONFIG
    if not path.exists():
        if (base := _base(Path(name))) is not None:
            return _config(base.where, base.revision)
        known = json.loads(KNOWN.read_text(encoding="utf-8"))
        if name in known:
            return known[name]
        from kdsuite.runtime import hub  # a moment's import, which known models need not wait for

        found = hub.cached(name, CONFIG, revision)
        if found is None:
            return None
        path = found
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None

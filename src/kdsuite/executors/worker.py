"""How a worker process begins: libraries are silenced before anything imports them."""

from typing import Any

from kdsuite.runtime.process import silence


def begin(*about: Any) -> None:
    silence()
    from kdsuite.executors.processes import work

    work(*about)

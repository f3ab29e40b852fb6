"""How a process begins that follows another one: libraries are silenced before anything imports them."""

from typing import Any

from kdsuite.runtime.process import silence


def begin(*about: Any) -> None:
    silence()
    from kdsuite.jobs.team import follow

    follow(*about)

"""Ray's worker: libraries are silenced before anything imports them."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from kdsuite.runtime.process import sigterm_as_ctrl_c, silence


class Actor:
    """An actor, because a GPU is then its own for as long as it lives."""

    def ready(self, folder: Path, working: Path, number: int, *about: Any) -> Exception | None:
        """Begin; what speaks against it."""
        silence()
        from kdsuite.errors import KdsuiteError
        from kdsuite.executors.exchange import Outbox
        from kdsuite.executors.hand import Hand

        try:
            self.box = Outbox(folder, working, number)
            self.hand = Hand(*about, tell=self.box.tell)
        except KdsuiteError as error:
            return error

    def do(self, job: Any) -> Any:
        """What came of a job; None if somebody else is at it, or if this worker is to end."""
        result = None
        with sigterm_as_ctrl_c(), suppress(KeyboardInterrupt):
            result = self.hand.attempt(job)
        self.box.tell("work", None)
        return result

"""The errors that kdsuite expects: each is one clear line (what, where, what to do) and an exit code."""


class KdsuiteError(Exception):
    """Something that the reader can act on; shown without a traceback."""

    exit_code = 1


class SettingsError(KdsuiteError):
    """The configuration or the command line asks for something that does not exist."""

    exit_code = 2


class DataError(KdsuiteError):
    """The data are not what the task needs: a missing file, column, label or encoding."""

    exit_code = 2


class RunError(KdsuiteError):
    """One run failed (a loss that is not finite, nothing supervised); it is recorded, the others go on."""


class OutOfMemory(RunError):
    """A model is too large for the device, or even a single example through it."""

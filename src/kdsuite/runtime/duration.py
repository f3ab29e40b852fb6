"""How long something takes, in words; apart from what shows progress, which takes longer to import."""


def duration(seconds: float | None) -> str:
    """How long something takes: `1:02:03`, `2:03`, or `-:--` for an unknown one."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

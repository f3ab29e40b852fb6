"""The tasks by name. A new task is one file beside this one and one entry here."""

from __future__ import annotations

from kdsuite.tasks.example import Task
from kdsuite.tasks.squad import Squad
from kdsuite.tasks.sst2 import Sst2

TASKS: dict[str, Task] = {task.name: task for task in (Sst2(), Squad())}

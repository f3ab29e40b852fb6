"""The processes that do a job together with this one, which leads them (`runtime.ranks`): each has a GPU of its own."""

import os
import signal
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kdsuite.config import Settings
from kdsuite.jobs.bench import Bench
from kdsuite.runtime import device
from kdsuite.runtime.process import begin, end_with_parent, freeze_imports
from kdsuite.runtime.progress import Progress
from kdsuite.runtime.ranks import Ranks, here, join, meeting_point, told

LOST = 3  # exit status of a leader that has lost one of them


def lead(bench: Bench) -> None:
    """Start those that do a bench's jobs together with this process, unless they are there and of use.

    Where one of them ends this process does, too: whoever started it can go on from the job's checkpoint.
    """
    if here().shares(bench) and not here().spent:
        return
    dismiss()
    bench.forget()  # what it holds is in the shards of processes that are gone
    size = bench.settings.devices_per_job
    point = meeting_point(size)
    where = bench.choice.device.type, bench.choice.dtype_name, bench.choice.threads
    gpus, pipes = device.gpus(bench.choice.device), []
    for rank in range(1, size):
        ours, its = get_context("spawn").Pipe()
        about = f"{__name__}:{follow.__name__}", its, rank, size, point.port, bench.settings, bench.results, *where
        with device.only(gpus[rank : rank + 1]):
            get_context("spawn").Process(target=begin, args=about, daemon=True).start()
        its.close()
        pipes.append(ours)

    def ended(rank: int) -> None:
        bench.progress.say(f"the process of device {rank} has ended, and so does what it took part in")
        os._exit(LOST)

    ranks = Ranks(0, size, pipes)
    ranks.share("bench", bench)
    ranks.watch(ended)
    join(ranks, point)


def dismiss() -> None:
    """Let those go that this process leads, if it does."""
    here().close()
    join(Ranks())


# --- in those that follow


def follow(pipe: Connection, rank: int, size: int, port: int, settings: Settings, results: Path, *where: Any) -> None:
    """Do what the leader calls, until it is done or gone."""
    end_with_parent(lambda: os._exit(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader decides
    freeze_imports()
    try:
        ranks = join(Ranks(rank, size, [pipe]), meeting_point(size, port))
        bench = Bench(settings, results, device.choose(*where), Progress.silent())
        ranks.share("bench", bench)
        ranks.serve()
    except EOFError:
        pass
    except BaseException as error:  # noqa: BLE001 (the leader raises it)
        with suppress(OSError):
            pipe.send(told(error))
    os._exit(0)  # at once: the leader may wait for it in a collective operation

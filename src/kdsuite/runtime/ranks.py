"""Several processes that do one job together, each with a device of its own: what they agree on, and who leads.

The first of them, the leader, does the job as a single process would: it alone holds locks, shows progress and writes.
The others wait for what is computed by all: a function that is decorated with `together` and is called by the leader
with something `shared` (a model that is spread over them, say) is called by each with its own counterpart of that.
Inside of such a function all do the same, side by side; what only one can decide or do there is `agreed`: the leader
does it, and the others are told what came of it. An error of one ends them all; so does the end of one.
"""

import io
import os
import pickle
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import wraps
from importlib import import_module
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from kdsuite.errors import KdsuiteError, RunError
from kdsuite.runtime.memory import is_out_of_memory

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

PATIENCE = 5.0  # seconds until the error of another is known, where ours may be its consequence
GRACE = 30.0  # seconds that the leader may wait for an answer of one that has failed


class Ranks:
    """Who takes part in this process's work. `pipes` lead from the leader to each of the others, from those to it."""

    def __init__(self, rank: int = 0, size: int = 1, pipes: Sequence[Connection] = ()):
        self.rank, self.size = rank, size
        self.leading = rank == 0 and size > 1  # the leader is by itself: what it calls has to be told
        self.spent = False  # something went wrong: they are no longer at the same place
        self._pipes, self._shared = pipes, WeakValueDictionary[str, Any]()
        self._failure, self._heard, self._over = "", threading.Event(), threading.Event()

    def share(self, name: str, thing: T) -> T:
        """Of what each has its own, for as long as somebody holds it; between them it goes by its name."""
        self._shared[name] = thing
        return thing

    def shares(self, thing: Any) -> bool:
        return any(thing is other for other in self._shared.values())

    def agreed(self, find: Callable[[], T]) -> T:
        """What the leader finds, at each; what it calls on the way that is done together is done by all."""
        if self.size == 1:
            return find()
        if self.rank:
            return self.serve()
        self.leading = True
        try:
            found = find()
        finally:
            self.leading = False
        self._tell("value", found)
        return found

    def serve(self) -> Any:
        """Do what the leader calls, until it says what came of its work. EOFError when it is gone."""
        while True:
            what, value = _Reader(self._pipes[0].recv_bytes(), self._shared).load()
            if what == "end":
                raise EOFError
            if what == "value":
                return value
            (module, name), precisions, args, kwargs = value
            with ExitStack() as stack:
                for kind, dtype in precisions:
                    stack.enter_context(torch.autocast(kind, dtype))
                getattr(import_module(module), name)(*args, **kwargs)

    def lead(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function at all of them. RunError, one line, where another fails."""
        on = [(kind, torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
        try:
            self._tell("call", ((function.__module__, function.__qualname__), on, args, kwargs))
            self.leading = False
            return function(*args, **kwargs)
        except Exception as error:
            theirs = not isinstance(error, KdsuiteError) and self._heard.wait(PATIENCE)
            self._give_up()
            if theirs:
                raise RunError(self._failure) from error
            if is_out_of_memory(error):  # a part of them cannot go on in smaller pieces: the others do not know
                raise RunError(told(error)) from error
            raise
        except BaseException:
            self._give_up()
            raise
        finally:
            self.leading = True

    def watch(self, ended: Callable[[int], None]) -> None:
        """See to it that the leader does not wait for one that is gone: `ended` is called with its rank where it went
        without a word, or where its last word was not heard for `GRACE` because the leader waits inside of a
        collective operation, out of which it cannot be called."""
        others = dict(zip(self._pipes, range(1, self.size), strict=True))

        def listen() -> None:
            for pipe in connection.wait(list(others)):
                assert isinstance(pipe, Connection)
                try:
                    said = pipe.recv()
                except (EOFError, OSError):
                    said = None
                self._failure = f"rank {others[pipe]} of {self.size}: {said or 'its process has ended'}"
                if said is None and not self._over.is_set():
                    ended(others[pipe])  # before the work fails of it, which would be no reason to do it again
                self._heard.set()
            if not self._over.wait(GRACE):
                ended(next(iter(others.values())))

        threading.Thread(target=listen, daemon=True).start()

    def close(self) -> None:
        """Nothing more is done together; those that wait end."""
        self._give_up()
        for pipe in self._pipes:
            with suppress(OSError):  # it is gone
                pipe.send_bytes(_written(("end", None), {}))  # who listens keeps the pipe open: closing it says nothing
        self._shared.clear()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _give_up(self) -> None:
        self.spent = True
        self._over.set()

    def _tell(self, what: str, value: Any) -> None:
        if self._heard.is_set():
            self._give_up()
            raise RunError(self._failure)
        message = _written((what, value), self._shared)
        for pipe in self._pipes:
            pipe.send_bytes(message)


_here = Ranks()


def here() -> Ranks:
    """Those that this process is one of; it alone, as a rule."""
    return _here


def meeting_point(size: int, port: int = 0) -> Any:
    """Where so many processes of this machine find each other: the leader's, who has its `port`, or one at a port."""
    host = "127.0.0.1"
    return dist.TCPStore(host, port, size, is_master=not port, wait_for_workers=False)  # pyright: ignore[reportPrivateImportUsage]


def join(ranks: Ranks, point: Any = None) -> Ranks:
    """Become one of them; of those that meet at a point, when all have come."""
    global _here  # as torch's own group is one of the process
    _here = ranks
    if point is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=point, rank=ranks.rank, world_size=ranks.size)
    return ranks


def together(function: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A function whose first argument may be shared: it is then called at all of them when the leader calls it."""

    @wraps(function)
    def call(first: S, *args: P.args, **kwargs: P.kwargs) -> T:
        if _here.leading and not _here.spent and _here.shares(first):
            return _here.lead(function, first, *args, **kwargs)
        return function(first, *args, **kwargs)

    return call


N = TypeVar("N", int, torch.Tensor)


def total(values: dict[str, N], device: torch.device) -> dict[str, N]:
    """Sums of numbers over all of them, who give the same names, in one operation; of one process, what it gives."""
    if _here.size == 1:
        return values
    stacked = torch.stack([torch.as_tensor(value, device=device) for value in values.values()])
    dist.all_reduce(stacked)
    return dict(zip(values, stacked.unbind(), strict=True))  # pyright: ignore[reportReturnType]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as it is, or put together on the CPU from the shards that each of them holds; all have to ask."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def placed(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor as the shard of it that this process holds of another, where that is in shards."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def told(error: BaseException) -> str:
    """One line of what went wrong in a process whose output nobody reads."""
    if is_out_of_memory(error):
        return "out of memory; lower the batch size of what was done (micro_batch_size, where it trained)"
    line = " ".join(str(error).split())
    return line if isinstance(error, KdsuiteError) else f"{type(error).__name__}: {line}"


def _written(message: Any, shared: Mapping[str, Any]) -> bytes:
    names, buffer = {id(thing): name for name, thing in shared.items()}, io.BytesIO()

    class Writer(pickle.Pickler):
        def persistent_id(self, obj: Any) -> str | None:
            return names.get(id(obj))

    Writer(buffer, pickle.HIGHEST_PROTOCOL).dump(message)
    return buffer.getvalue()


class _Reader(pickle.Unpickler):
    def __init__(self, message: bytes, shared: Mapping[str, Any]):
        super().__init__(io.BytesIO(message))
        self._shared = shared

    def persistent_load(self, pid: str) -> Any:
        return self._shared[pid]

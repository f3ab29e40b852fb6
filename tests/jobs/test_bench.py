"""What a bench keeps is its own, and goes with it."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from kdsuite.config import Settings
from kdsuite.jobs.bench import Bench, kept
from kdsuite.runtime import device
from kdsuite.runtime.progress import Progress


class Heavy:
    """Something that can be watched."""


@kept
def heavy(bench: Bench, name: str) -> Heavy:
    return Heavy()


@kept
def light(bench: Bench, name: str) -> str:
    return f"{name} of {bench.results.name}"


@pytest.fixture
def benches(settings: Settings, tmp_path: Path) -> tuple[Bench, Bench]:
    choice = device.choose("cpu", "float32", 1)
    one, other = (Bench(settings, tmp_path / name, choice, Progress.silent()) for name in ("one", "other"))
    return one, other


def test_what_is_kept_is_made_once_per_bench_and_name(benches: tuple[Bench, Bench]) -> None:
    one, other = benches
    assert heavy(one, "a") is heavy(one, "a")
    assert len({id(heavy(one, "a")), id(heavy(one, "b")), id(heavy(other, "a"))}) == 3
    assert (light(one, "a"), light(other, "a")) == ("a of one", "a of other")


def test_threads_that_make_it_at_once_all_have_the_same(benches: tuple[Bench, Bench]) -> None:
    """What one of them counts of a server would be lost with a connection of its own."""
    together = Barrier(4)

    @kept
    def slow(bench: Bench) -> Heavy:
        together.wait(10)
        return Heavy()

    with ThreadPoolExecutor(4) as pool:
        assert len({id(one) for one in pool.map(slow, [benches[0]] * 4)}) == 1


def test_forgetting_leaves_other_benches_and_other_things_alone(benches: tuple[Bench, Bench]) -> None:
    one, other = benches
    before = heavy(one, "a"), light(one, "a"), heavy(other, "a")
    one.forget(heavy)
    assert heavy(one, "a") is not before[0] and heavy(other, "a") is before[2]
    assert (light.__wrapped__, "a") in one.kept  # pyright: ignore[reportFunctionMemberAccess]
    one.forget()
    assert one.kept == {} and other.kept


def test_a_bench_that_nobody_holds_is_gone_with_all_that_it_kept(benches: tuple[Bench, Bench]) -> None:
    """A notebook makes one after the other."""
    settings, choice, folder = benches[0].settings, benches[0].choice, benches[0].results
    bench = Bench(settings, folder, choice, Progress.silent())
    watched = weakref.ref(bench), weakref.ref(heavy(bench, "a"))
    del bench
    gc.collect()
    assert [ref() for ref in watched] == [None, None]

"""The benchmark takes a fifth of the plan at most, unless that is fewer blocks than two or its size is given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kdsuite.config import CONFIGS, Settings, changed, load
from kdsuite.forecast.build import forecast
from kdsuite.forecast.proportion import LEAST, MOST, proportionate
from kdsuite.forecast.rows import Forecast
from kdsuite.forecast.scene import Machine, Scene
from kdsuite.plan import expand
from machines import Rates

MACHINE = Machine("cpu", "float32", 10**12, Rates(1e11, 1e11, 2.5e-10))


def small(**changes) -> Settings:
    return changed(load(CONFIGS / "small.yaml", env_file=None), changes)


def told(settings: Settings) -> Forecast:
    return forecast(settings, expand(settings), MACHINE)


def share(plan: Forecast) -> float:
    rows = [row for row in plan.passes if row.what.startswith("benchmark")]
    return sum(row.seconds or 0.0 for row in rows) / plan.seconds


def size(settings: Settings) -> tuple[int | None, int | None]:
    sized = proportionate(Scene.of(settings, expand(settings), MACHINE))
    return sized.blocks, sized.answers


def test_a_long_plan_has_a_whole_benchmark_and_a_short_one_a_fifth_at_most() -> None:
    long, short = small(seeds=list(range(30))), small(seeds=[42])
    assert size(long) == (MOST, 20) and share(told(long)) < 0.2
    blocks, answers = size(short)
    assert blocks is not None and LEAST <= blocks < MOST and answers == 4 * blocks


def test_it_is_as_large_as_a_fifth_bears() -> None:
    cut = {}
    for seeds in (1, 2, 4, 8):
        settings = small(seeds=list(range(seeds)), methods=["B0"])
        blocks, _ = size(settings)
        cut[blocks] = share(told(settings))
        if blocks != MOST:
            wider = changed(
                settings, {"benchmark.blocks": (blocks or 0) + 1, "benchmark.answers": 4 * (blocks or 0) + 4}
            )
            assert share(told(wider)) > 0.2
        assert blocks == LEAST or cut[blocks] <= 0.2
    assert len(cut) > 1


def test_the_plan_says_how_it_was_cut_down_and_why() -> None:
    short = small(seeds=[42])
    dear = changed(short, {"benchmark.new_tokens": 512})
    for settings, said in ((short, "at most a fifth"), (dear, "the fewest, and more than a fifth")):
        rows = [row.what for row in told(settings).passes if row.what.startswith("benchmark")]
        cut = f"{size(settings)[0]} blocks instead of 5: {said} of the plan"
        assert rows == [f"benchmark, {task}, {cut}" for task in short.tasks]
        assert (share(told(settings)) > 0.2) == (settings is dear)


@pytest.mark.parametrize(("given", "expected"), [({"blocks": 9}, (9, 20)), ({"blocks": 9, "answers": 0}, (9, 0))])
def test_what_the_settings_say_is_kept(given: dict[str, int], expected: tuple[int, int]) -> None:
    settings = small(seeds=[42], **{f"benchmark.{key}": value for key, value in given.items()})
    assert size(settings) == expected
    assert not [row for row in told(settings).passes if "instead" in row.what]


def test_quantized_students_cost_their_scoring_once_and_memory_a_pass_of_each_model() -> None:
    def seconds(**changes: object) -> float:
        settings = small(seeds=[42], **{"benchmark.blocks": 2, "benchmark.answers": 0, "benchmark.memory": False})
        plan = told(changed(settings, changes))
        return sum(row.seconds or 0.0 for row in plan.passes if row.what.startswith("benchmark"))

    less: dict[str, object] = {"benchmark.quantize": []}
    none, one, two = (seconds(**{"benchmark.quantize": some}) for some in ([], ["int8"], ["int8", "int4"]))
    assert two - one == pytest.approx(one - none) and one > none
    more_data = {"tasks.sst2.validation_size": None}
    assert seconds(**more_data) > one and seconds(**more_data, **less) == pytest.approx(none)
    assert seconds(**less, **{"benchmark.memory": True}) > none


def test_thread_counts_that_are_measured_are_counted_on_a_cpu_and_nowhere_else() -> None:
    def tokens(device: str, threads: int, asked: list[int] | None = None) -> int:
        settings = small(seeds=[42], **{"benchmark.blocks": 2, "benchmark.threads": asked, "benchmark.memory": False})
        settings = changed(settings, {"benchmark.quantize": []})
        machine = replace(MACHINE, device=device, threads=threads)
        plan = forecast(settings, expand(settings), machine)
        return sum(row.tokens for row in plan.passes if row.what.startswith("benchmark"))

    once = tokens("cpu", 4)
    assert tokens("cpu", 16) == pytest.approx(2 * once, abs=2)  # all, and four
    assert tokens("cpu", 16, [1, 2, 8]) == pytest.approx(3 * once, abs=2)
    assert tokens("cuda", 16) == tokens("cuda", 16, [1, 2, 8]) == once

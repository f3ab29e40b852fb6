"""What docs/methods.md says that lists of methods cost is what a plan says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdsuite.config import CONFIGS, changed, load
from kdsuite.config.plugins import METHODS, plugins
from kdsuite.forecast.build import forecast
from kdsuite.forecast.rows import Forecast, amount
from kdsuite.forecast.scene import Machine, Scene
from kdsuite.plan import expand
from machines import Rates

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
PAGE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text("utf-8")
LISTS = re.findall(r"^\| [^|]+ \| `\[(.+)\]` \| (\d+) \| ([\d.]+) \| (\S+ \S+) \|$", PAGE, re.MULTILINE)


def planned(methods: list[str]) -> Forecast:
    settings = changed(load(CONFIGS / "small.yaml", env_file=None), {"methods": methods, "dtype": "float32"})
    machine = Machine("cpu", "float32", 10**12, Rates(1e11, 1e11, 2.5e-10))
    return forecast(settings, expand(settings), machine)


@pytest.mark.parametrize(("methods", "runs", "times", "memory"), LISTS)
def test_what_a_list_of_methods_costs_is_what_its_plan_says(methods: str, runs: str, times: str, memory: str) -> None:
    names = methods.split(", ")
    told, alone = planned(names), planned(["B0"])
    assert sum(len(row.run_ids) for row in told.runs) == int(runs)
    assert told.seconds / alone.seconds == pytest.approx(float(times), abs=0.06)
    assert amount(max(row.bytes or 0 for row in told.memory)) == memory


def test_the_last_list_has_every_method() -> None:
    assert len(LISTS) == 3
    assert set(LISTS[-1][0].split(", ")) == set(plugins(METHODS))


def test_what_reasons_add_to_a_training_is_what_the_page_says() -> None:
    settings = changed(load(CONFIGS / "small.yaml", env_file=None), {"methods": ["B0", "DSS"]})
    scene = Scene.of(settings, expand(settings), Machine("cpu", "float32", 10**12, Rates(1e11, 1e11, 2.5e-10)))
    [request] = scene.requests
    told = re.search(
        r"\((\d+) tokens\), a training would\s+read ([\d.]+) times B0's tokens on\s+SST-2 and ([\d.]+) times", PAGE
    )
    assert told and request.max_new_tokens == int(told[1])
    for task, times in (("sst2", told[2]), ("squad", told[3])):
        own, beside = scene.sizes[task].tokens, scene.explained(task, request).tokens
        assert (own + beside) / own == pytest.approx(float(times), abs=0.06)


def test_readme_names_every_method() -> None:
    table = README[README.index("## Methods") : README.index("Teacher and student need not share")]
    assert [name for name in plugins(METHODS) if name not in table] == []

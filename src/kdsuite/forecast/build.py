"""Settings and runs → forecast, with what to change where a stage does not fit.

That is the fewest settings that make it fit, found by trying them. A model of the hub is proposed only where the
configuration's own models come from there.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from kdsuite.config import ServedTeacherSettings, Settings, changed
from kdsuite.errors import SettingsError
from kdsuite.forecast.calibration import Measured
from kdsuite.forecast.footprint import disk_rows, memory_rows
from kdsuite.forecast.paper import OnPaper
from kdsuite.forecast.placing import placed
from kdsuite.forecast.proportion import benchmark_rows
from kdsuite.forecast.rows import Forecast, MemoryRow
from kdsuite.forecast.scene import TEACHER, Machine, Scene, if_known, is_downloaded
from kdsuite.forecast.times import pass_rows, run_rows, teacher_tokens
from kdsuite.models.costs import Shape
from kdsuite.plan import RunSpec
from kdsuite.runtime.device import DeviceChoice, memory_bytes

SMALL_TEACHER, SMALL_STUDENT = "Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"
Change = dict[str, Any]


def this_machine(choice: DeviceChoice) -> Machine:
    """The device that was chosen, calibrated for a model when it is first asked for."""
    memory, _ = memory_bytes(choice.device)
    return Machine(choice.device.type, choice.dtype_name, memory, Measured(choice), choice.threads)


def forecast(settings: Settings, specs: Sequence[RunSpec], machine: Machine) -> Forecast:
    """What the runs planned under `settings` will cost on a machine. DataError for files that are none."""
    scene = Scene.of(settings, specs, machine)
    speeds = machine.speeds
    if isinstance(speeds, OnPaper) and scene.dtype != speeds.dtype:
        raise SettingsError(f"dtype {scene.dtype}: a machine on paper computes in {speeds.dtype}; set that, or auto")
    memory, runs, passes = memory_rows(scene), run_rows(scene), pass_rows(scene)
    return Forecast(
        teacher=scene.model(TEACHER).name,
        runs=runs,
        passes=[*passes, *benchmark_rows(scene, [*runs, *passes])],
        disk=disk_rows(scene),
        memory=memory,
        advice=_advice(scene, memory),
        basis=_basis(scene),
        placed=if_known(placed, scene, speeds) if isinstance(speeds, OnPaper) else None,
        reported={task: size.validation for task, size in scene.sizes.items()},
    )


def _basis(scene: Scene) -> list[str]:
    """What the figures rest on."""
    lines = [f"{task}: examples and tokens {size.basis}" for task, size in scene.sizes.items()]
    lines.append(scene.machine.speeds.about())
    if scene.served:
        lines.append(_asked(scene, scene.served))
    for name, role in scene.names.items():
        shape = if_known(scene.shape, role)
        if shape is None:
            lines.append(
                f"{name}: its configuration is not on this machine (`kdsuite doctor` fetches it), or not that of a "
                "decoder whose sizes are known, so it has no figures"
            )
            continue
        lines.append(f"{name}, {shape.parameters / 1e6:,.1f} million parameters: {_speeds(scene, role, shape)}")
    return lines


def _speeds(scene: Scene, role: str, shape: Shape) -> str:
    """How fast a role's model is on the batches of each task, as shares of what the machine multiplies."""
    speeds, rates = scene.machine.speeds, {}
    peak = speeds.split(shape) * speeds.peak()
    for task in scene.tasks:
        if any(scene.trains(spec) for spec in scene.specs if spec.role == role and spec.task == task):
            rates[f"trains {task}"] = speeds.training(shape, scene.training_load(role, task))
        load = scene.answer_load(role, task, scene.answer_batch(role))
        rates[f"reads {task}"] = speeds.reading(shape, load)
    told = (f"{what} at {rate / 1e9:,.0f} GFLOP/s ({rate / peak:.0%} of the peak)" for what, rate in rates.items())
    return ", ".join(told)


def _asked(scene: Scene, served: ServedTeacherSettings) -> str:
    """What a teacher behind a URL is asked, and what that costs; how long it takes is its server's matter."""
    tokens = teacher_tokens(scene) / 1e6
    price = served.price_per_million_tokens
    cost = "" if price is None else f", {tokens * price:,.2f} at {price:g} per million"
    return f"{served.model} at {served.url}: about {tokens:,.2f} million tokens read and written{cost}; no times"


def _advice(scene: Scene, memory: Sequence[MemoryRow]) -> list[str]:
    """A line where the fallback will be taken for want of memory, then one per stage that does not fit."""
    lines = _on_fallback(scene)
    for stage in dict.fromkeys(row.stage for row in memory if row.fits is False):
        if found := _enough(scene, stage):
            lines.append(f"{stage} fits with {_options(found)}")
            continue
        too_large = {row.model for row in memory if row.stage == stage and row.fits is False}
        keys = {TEACHER: "models.teacher.name"} | {s: f"models.students.{s}.name" for s in scene.settings.students}
        named = [f"--set {key}=…" for role, key in keys.items() if scene.model(role).name in too_large]
        what = "a smaller model" if _from_hub(scene) else "the folder of a smaller model"
        lines.append(
            f"{stage}: no setting makes it fit; take {what} ({' '.join(named)}), or a machine with more memory"
        )
    return lines


def _on_fallback(scene: Scene) -> list[str]:
    """Why it will be taken, and what would spare it."""
    wanted, taken = scene.settings.models.teacher.name, scene.model(TEACHER).name
    if wanted == taken:
        return []
    alone = replace(scene, settings=changed(scene.settings, {"models.teacher.fallback": None}))
    found = _enough(alone, "cache") or {"models.teacher.name": None}
    instead = "" if "models.teacher.name" in found else f"; it would fit with {_options(found)}"
    return [f"the weights of {wanted} alone are more than the memory, so the fallback {taken} will be taken{instead}"]


def _from_hub(scene: Scene) -> bool:
    """Whether models can be had from the hub: the configuration names one, and HF_HUB_OFFLINE does not forbid it."""
    named = any(is_downloaded(scene.model(role).name) for role in scene.settings.roles)
    return named and os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "ON", "YES", "TRUE")


def _enough(scene: Scene, stage: str) -> Change | None:
    """The smallest set of changes that makes a stage fit; of several the one that costs the least quality."""
    candidates = _candidates(scene, stage)
    for count in range(1, len(candidates) + 1):
        for chosen in combinations(candidates, count):
            change = {key: value for one in chosen for key, value in one.items()}
            tried = replace(scene, settings=changed(scene.settings, change))
            if all(row.fits for row in memory_rows(tried) if row.stage == stage):
                return change
    return None


def _candidates(scene: Scene, stage: str) -> list[Change]:
    """Changes worth trying for a stage, those first that alter the experiment the least."""
    hub, settings = _from_hub(scene), scene.settings
    half: Change = {"dtype": "bfloat16"}
    adapters: Change = {"models.lora.enabled": True}
    smaller = [] if scene.served else [settings.models.teacher.fallback or SMALL_TEACHER, SMALL_STUDENT]
    teachers: list[Change] = [{"models.teacher.name": name} for name in smaller if hub or not is_downloaded(name)]
    students: list[Change] = [{f"models.students.{settings.students[0]}.name": SMALL_STUDENT}] if hub else []
    trained = [f"tasks.{task}.training" for task in scene.tasks]
    tuned = [f"tasks.{t}.teacher_training" for t in scene.tasks if settings.tasks[t].teacher_training.enabled]
    tuning = [*_lighter(tuned), adapters, {f"{section}.enabled": False for section in tuned}] if tuned else []
    return {
        "cache": [{"models.teacher.batch_size": 1}, half, *tuning, *teachers],
        "train": [*_lighter(trained), adapters, half, *students],
        "evaluate": [{"evaluation.batch_size": 4}, half, *students],
        "benchmark": [{"benchmark.batch_sizes": [1]}, half, *(students if scene.served else teachers)],
    }[stage]


def _lighter(sections: Sequence[str]) -> list[Change]:
    """Ways to train in less memory, with the same result."""
    return [
        {f"{section}.gradient_checkpointing": True for section in sections},
        {f"{section}.micro_batch_size": 1 for section in sections},
    ]


def _options(change: Change) -> str:
    """As on the command line, the values as YAML has them."""
    values = {key: str(v).lower() if isinstance(v, bool) else str(v) for key, v in change.items()}
    return " ".join(f"--set {key}={value.replace(' ', '')}" for key, value in values.items())

"""Settings and runs → forecast."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from kdsuite.config import Settings
from kdsuite.forecast.advice import advice
from kdsuite.forecast.calibration import Rates, calibrate
from kdsuite.forecast.footprint import disk_rows, memory_rows
from kdsuite.forecast.rows import Forecast
from kdsuite.forecast.scene import TEACHER, Machine, Scene, if_known
from kdsuite.forecast.times import pass_rows, run_rows
from kdsuite.models.costs import Shape
from kdsuite.plan import RunSpec
from kdsuite.runtime.device import DeviceChoice, memory_bytes


def this_machine(choice: DeviceChoice) -> Machine:
    """The device that was chosen, calibrated for a model when it is first asked for."""

    @cache
    def rates(shape: Shape, batch_size: int, length: int) -> Rates:
        return calibrate(shape, batch_size, length, choice)

    memory, _ = memory_bytes(choice.device)
    return Machine(choice.device.type, choice.dtype_name, memory, rates)


def forecast(settings: Settings, specs: Sequence[RunSpec], machine: Machine) -> Forecast:
    """What the runs planned under `settings` will cost on a machine. DataError for files that are none."""
    scene = Scene.of(settings, specs, machine)
    memory = memory_rows(scene)
    return Forecast(
        teacher=scene.model(TEACHER).name,
        runs=run_rows(scene),
        passes=pass_rows(scene),
        disk=disk_rows(scene),
        memory=memory,
        advice=advice(scene, memory),
        basis=_basis(scene),
    )


def _basis(scene: Scene) -> list[str]:
    """What the figures rest on."""
    lines = [f"{task}: examples and tokens {size.basis}" for task, size in scene.sizes.items()]
    for name, role in {scene.model(role).name: role for role in scene.roles}.items():
        shape = if_known(scene.shape, role)
        if shape is None:
            lines.append(
                f"{name}: its configuration is not on this machine (`kdsuite doctor` fetches it), or not that of a "
                "decoder whose sizes are known, so it has no figures"
            )
            continue
        rates = scene.rates(role)
        lines.append(
            f"{name}, {shape.parameters / 1e6:,.1f} million parameters: steps of a layer {rates.width} wide "
            f"(the model's: {shape.width}) on {rates.tokens} tokens, timed just now, at "
            f"{rates.training / 1e9:,.0f} GFLOP/s in training, {rates.forward / 1e9:,.0f} in inference"
        )
    return lines

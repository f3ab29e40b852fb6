"""What a report can be asked for. None of it touches a run: a changed value only needs `kdsuite report`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from kdsuite.config.section import Section

BASELINE = "B0"  # whom every method is compared with
OpenShare = Annotated[float, Field(gt=0.0, lt=1.0)]


class ReportSettings(Section):
    """How uncertainty is stated, and how much the page carries."""

    confidence: OpenShare = Field(
        default=0.95,
        description="level of all intervals; a claim needs a corrected p below 1 − confidence; default 0.95",
    )
    power: OpenShare = Field(
        default=0.8, description="power at which the minimum detectable difference is stated; default 0.8"
    )
    margin: Annotated[float, Field(gt=0.0)] = Field(
        default=2.0, description="points below the teacher that would not matter (non-inferiority margin); default 2"
    )
    permutations: Annotated[int, Field(ge=100)] = Field(
        default=10_000, description="random sign flips where a paired test is not computed exactly; default 10000"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of the sign flips; default 0")
    comparisons: tuple[tuple[str, str], ...] = Field(
        default=(), description="further pairs of methods to test in the same family, e.g. [[KD1, KD2]]; default none"
    )
    calibration_bins: Annotated[int, Field(ge=2)] = Field(
        default=10, description="equally wide bins of confidence in the reliability diagram and its ECE; default 10"
    )
    cost_per_hour: Annotated[float, Field(gt=0.0)] | None = Field(
        default=None,
        description="what an hour of this machine costs, in any currency; adds a cost to every run; default none",
    )
    explorer_examples: Annotated[int, Field(ge=0)] = Field(
        default=12_000, description="examples per task in the page's explorer, disputed ones first; default 12000"
    )


def pairs_of(methods: Sequence[str], further: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs of a student's methods that are corrected together, whether both ran or not."""
    return list(dict.fromkeys([*((m, BASELINE) for m in methods if m != BASELINE), *further]))

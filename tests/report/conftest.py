"""Results folders with known effects: one with every kind of gap, one without any."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdsuite.config.report import ReportSettings
from kdsuite.report.analysis import Analysis, analyse
from kdsuite.report.build import build_report
from kdsuite.report.load import load

from .synthetic import Study, write_results

SETTINGS = ReportSettings(permutations=2000)
SKILLS = {"teacher": 0.92, "zero-shot": 0.52, "B0": 0.80, "KD1": 0.83, "KD2": 0.80, "KD3": 0.74}
STEADY = {"skills": SKILLS, "n": 800, "seed_effect": 0.002, "noise": 0.03, "seed": 8}  # so that 3 points can be seen

GAPS = {
    "KD1_sst2_S1_T2_a0.3_seed42": "failed",  # one configuration of the grid lacks a seed
    "KD2_sst2_S1_seed42": "nan",  # all that there is of KD2 is not a number
    "KD2_sst2_S1_seed123": "nan",
    "KD2_sst2_S1_seed456": "failed",
    "KD3_sst2_S1_l1_seed42": "unfinished",  # two seeds are left
    "KD1_squad_S1_T4_a0.5_seed42": "failed",
    "KD2_squad_S1_seed42": "missing",  # a method that was never run
    "KD2_squad_S1_seed123": "missing",
    "KD2_squad_S1_seed456": "missing",
    "KD3_squad_S1_l1_seed123": "missing",  # one seed only
    "KD3_squad_S1_l1_seed456": "missing",
}


@pytest.fixture(scope="session")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """KD1 gains three points, KD2 nothing, KD3 loses six; nothing is missing."""
    root = write_results(tmp_path_factory.mktemp("steady"), Study(**STEADY))
    return analyse(load(root), SETTINGS)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A complete report on a complete study."""
    root = write_results(tmp_path_factory.mktemp("whole"), Study(n=120))
    return root, build_report(root, SETTINGS)


@pytest.fixture(scope="session")
def gappy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A complete report on a study with every kind of gap and without a benchmark."""
    root = write_results(tmp_path_factory.mktemp("gappy"), Study(n=120, lost=GAPS, benchmark=False))
    return root, build_report(root, SETTINGS)

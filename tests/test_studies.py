"""The studies in the repository are what their predictions say, and the page that lists them says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdsuite.extras import study, study_page

STUDIES = Path(__file__).parents[1] / "studies"
FOLDERS = sorted(path.parent for path in STUDIES.glob("*/study.json"))


def test_the_table_of_studies_is_that_of_the_folders() -> None:
    assert study_page.overview(STUDIES) in (STUDIES / "README.md").read_text("utf-8")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_study_verifies(folder: Path) -> None:
    assert study.verify(folder)[1] == []

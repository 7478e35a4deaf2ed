"""One written report of a study of the pocket's size, shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_study import PROVENANCE, study

from paretune.report.write import write_report


@pytest.fixture(scope="session")
def pocket_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a report was written to."""
    folder = tmp_path_factory.mktemp("pocket-report")
    write_report(study(provenance=PROVENANCE), folder)
    return folder

"""docs/reliability.md shows what was measured, and nothing else."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_is_that_of_the_results() -> None:
    page = ROOT / "docs" / "reliability.md"
    made = runpy.run_path(str(ROOT / "scripts" / "make_reliability_page.py"))["page"]
    assert made(page.read_text()) == page.read_text(), "run: make docs"

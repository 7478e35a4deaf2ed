"""The study page's tables, results and figures are those of the ledger beside it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "studies" / "english-30m-to-python"


@pytest.fixture(scope="module")
def study() -> Iterator[tuple[Path, Any]]:
    """The study's folder, and what a report states about it."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import make_study_page as made

    from paretune import load
    from paretune.report.findings import Findings

    with made.ledger() as folder:
        yield folder, Findings.of(load(folder))
    sys.path.remove(str(ROOT / "scripts"))


def test_tables_and_results_are_those_of_the_ledger(study: tuple[Path, Any]) -> None:
    import make_study_page as made

    page = made.PAGE.read_text(encoding="utf-8")
    folder, findings = study
    fresh = made.fill(page, made.tables(folder, findings))
    assert page == fresh, "run: python scripts/make_study_page.py"
    # Another machine may round the last digits of an interval otherwise
    published = pd.read_csv(FOLDER / "results.csv")
    expected = findings.results.astype(published.dtypes.to_dict())
    pd.testing.assert_frame_equal(published, expected, rtol=1e-9, atol=1e-12)


def test_a_page_without_prose_of_any_study(study: tuple[Path, Any]) -> None:
    """What scripts/make_task_study_page.py writes, beside the page written by hand."""
    from make_task_study_page import page

    text = page(*study, ["frontier"])
    by_hand = (FOLDER / "README.md").read_text(encoding="utf-8")
    for table in ("runs", "equal-rate"):
        rows = by_hand.split(f"<!-- begin {table} -->")[1].split("<!-- end")[0].strip()
        assert rows in text
    # 37 of 925 + 37 + 44 seconds, as the table of processes says
    assert "Scoring took 4% of 1006 s" in text
    assert "At equal learning, full finetuning forgot less than LoRA" in text
    assert "| bits per byte on held-out target text | 4.238 | 1.090, 3.15 (3.00 to 3.30) |" in text


def test_every_file_that_the_page_names_is_there_and_small() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"\]\(([^)#]+)\)", page)
    shown = [name for name in named if name.endswith((".svg", ".png"))]
    assert 3 <= len(shown) <= 5
    for name in named:
        assert (FOLDER / name).is_file(), name
    for name in shown:
        assert (FOLDER / name).stat().st_size < 400_000, name
    drawn = {path.name for path in FOLDER.iterdir() if path.suffix in (".svg", ".png")}
    assert drawn == set(shown)

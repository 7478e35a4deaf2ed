"""The study page's tables, results and figures are those of the ledger beside it."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "studies" / "english-30m-to-python"


def test_tables_and_results_are_those_of_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import make_study_page as made

    from paretune import load
    from paretune.report.findings import Findings

    page = made.PAGE.read_text(encoding="utf-8")
    with made.ledger() as folder:
        findings = Findings.of(load(folder))
        fresh = made.fill(page, made.tables(folder, findings))
    assert page == fresh, "run: python scripts/make_study_page.py"
    # Another machine may round the last digits of an interval otherwise
    published = pd.read_csv(FOLDER / "results.csv")
    expected = findings.results.astype(published.dtypes.to_dict())
    pd.testing.assert_frame_equal(published, expected, rtol=1e-9, atol=1e-12)


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

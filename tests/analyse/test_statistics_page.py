"""The page on statistics shows what the benchmark measured."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_is_that_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import make_statistics_page as made

    text = made.PAGE.read_text(encoding="utf-8")
    assert text == made.page(text), "run: python scripts/make_statistics_page.py"

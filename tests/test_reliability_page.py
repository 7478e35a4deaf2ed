"""docs/reliability.md shows what was measured, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_is_that_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import make_reliability_page as made

    text = made.PAGE.read_text(encoding="utf-8")
    assert text == made.page(text), "run: make docs"

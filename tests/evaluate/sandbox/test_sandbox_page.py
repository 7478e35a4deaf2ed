"""docs/sandbox.md names every hostile program that the tests let loose."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile_programs import ALL

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import make_sandbox_page as made

    page = (ROOT / "docs" / "sandbox.md").read_text()
    assert page == made.page(), "run make docs"
    assert sum(f"| {each.name} |" in page for each in ALL) == len(ALL) >= 40

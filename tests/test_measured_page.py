"""The page of measured claims shows what the benchmarks wrote, failures included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FIELDS = {
    "name", "work", "unit", "peer", "peer_value", "our_value", "ratio", "goal", "device",
    "versions", "date", "command",
}  # fmt: skip


def test_the_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import make_measured_page as made

    shown = (ROOT / "docs" / "measured.md").read_text()
    assert shown == made.page(), "run make docs"


def test_every_row_is_complete() -> None:
    files = list((ROOT / "benchmarks" / "results").glob("*.json"))
    assert files
    for path in files:
        for row in json.loads(path.read_text()):
            assert set(row) == FIELDS, (path.name, row.get("name"))
            assert (ROOT / row["command"].split()[1]).exists(), row["command"]


def test_the_page_of_performance_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import make_performance_page as made

    assert (ROOT / "docs" / "performance.md").read_text() == made.page(), "run make docs"

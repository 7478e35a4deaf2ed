"""The page of measured claims shows what the benchmarks wrote, failures included."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIELDS = {
    "name", "work", "unit", "peer", "peer_value", "our_value", "ratio", "goal", "device",
    "versions", "date", "command",
}  # fmt: skip


def test_the_page_is_up_to_date() -> None:
    script = ROOT / "scripts" / "make_measured_page.py"
    spec = importlib.util.spec_from_file_location("make_measured_page", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shown = (ROOT / "docs" / "measured.md").read_text()
    assert shown == module.page(), "run make docs"


def test_every_row_is_complete() -> None:
    files = list((ROOT / "benchmarks" / "results").glob("*.json"))
    assert files
    for path in files:
        for row in json.loads(path.read_text()):
            assert set(row) == FIELDS, (path.name, row.get("name"))
            assert (ROOT / row["command"].split()[1]).exists(), row["command"]


def test_the_page_of_performance_is_up_to_date() -> None:
    script = ROOT / "scripts" / "make_performance_page.py"
    spec = importlib.util.spec_from_file_location("make_performance_page", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "performance.md").read_text() == module.page(), "run make docs"

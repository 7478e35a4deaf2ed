"""docs/sandbox.md names every hostile program that the tests let loose."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hostile_programs import ALL

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location(
        "make_sandbox_page", ROOT / "scripts" / "make_sandbox_page.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "sandbox.md").read_text()
    assert page == module.page(), "run make docs"
    assert sum(f"| {each.name} |" in page for each in ALL) == len(ALL) >= 40

"""The page of mistakes shows what the tests check."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = "import sys; sys.path.insert(0, 'scripts'); import make_mistakes_page as made"


def test_the_page_is_up_to_date() -> None:
    """Made in a process of its own, since it imports other tests."""
    made = subprocess.run(
        [sys.executable, "-c", f"{CODE}; print(made.page(), end='')"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    published = (ROOT / "docs" / "mistakes.md").read_text(encoding="utf-8")
    assert made.stdout == published, "run: make docs"


def test_it_shows_enough_cases() -> None:
    """At least 30 malformed study files and data rows."""
    published = (ROOT / "docs" / "mistakes.md").read_text(encoding="utf-8")
    assert published.count("\n### ") >= 30
    assert published.count("\n| ") >= 20

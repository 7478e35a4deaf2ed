"""The report page."""

from __future__ import annotations

from typing import Any

from paretune.report.answer import answer
from paretune.report.findings import Findings


def page(findings: Findings, specifications: dict[str, dict[str, Any]]) -> str:
    """One HTML page."""
    import html

    return "<p>" + html.escape(" ".join(answer(findings))) + "</p>"

"""The table of spectra on the report's page: a row for each arm's setting and kind of matrix."""

from __future__ import annotations

from typing import Any

from paretune.report.findings import Findings
from paretune.report.spectrum_data import StudySpectra
from paretune.report.style import group_colour, number, tokens

_MEDIANS = ("rank90", "rank90_relative", "effective_rank", "stable_rank", "frobenius_relative")
_MEANS = ("intruders", "control_intruders")


def moved_rows(findings: Findings, spectra: StudySpectra) -> list[dict[str, Any]]:
    """Medians over matrices and seeds at each series' last budget, as shown; means of counts."""
    rows = []
    for one in findings.series:
        own = spectra.table[spectra.table["series"] == one.id]
        if own.empty:
            continue
        last = int(own["tokens"].max())
        for kind, part in own[own["tokens"] == last].groupby("kind", sort=True):
            cells = {name: _shown(part, name, "median") for name in _MEDIANS}
            cells |= {name: _shown(part, name, "mean") for name in _MEANS}
            rows.append(
                {
                    "series": one.id,
                    "name": one.name,
                    "colour": group_colour(one.group),
                    "kind": kind,
                    "budget": tokens(last),
                    **cells,
                }
            )
    return rows


def _shown(part: Any, column: str, how: str) -> str:
    if column not in part.columns:
        return number(None)
    values = part[column].dropna().astype("float64")
    return number(float(getattr(values, how)()), 3) if len(values) else number(None)

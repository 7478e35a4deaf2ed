"""Tables that hold one row a method: its learning rates, and the area under its frontier."""

from __future__ import annotations

import pandas as pd

from paretune.analyse.candidates import share_words
from paretune.analyse.hypervolume import hypervolumes
from paretune.analyse.sensitivity import sensitivity
from paretune.report.findings import Findings
from paretune.report.style import group_colour, interval, number


def rate_rows(findings: Findings) -> list[dict[str, str]]:
    """How each method depends on its learning rate, at the last budget.

    Empty where no method was tried at more than one rate.
    """
    table = sensitivity(findings.record, points=findings.points[findings.main])
    if not (table["rates"] > 1).any():
        return []
    rows = []
    for row in table.to_dict("records"):
        low, high = (f"{row[name]:g}" for name in ("basin_low", "basin_high"))
        edge = "none met" if pd.isna(row["edge"]) else f"at {row['edge']:g}"
        rows.append(
            {
                "group": row["group"],
                "colour": group_colour(row["group"]),
                "best": f"{row['best_rate']:g}",
                "open": "at the end of those tried" if row["at_edge"] else "",
                "learned": number(row["learning"], 3),
                "probability": (
                    "–" if pd.isna(row["probability"]) else share_words(row["probability"])
                ),
                "basin": low if low == high else f"{low} to {high}",
                "edge": edge,
                "rates": str(row["rates"]),
                "ratio": "–" if pd.isna(row["ratio_to_full"]) else f"{row['ratio_to_full']:.3g}",
            }
        )
    return rows


def area_rows(findings: Findings) -> list[dict[str, str]]:
    """The hypervolume of the whole frontier and of each method's; empty without points."""
    table = hypervolumes(findings.record, points=findings.points[findings.main])
    return [
        {
            "group": "all arms" if row["group"] == "all" else row["group"],
            "colour": group_colour(row["group"]),
            "area": number(row["hypervolume"], 3),
            "interval": interval(row["low"], row["high"], 3),
            "share": "–" if pd.isna(row["share"]) else f"{row['share']:.0%}",
            "points": str(row["points"]),
        }
        for row in table.to_dict("records")
    ]

"""Fill the table of docs/statistics.md from benchmarks/results/statistics.json."""

from __future__ import annotations

import json
from pathlib import Path

from make_measured_page import number
from marked_tables import fill

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "statistics.md"
ROWS = ROOT / "benchmarks" / "results" / "statistics.json"


def page(text: str) -> str:
    """The page with its table made anew."""
    return fill(text, {"measured": table()})


def table() -> str:
    """Every measurement, failures included."""
    rows = json.loads(ROWS.read_text())
    lines = [
        f"`{rows[0]['command']}`, {rows[0]['date']}:",
        "",
        "| measured | on | value | peer | goal |",
        "|---|---|---|---|---|",
    ]
    for one in rows:
        peer = f"{number(one['peer_value'])} ({one['peer']})" if one["peer"] else ""
        value = f"{number(one['our_value'])} {one['unit']}"
        cells = [one["name"], one["work"], value, peer, one["goal"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} is written")

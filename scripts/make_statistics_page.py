"""Fill the table of docs/statistics.md from benchmarks/results/statistics.json."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "statistics.md"
ROWS = ROOT / "benchmarks" / "results" / "statistics.json"
BEGIN, END = "<!-- begin measured -->", "<!-- end measured -->"


def page(text: str) -> str:
    """The page with its table made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


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
        peer = f"{one['peer_value']:.3g} ({one['peer']})" if one["peer"] else ""
        value = f"{one['our_value']:.3g} {one['unit']}"
        cells = [one["name"], one["work"], value, peer, one["goal"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} is written")

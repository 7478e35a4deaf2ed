"""Fill the table of docs/reliability.md from benchmarks/results/faults.json."""

from __future__ import annotations

import json
from pathlib import Path

from marked_tables import fill

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
ROWS = ROOT / "benchmarks" / "results" / "faults.json"


def page(text: str) -> str:
    """The page with its table made anew."""
    return fill(text, {"measured": table()})


def table() -> str:
    """Every kind of fault, failures included."""
    rows = [row for row in json.loads(ROWS.read_text()) if "/faults.py" in row["command"]]
    first = rows[0]
    lines = [
        f"`{first['command']}`, {first['date']}, {first['device']}:",
        "",
        "| fault | what is done, and how it ended | share that ended well |",
        "|---|---|---|",
    ]
    lines += [f"| {one['name']} | {one['work']} | {one['our_value']:.3g} |" for one in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} is written")

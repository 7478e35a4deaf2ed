"""Write docs/measured.md from benchmarks/results/*.json, failures included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "measured.md"
HEAD = """\
# Measured claims

Each table comes from a script in `benchmarks/`, which writes its rows to `benchmarks/results/`;
`make docs` makes this page from those files. A ratio above 1 is in our favour. Peers ran in the
same process, on the same weights and data, in turn. `python benchmarks/on_a_gpu.py` runs all that
needs a GPU, in portions of less than ten minutes.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        parts.append(f"\n## {path.stem}\n")
        for measured in groups(json.loads(path.read_text())):
            commands = {row["command"] for row in measured}
            command = commands.pop() if len(commands) == 1 else f"python {script(measured[0])}"
            parts.append(f"\n`{command}`, {about(measured)}.\n\n" + table(measured))
    return "".join(parts)


def groups(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each script and device, in the order of the file."""
    devices = list(dict.fromkeys(row["device"] for row in rows))

    def place(row: dict[str, Any]) -> tuple[str, int]:
        return script(row), devices.index(row["device"])

    for _, group in groupby(sorted(rows, key=place), place):
        yield list(group)


def about(rows: list[dict[str, Any]]) -> str:
    """Dates, device and versions of rows that were measured on one device."""
    dates = sorted({row["date"] for row in rows})
    span = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    last = max(rows, key=lambda row: row["date"])
    versions = ", ".join(f"{name} {value}" for name, value in last["versions"].items())
    return f"{span}, {last['device']}; {versions}"


def script(row: dict[str, Any]) -> str:
    """The file that measured a row, whatever its arguments were."""
    return str(row["command"].split()[1])


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of measurements."""
    lines = ["| claim | work | ours | peer | ratio | goal |", "|---|---|---|---|---|---|"]
    for each in rows:
        peer = each["peer"] or ""
        if each["peer_value"] is not None:
            peer = f"{number(each['peer_value'])} ({peer})"
        ratio = "" if each["ratio"] is None else f"{each['ratio']:.2f}"
        cells = (
            each["name"],
            each["work"],
            f"{number(each['our_value'])} {each['unit']}",
            peer,
            ratio,
            each["goal"] or "",
        )
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def number(value: Any) -> str:
    """A value in at most four digits."""
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} is written")

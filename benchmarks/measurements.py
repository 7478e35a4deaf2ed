"""Rows of benchmarks/results/NAME.json, as DESIGN words them: one measured claim each."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def row(
    name: str,
    work: str,
    unit: str,
    *,
    our_value: float,
    goal: str,
    peer: str | None = None,
    peer_value: float | None = None,
    ratio: float | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """One measurement, with device, versions, date and command; ratio > 1 is in our favour."""
    names = ("torch", "transformers", "peft", "numpy")
    return {
        "name": name,
        "work": work,
        "unit": unit,
        "peer": peer,
        "peer_value": peer_value,
        "our_value": our_value,
        "ratio": ratio,
        "goal": goal,
        "device": device or f"CPU, {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in names},
        },
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Write the rows of one script, and show them; rows of other scripts in the file stay."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() else []
    others = [each for each in before if script_of(each) != script_of(rows[0])]
    every = sorted([*others, *rows], key=script_of)  # stable: each script's own order stays
    path.write_text(json.dumps(every, indent=2) + "\n")
    for each in rows:
        print(f"{each['name']}: {each['our_value']:.4g} {each['unit']} (goal: {each['goal']})")


def script_of(measured: dict[str, Any]) -> str:
    """The file of benchmarks/ that measured a row, whatever its arguments were."""
    return str(measured["command"].split()[1])

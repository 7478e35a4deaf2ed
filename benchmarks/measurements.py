"""Rows of benchmarks/results/NAME.json, as DESIGN words them: one measured claim each.

Usage: python benchmarks/measurements.py DIR [--into DIR]; takes the rows that a benchmark wrote
elsewhere (``--results DIR``, on a machine with a GPU, say) over into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).resolve().parents[2] / "shared"
PLACES = ("--results", "--shared", "--requests")
"""Options that say where files are: they decide no number, so a row's command leaves them out."""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that benchmarks on a GPU share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, help="a folder for the rows; benchmarks/results")
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder with data and base")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the script anywhere")
    return parser


def folder_of(asked: argparse.Namespace) -> Path | None:
    """Where the rows go; nowhere in a dry run that names no folder."""
    return asked.results or (None if asked.tiny else RESULTS)


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
    """One measurement, with device, versions, date and command; ratio > 1 is in our favour.

    Args:
        work: what was done. What follows a semicolon tells how it went: two rows of one name that
            differ in nothing else are the same claim, measured again.
    """
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
        "command": command(sys.argv),
    }


def command(argv: list[str]) -> str:
    """What was run, without the places of files."""
    kept = ["python", f"benchmarks/{Path(argv[0]).name}"]
    for before, word in pairwise(argv):
        if word not in PLACES and before not in PLACES:
            kept.append(Path(word).name if "/" in word else word)
    return " ".join(kept)


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Write all rows of one script, and show them; rows of other scripts in the file stay."""
    before = read(RESULTS / f"{name}.json")
    _put(RESULTS, name, [each for each in before if script_of(each) != script_of(rows[0])], rows)
    show(rows)


def update(name: str, rows: list[dict[str, Any]], folder: Path | None = RESULTS) -> None:
    """Write some rows; they replace those of the same claim on the same device.

    Args:
        folder: with NAME.json, or None to write nothing.
    """
    if folder is None:
        return
    new = {claim_of(each) for each in rows}
    before = read(folder / f"{name}.json")
    _put(folder, name, [each for each in before if claim_of(each) not in new], rows)


def merge(source: Path, into: Path = RESULTS) -> list[str]:
    """Take over every row of a folder of NAME.json files; their names.

    Raises:
        FileNotFoundError: the folder has no such file.
    """
    files = sorted(source.glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{source}: no rows (NAME.json) here")
    for file in files:
        update(file.stem, read(file), into)
    return [file.stem for file in files]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none where there is no file."""
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """A line for each row."""
    for each in rows:
        beside = "" if each["ratio"] is None else f", {each['ratio']:.2f} x {each['peer']}"
        value = f"{each['our_value']:.4g} {each['unit']}{beside}"
        print(f"{each['name']}: {value} (goal: {each['goal']})", flush=True)


def _put(folder: Path, name: str, others: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    every = sorted([*others, *rows], key=script_of)  # stable: each script's own order stays
    waiting = path.with_suffix(".part")  # a killed run leaves the rows before it whole
    waiting.write_text(json.dumps(every, indent=2) + "\n")
    waiting.replace(path)


def script_of(measured: dict[str, Any]) -> str:
    """The file of benchmarks/ that measured a row, whatever its arguments were."""
    return str(measured["command"].split()[1])


def claim_of(measured: dict[str, Any]) -> tuple[str, str, str, str]:
    """What a row claims: script, name, work up to a semicolon, device."""
    work = str(measured["work"]).partition(";")[0]
    return script_of(measured), str(measured["name"]), work, str(measured["device"])


def main() -> None:
    """Take over the rows of a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--into", type=Path, default=RESULTS)
    asked = parser.parse_args()
    print(f"taken over: {', '.join(merge(asked.folder, asked.into))}; now run: make docs")


if __name__ == "__main__":
    main()

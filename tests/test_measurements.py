"""Rows of measurements: a claim measured again replaces its old row and no other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
import measurements  # noqa: E402


def row(name: str, value: float, work: str = "work", device: str = "H200", **more: Any) -> Any:
    made = measurements.row(name, work, "s", our_value=value, goal="none", device=device)
    return {**made, "command": "python benchmarks/one.py --rows a", **more}


def values(folder: Path) -> list[float]:
    return [each["our_value"] for each in json.loads((folder / "speed.json").read_text())]


def test_a_claim_measured_again_replaces_its_row(tmp_path: Path) -> None:
    other = row("a", 9.0, command="python benchmarks/two.py")
    first = [row("a", 1.0), row("a", 2.0, "other work"), row("b", 3.0), other]
    measurements.update("speed", first, tmp_path)
    measurements.update("speed", [row("a", 4.0, "work; in 7 pieces")], tmp_path)
    assert sorted(values(tmp_path)) == [2.0, 3.0, 4.0, 9.0]
    measurements.update("speed", [row("b", 5.0, device="H100")], tmp_path)
    assert sorted(values(tmp_path)) == [2.0, 3.0, 4.0, 5.0, 9.0], "another device, another row"


def test_rows_beside_several_peers_stay_together(tmp_path: Path) -> None:
    beside = [row("a", 1.0, peer="one"), row("a", 1.0, peer="two")]
    for _ in range(2):
        measurements.update("speed", beside, tmp_path)
    assert [each["peer"] for each in json.loads((tmp_path / "speed.json").read_text())] == [
        "one",
        "two",
    ]


def test_a_folder_of_rows_is_taken_over(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    measurements.update("speed", [row("a", 1.0), row("b", 2.0)], here)
    measurements.update("speed", [row("a", 3.0)], there)
    measurements.update("size", [row("c", 4.0)], there)
    command = [sys.executable, str(BENCHMARKS / "measurements.py"), str(there), "--into", str(here)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "taken over: size, speed" in done.stdout
    assert sorted(values(here)) == [2.0, 3.0]
    assert json.loads((here / "size.json").read_text())[0]["name"] == "c"
    with pytest.raises(FileNotFoundError, match="no rows"):
        measurements.merge(tmp_path, here)


def test_a_command_names_no_place() -> None:
    argv = ["/a/cohort.py", "--rows", "x", "--results", "/tmp/out", "--shared", "../data"]
    argv += ["--base", "/b/c", "--tiny"]
    kept = measurements.command(argv)
    assert kept == "python benchmarks/cohort.py --rows x --base c --tiny"

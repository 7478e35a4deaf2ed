"""A short campaign of faults: one trial of every kind (benchmarks/faults.py runs hundreds)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_kind_of_fault_ends_well(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount small file systems")
    command = [sys.executable, "benchmarks/faults.py", "--count", "17", "--seed", "3", "--no-table"]
    done = subprocess.run(
        [*command, "--work", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ends = [line.split(": ")[1].split()[0] for line in done.stdout.splitlines() if ": " in line]
    assert len(ends) == 17
    assert set(ends) <= {"identical", "refused"}

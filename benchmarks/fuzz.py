"""Fuzzing: mutated study files and damaged ledgers, and every command that reads them.

Usage: python benchmarks/fuzz.py [--studies 9000] [--ledgers 1000] [--seed 1] [--minutes 60]; writes
its rows of benchmarks/results/faults.json, also when the time is over before all is done. What went
wrong is printed, each kind once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measurements import row, write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fuzz"))

from campaign import Campaign, finished_study, ledgers, studies

PART = 100


def in_parts(
    campaign: Callable[[int, int], Campaign], count: int, seed: int, end: float
) -> Campaign:
    """A campaign in parts of PART inputs, each with a seed of its own, until ``end``."""
    whole = Campaign()
    for part in range(0, count, PART):
        if time.time() > end:
            break
        whole.join(campaign(min(PART, count - part), 1_000_000 * seed + part))
        print(f"{campaign.__name__}: {whole.tried} of {count}", file=sys.stderr, flush=True)
    return whole


def of_studies(count: int, seed: int, end: float) -> Campaign:
    """Mutated study files."""
    return in_parts(studies, count, seed, end)


def of_ledgers(count: int, seed: int, end: float) -> Campaign:
    """Damaged ledgers."""
    with tempfile.TemporaryDirectory() as name:
        study, original = finished_study(Path(name))

        def damaged_ledgers(part: int, number: int) -> Campaign:
            return ledgers(part, number, study, original)

        return in_parts(damaged_ledgers, count, seed, end)


def rows_of(campaign: Campaign, what: str, seed: int) -> list[dict[str, Any]]:
    """What went wrong, as measurements."""
    findings = campaign.findings
    hung = sum(len(v) for k, v in findings.items() if k.startswith("Hung"))
    elsewhere = sum(
        len(v) for k, v in findings.items() if k.startswith(("wrote elsewhere", "changed a file"))
    )
    other = sum(map(len, findings.values())) - hung - elsewhere
    commands = ", ".join(f"{name} {count}" for name, count in sorted(campaign.commands.items()))
    work = (
        f"{campaign.tried} {what}, {campaign.taken} of them taken, the others refused; seed {seed}"
    )
    if commands:
        work += f" ({commands})"
    counts = {"a traceback": other, "no answer in time": hung, "a write outside": elsewhere}
    return [
        row(f"fuzzing: {name}", work, "inputs", our_value=count, goal="0")
        for name, count in counts.items()
    ]


def main() -> None:
    """Run both campaigns and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=9000)
    parser.add_argument("--ledgers", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60)
    given = parser.parse_args()
    end = time.time() + 60 * given.minutes
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        asked = [
            pool.apply_async(of_studies, (given.studies, given.seed, end)),
            pool.apply_async(of_ledgers, (given.ledgers, given.seed, end)),
        ]
        done = [each.get() for each in asked]
    rows = []
    for campaign, what in zip(done, ("mutated study files", "damaged ledgers"), strict=True):
        print(campaign.told())
        rows += rows_of(campaign, what, given.seed)
    write("faults", rows)


if __name__ == "__main__":
    main()

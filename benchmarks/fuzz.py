"""Fuzzing: mutated study files and damaged ledgers, and every command that reads them.

Usage: python benchmarks/fuzz.py [--studies 9000] [--ledgers 1000] [--seed 1]; writes its rows of
benchmarks/results/faults.json. What went wrong is printed, each kind once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

from measurements import row, write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fuzz"))

from campaign import Campaign, finished_study, ledgers, studies


def both(ledger_count: int, study_count: int, seed: int) -> tuple[Campaign, Campaign]:
    """The two campaigns, each in a process of its own."""
    with (
        tempfile.TemporaryDirectory() as name,
        multiprocessing.get_context("spawn").Pool(2) as pool,
    ):
        of_studies = pool.apply_async(studies, (study_count, seed))
        study, original = finished_study(Path(name))
        of_ledgers = pool.apply_async(ledgers, (ledger_count, seed, study, original))
        return of_studies.get(), of_ledgers.get()


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
    given = parser.parse_args()
    of_studies, of_ledgers = both(given.ledgers, given.studies, given.seed)
    for campaign in (of_studies, of_ledgers):
        print(campaign.told())
    rows = rows_of(of_studies, "mutated study files", given.seed)
    rows += rows_of(of_ledgers, "damaged ledgers", given.seed)
    write("faults", rows)


if __name__ == "__main__":
    main()

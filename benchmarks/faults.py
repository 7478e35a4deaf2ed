"""A campaign of faults against a real study: nothing is lost, nothing is mixed up.

Usage: python benchmarks/faults.py [--count 320] [--seed 0] [--kinds kill,hub] [--out FILE]

Every trial runs the study in a folder of its own, with real processes, strikes it with one fault at
a random moment, runs the same command again, and compares results.csv with the undisturbed study's,
byte by byte. Processes are forked from one that has imported everything, which saves their seconds
of importing. Disks are real file systems, so it runs as root. Writes benchmarks/results/faults.json
(the table of docs/reliability.md) and, as it goes, every trial to FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

from fault_lab import hub, study

HUBBED = {"hub"}


def main() -> None:
    """Parse, run every trial, write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", type=Path, help="where the folders of failed trials go")
    parser.add_argument("--no-table", action="store_true")
    parser.add_argument("--lanes", type=int, default=1, help="trials at a time")
    parser.add_argument("--lane", default="0/1", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help="a fast disk, such as /dev/shm")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-", dir=given.work) as name:
        if given.lanes > 1:
            rows = side_by_side(given.lanes, Path(name))
        else:
            lane, lanes = map(int, given.lane.split("/"))
            kinds = [kind for kind in given.kinds.split(",") if kind]
            numbers = range(lane, given.count, lanes)
            rows = campaign(Path(name), numbers, given.seed, kinds, given.out, given.keep)
    if not given.no_table:
        from measurements import write

        write("faults", table(rows))
    bad = [row for row in rows if row["end"] not in ("identical", "refused") or row["unclear"]]
    for row in bad:
        print(json.dumps(row, indent=1))
    sys.exit(1 if bad else 0)


def side_by_side(count: int, work: Path) -> list[dict[str, Any]]:
    """The campaign in several processes, each with every so-manieth trial."""
    files = [work / f"lane-{lane}.jsonl" for lane in range(count)]
    alone = [sys.executable, *sys.argv, "--no-table", "--lanes", "1"]
    running = [
        subprocess.Popen([*alone, "--lane", f"{lane}/{count}", "--out", str(file)])
        for lane, file in enumerate(files)
    ]
    for process in running:
        process.wait()
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return sorted(rows, key=lambda row: int(row["number"]))


def campaign(
    work: Path,
    numbers: range,
    seed: int,
    kinds: list[str],
    out: Path | None,
    keep: Path | None,
) -> list[dict[str, Any]]:
    """Run the trials of these numbers; the kinds take turns."""
    control = work / "control.json"
    (work / "rows.jsonl").write_text(study.rows(0, 60))
    server, endpoint = hub.start(work / "rows.jsonl", control)
    os.environ.update(
        HF_ENDPOINT=endpoint, HF_HOME=str(work / "hub"), HF_HUB_DISABLE_PROGRESS_BARS="1",
        HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false",
    )  # fmt: skip
    from fault_lab.kinds import KINDS
    from fault_lab.processes import preload
    from fault_lab.trial import Trial

    preload()
    study.make_base(work / "base")
    try:
        references = {
            (mode, special): reference(work, mode, special)
            for mode in study.MODES
            for special in ("", "hub")
            if not kinds or special in ("", *kinds)
        }
        names = kinds or list(KINDS)
        rows = []
        for number in numbers:
            name = names[number % len(names)]
            chance = random.Random(f"{seed}/{name}/{number}")
            mode = chance.choice(study.MODES)
            folder = work / "trial"
            study.write(folder, mode, work / "base", hub=name in HUBBED)
            control.write_text("")
            special = name if name in HUBBED else ""
            trial = Trial(name, number, folder, control, references[mode, special], mode, chance)
            started = time.monotonic()
            KINDS[name](trial)
            row = {"kind": name, "number": number, "mode": mode, **trial.judge()}
            row |= {"notes": trial.notes, "unclear": trial.unclear}
            row["seconds"] = round(time.monotonic() - started, 2)
            rows.append(row)
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            failed = row["end"] not in ("identical", "refused") or trial.unclear
            print(f"{number} {name}: {row['end']} {' '.join(trial.notes)}"[:150], flush=True)
            if failed and keep is not None:
                shutil.copytree(folder, keep / f"{number}", dirs_exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        return rows
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


def reference(work: Path, mode: str, special: str) -> Any:
    """The undisturbed study."""
    from fault_lab.processes import command, spawn
    from fault_lab.trial import Reference, results

    folder = work / f"whole-{mode}-{special.replace(' ', '-')}"
    study.write(folder, mode, work / "base", hub=special in HUBBED)
    arguments = ("run", "study.yaml", "--out", "out", "--no-report", "--device", "cpu")
    started = time.monotonic()
    child = spawn(command(*arguments, cwd=folder), folder / "log")
    if child.wait() != 0:
        raise RuntimeError(child.errors)
    seconds = time.monotonic() - started
    size = sum(path.stat().st_size for path in (folder / "out").rglob("*") if path.is_file())
    return Reference(results(folder / "out", folder), seconds, size)


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each kind, and one for all."""
    from fault_lab.kinds import WORDS
    from measurements import row as measured

    found = []
    for name in [*dict.fromkeys(row["kind"] for row in rows), ""]:
        own = [row for row in rows if not name or row["kind"] == name]
        good = sum(row["end"] == "identical" and not row["unclear"] for row in own)
        refused = sum(row["end"] == "refused" and not row["unclear"] for row in own)
        lost, mixed = (sum(row[key] for row in own) for key in ("lost", "mixed"))
        found.append(
            measured(
                name or "every kind",
                f"{WORDS.get(name, 'all of the above')}: {len(own)} trials, {good} complete and "
                f"identical, {refused} refused with one message, {lost} scores lost, {mixed} mixed",
                "share of trials that end well",
                our_value=(good + refused) / len(own),
                goal="1",
            )
        )
    return found


if __name__ == "__main__":
    main()

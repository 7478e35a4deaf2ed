"""Everything that only a GPU can measure, in portions of less than ten minutes each.

Usage: python benchmarks/on_a_gpu.py --portion NAME [NAME ...] --out DIR [--minutes 9.5]
[--work DIR] [--shared DIR] [--tiny], on a machine with one GPU; --list shows the portions. Each
command of a portion runs in a process of its own, with a time limit; one that fails or is too slow
does not hurt the next. Rows are kept in DIR/results as they come (take them over with
benchmarks/measurements.py), what is printed in DIR/log.txt, how each command ended in
DIR/summary.json. ``--tiny`` runs everything at toy sizes on any machine.

The seconds beside each command are an estimate for one H100; its limit is twice that.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
MOST_LOG = 12_000_000  # bytes of the log that are kept


@dataclass(frozen=True)
class Step:
    """A command of a portion.

    Attributes:
        words: what follows ``python``; a script's name means one of benchmarks/.
        seconds: how long it is expected to take on one H100.
        limit: after so many seconds it is ended; twice what is expected by default.
    """

    words: str
    seconds: int
    limit: int = 0


PORTIONS = {
    # What was never run on a GPU first, then the rows that missed their goal
    "check": (
        Step("-m pytest tests/train/test_on_a_gpu.py tests/spectrum/test_solvers.py -q", 65, 160),
        Step("variants.py --rows full_cohort_01b,agreement", 110, 200),
        Step("cohort.py --rows lora_7b,full_3b", 80, 240),
        Step("throughput.py", 45, 120),
    ),
    "switches": (
        Step("cohort.py --rows switches_7b", 160),
        Step("cohort.py --rows switches_full", 160),
        Step("cohort.py --rows switches_3b", 180),
    ),
    "cohort": (
        Step("cohort.py --rows rounding", 80, 240),
        Step("cohort.py --rows labels_3b", 80, 240),
        Step("cohort.py --rows instruct_small", 90, 240),
        Step("cohort.py --rows instruct", 110, 300),
        Step("cohort.py --rows mixed_ranks", 85),
    ),
    # What needs 100 GiB of device memory
    "large": (
        Step("cohort.py --rows full_7b", 90),
        Step("decoding.py --rows cohort_7b", 130, 220),
    ),
    # Rows that were measured on one kind of device only, or beside one peer's memory
    "again": (
        Step("cohort.py --rows lora_7b", 60),
        Step("cohort.py --rows lora_1b,lora_01b,lora_3b", 240, 400),
    ),
    # Give it again until both say done: each goes on where it stopped, in the same --work
    "study": (Step("task_study.py train", 355, 545),),
    "spectra": (
        Step("task_study.py spectra", 35, 300),
        Step("task_study.py pack", 5, 90),  # kept, should the cuts run out of time
        Step("task_study.py cuts", 140, 300),
        Step("task_study.py pack", 5, 90),
    ),
    "scoring": (
        Step("-m pytest tests/kernels -q", 30, 90),
        Step("scoring.py --rows hellaswag_1b", 100, 150),
        Step("scoring.py --rows arms_1b", 280, 420),
    ),
    "scoring_7b": (
        Step("-m pytest tests/kernels -q", 30, 90),
        Step("scoring.py --rows hellaswag_7b", 330, 500),
    ),
    "scoring_switches": (
        Step("scoring_switches.py --rows tree_attention", 45, 120),
        Step("scoring_switches.py --rows several_arms_1b", 170, 280),
        Step("scoring_switches.py --rows one_model_1b", 280, 360),
    ),
    "agreement": (
        Step(
            "task_agreement.py --gpu --documents 0 --tasks hellaswag,arc_challenge,winogrande", 150
        ),
        Step("task_agreement.py --gpu --written 164 --tasks humaneval,gsm8k", 150, 240),
    ),
    "decoding": (Step("decoding.py --rows cohort_1b,humaneval_1b", 170, 300),),
    "whole_study": (Step("whole_study.py", 300, 565),),
    "sharded": (Step("sharded.py --rows plan_13b,lora_13b", 65, 150),),
    # On a machine with several GPUs
    "several": (Step("sharded.py --rows full_3b,full_13b", 240, 500),),
    "variants": (
        Step("variants.py --rows variants_1b", 240, 360),
        Step("variants.py --rows full_cohort_035b", 110),
        Step("spectrum.py --part gpu", 110),
    ),
}


def command(step: Step, asked: argparse.Namespace) -> list[str]:
    """A step as it is run here."""
    first, *rest = step.words.split()
    if first == "-m":
        return [sys.executable, first, *rest]
    own = [sys.executable, str(ROOT / "benchmarks" / first), *rest]
    own += ["--results", str(asked.out / "results"), "--shared", str(asked.shared)]
    if first == "task_study.py":
        own += ["--work", str(asked.work)]
    if asked.tiny:
        own = [word for word in own if word != "--gpu"] + ["--tiny"]
    return own


def main() -> None:
    """Run the portions asked for; exit code 1 where a command did not end well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--portion", nargs="+", default=[], choices=list(PORTIONS))
    parser.add_argument("--out", type=Path, default=Path("on-a-gpu"))
    parser.add_argument("--minutes", type=float, default=9.5, help="for all of it")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "on-a-gpu-work")
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder with data and base")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try it anywhere")
    parser.add_argument("--list", action="store_true", help="show the portions and end")
    asked = parser.parse_args()
    if asked.list or not asked.portion:
        for name, steps in PORTIONS.items():
            print(f"{name}: about {sum(step.seconds for step in steps)} s")
            for step in steps:
                print(f"  {step.words} ({step.seconds} s)")
        return
    asked.out, asked.shared, asked.work = (
        path.resolve() for path in (asked.out, asked.shared, asked.work)
    )
    (asked.out / "results").mkdir(parents=True, exist_ok=True)
    asked.work.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * asked.minutes
    ended: list[dict[str, Any]] = []
    for name in asked.portion:
        for step in PORTIONS[name]:
            ended.append({"portion": name, "command": step.words, **run(step, asked, until)})
            (asked.out / "summary.json").write_text(json.dumps(ended, indent=1) + "\n")
    for one in ended:
        print(f"{one['end']:>12} {one['seconds']:5.0f} s  {one['portion']}: {one['command']}")
    sys.exit(int(any(one["end"] != "done" for one in ended)))


def run(step: Step, asked: argparse.Namespace, until: float) -> dict[str, Any]:
    """Run one command, its output on the screen and in the log; how it ended, and the seconds."""
    started = time.monotonic()
    limit = min(step.limit or 2 * step.seconds, until - started)
    if limit < 1:
        return {"end": "no time left", "seconds": 0.0}
    print(f"== {step.words} (about {step.seconds} s, at most {limit:.0f})", flush=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "true"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *_paths(environment)])
    log = asked.out / "log.txt"
    with log.open("ab") as file:
        file.write(f"\n== {step.words}\n".encode())
        file.flush()
        begin = file.tell()
        process = subprocess.Popen(
            command(step, asked),
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
            _end(process)
    _show(log, begin)
    end = "done" if code == 0 else "out of time" if code is None else f"exit code {code}"
    return {"end": end, "seconds": time.monotonic() - started}


def _paths(environment: dict[str, str]) -> list[str]:
    return [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and all it started: a study saves its state when it is asked to stop."""
    os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _show(log: Path, begin: int) -> None:
    """Print the last lines of a command's output, and keep the log small."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").splitlines()
    # Bars that redraw themselves fill a log
    plain = [line.rpartition("\r")[2][:300] for line in lines]
    print("\n".join(plain[-25:]), flush=True)
    if log.stat().st_size > MOST_LOG:
        log.write_bytes(log.read_bytes()[-MOST_LOG // 2 :])


if __name__ == "__main__":
    main()

"""The sandbox: HumanEval's solutions and mutants of them, hostile programs, and the speed.

Usage: python benchmarks/sandbox.py; writes its rows of benchmarks/results/scoring.json. Needs
HumanEval in ../shared/data/eval. Started by root it measures again as an ordinary user, which is
where the sandbox without namespaces can be had.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measurements import row, write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "evaluate" / "sandbox"))

from hostile_programs import ALL, SECRET
from humaneval_programs import canonical, mutants, plain_python, problems, silent
from sandbox_hosts import attacked, below

from paretune.errors import UserError
from paretune.evaluate.sandbox import Limits, Program, Sandbox, open_sandbox

TESTS = Path(__file__).parents[1] / "tests" / "evaluate" / "sandbox"
CORES = len(os.sched_getaffinity(0))
MUTANTS = 5
REPEATS = 5
# Beyond its limits, a program that still runs after this long has stalled the run
STALLED_SECONDS = 60.0


def solutions(sandbox: Sandbox) -> list[dict[str, Any]]:
    """Canonical solutions, and the same with their answers thrown away."""
    rows = problems()
    right = sandbox.run([canonical(each) for each in rows])
    wrong = sandbox.run([silent(each) for each in rows])
    return [
        row(
            "sandbox: canonical solutions that pass",
            f"HumanEval, {len(rows)} problems",
            "programs",
            our_value=sum(verdict.passed for verdict in right),
            goal=f"all {len(rows)}",
        ),
        row(
            "sandbox: wrong solutions that fail",
            f"HumanEval, {len(rows)} problems, the canonical answers thrown away",
            "programs",
            our_value=sum(verdict.status == "failed" for verdict in wrong),
            goal=f"all {len(rows)}",
        ),
    ]


def agreement(sandbox: Sandbox) -> dict[str, Any]:
    """Mutants of the solutions, against executing code and tests as one text."""
    programs = [each for of in problems() for each in mutants(of, count=MUTANTS, seed=1)]
    ours = [verdict.status for verdict in sandbox.run(programs)]
    theirs = [plain_python(program) for program in programs]
    for program, a, b in zip(programs, ours, theirs, strict=True):
        if a != b:
            print(f"{a} here, {b} in plain Python:\n{program.code}")
    failed = theirs.count("failed")
    return row(
        "sandbox: verdicts equal to plain Python's",
        f"{len(programs)} mutants of HumanEval's solutions ({failed} of them wrong)",
        "%",
        our_value=100 * sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(programs),
        goal="100",
        peer="exec in one process, as lm-eval's code_eval, 10 s",
        peer_value=100.0,
    )


def speed(sandbox: Sandbox) -> dict[str, Any]:
    """Programs a second, the median of several passes over HumanEval's solutions."""
    programs = [canonical(each) for each in problems()]
    rates = []
    for _ in range(REPEATS):
        begin = time.monotonic()
        sandbox.run(programs)
        rates.append(len(programs) / (time.monotonic() - begin))
    rate = sorted(rates)[REPEATS // 2]
    return row(
        f"sandbox: throughput, {sandbox.name}",
        f"HumanEval's solutions with their tests, {CORES} wardens, median of {REPEATS} passes",
        "programs/s",
        our_value=rate,
        ratio=rate / 50,
        goal="50 on 2 cores",
    )


def hostile(name: str) -> list[dict[str, Any]]:
    """Every hostile program, one after another; what got through, and what was left."""
    passed, stalled, left, spoiled = [], [], [], []
    with (
        open_sandbox(name, workers=1, limits=Limits(seconds=1.0)) as sandbox,
        tempfile.TemporaryDirectory() as folder,
        attacked(Path(folder)) as host,
    ):
        Path(folder).chmod(0o777)
        for each in ALL:
            before = below(os.getpid())
            begin = time.monotonic()
            (verdict,) = sandbox.run([Program(each.filled(host.words), each.tests)])
            if verdict.passed:
                passed.append(each.name)
            if time.monotonic() - begin > STALLED_SECONDS:
                stalled.append(each.name)
            if not below(os.getpid()) <= before:
                left.append(each.name)
            try:
                host.intact()
            except AssertionError:
                spoiled.append(each.name)
    work = f"{len(ALL)} hostile programs, {name}"
    found = {
        "that pass or reach their aim": passed,
        "that stall the run": stalled,
        "that leave a process": left,
        "that leave a file or harm the host": spoiled,
    }
    for what, names in found.items():
        if names:
            print(f"{name}: {what}: {', '.join(names)}", file=sys.stderr)
    return [
        row(f"sandbox: programs {what}", work, "programs", our_value=len(names), goal="0")
        for what, names in found.items()
    ]


def in_each_sandbox() -> list[dict[str, Any]]:
    """Speed and hostile programs, in each sandbox that works for this user."""
    user = "root" if os.geteuid() == 0 else "an ordinary user"
    rows: list[dict[str, Any]] = []
    for name in ("bubblewrap", "namespaces", "landlock"):
        try:
            with open_sandbox(name) as sandbox:
                rows.append(speed(sandbox))
            rows += hostile(name)
        except UserError as error:
            print(error, file=sys.stderr)
    return [{**each, "work": f"{each['work']}; started by {user}"} for each in rows]


def as_user() -> list[dict[str, Any]]:
    """The same rows, from a process that has given up root."""
    command = [sys.executable, str(TESTS / "as_user.py"), __file__, "--print"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    for each in rows:
        each["command"] = each["command"].removesuffix(" --print")
    return rows


def main() -> None:
    """Measure; with --print only what depends on the user, as JSON."""
    os.environ["TOKEN"] = SECRET
    if "--print" in sys.argv:
        print(json.dumps(in_each_sandbox()))
        return
    with open_sandbox() as sandbox:
        rows = [*solutions(sandbox), agreement(sandbox)]
    rows += in_each_sandbox()
    if os.geteuid() == 0:
        rows += as_user()
    write("scoring", rows)


if __name__ == "__main__":
    main()

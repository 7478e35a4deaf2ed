"""Hostile programs: none escapes, none stalls the run, none passes, nothing is left of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile_programs import ALL, BOMBS, CHEATED, SECRET, Hostile
from sandbox_hosts import Host, below

from paretune.evaluate.sandbox import Limits, Program, Sandbox, open_sandbox

# Beyond its limits a program has ended after this long, on a busy machine too
MOST_SECONDS = 60.0
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def quiet(sandbox: Sandbox) -> set[int]:
    """The processes there are while no program runs."""
    return below(os.getpid())


@pytest.mark.parametrize("hostile", ALL, ids=lambda hostile: hostile.name)
def test_hostile_program(sandbox: Sandbox, host: Host, quiet: set[int], hostile: Hostile) -> None:
    before = below(os.getpid())
    begin = time.monotonic()
    (verdict,) = sandbox.run([Program(hostile.filled(host.words), hostile.tests)])
    assert verdict.status in ("failed", "timeout", "memory"), verdict
    assert time.monotonic() - begin < MOST_SECONDS
    assert below(os.getpid()) <= before, "a process is left"
    host.intact()


def test_one_after_another(sandbox: Sandbox, host: Host, quiet: set[int]) -> None:
    """Right programs among hostile ones pass, and their neighbours do not."""
    right = Program("def add(a, b):\n    return a + b\n", CHEATED)
    hostile = [each for each in ALL if each not in BOMBS]
    programs = []
    for each in hostile:
        programs += [Program(each.filled(host.words), each.tests), right]
    verdicts = sandbox.run(programs)
    assert [verdict.passed for verdict in verdicts] == [False, True] * len(hostile)
    assert below(os.getpid()) <= quiet, "a process is left"
    host.intact()


REACHING = [each for each in ALL if each.unconfined]


@pytest.mark.parametrize("hostile", REACHING, ids=lambda hostile: hostile.name)
def test_the_attacks_are_real(
    hostile: Hostile, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without walls these programs do reach what they are after: the tests above can fail."""
    monkeypatch.setenv("TOKEN", SECRET)
    victim = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, env={"TOKEN": SECRET})
    try:
        with open_sandbox("unsafe", workers=1, limits=Limits(seconds=5)) as nothing:
            words = {**host.words, "pid": str(victim.pid)}
            (verdict,) = nothing.run([Program(hostile.filled(words), hostile.tests)])
        assert verdict.passed, verdict
    finally:
        victim.kill()
        victim.communicate()


@pytest.mark.skipif(os.geteuid() != 0, reason="these tests already run without privileges")
def test_as_a_user_without_privileges() -> None:
    """The same, started by an ordinary user; bombs, which take their time, under ``slow``."""
    run_as_user("test_one_after_another")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="these tests already run without privileges")
def test_all_as_a_user_without_privileges() -> None:
    run_as_user("test_hostile_program")


def run_as_user(test: str) -> None:
    """Run a test of this file as a user who owns nothing."""
    options = ["-m", "pytest", "-p", "no:cacheprovider", f"--confcutdir={HERE}"]
    done = subprocess.run(
        [sys.executable, str(HERE / "as_user.py"), *options, f"{__file__}::{test}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=HERE.parents[2],
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

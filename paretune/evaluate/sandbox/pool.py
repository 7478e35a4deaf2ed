"""Wardens, one a core, that judge programs at the same time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import paretune
from paretune.cores import cores
from paretune.errors import UserError
from paretune.evaluate.sandbox.confined import wire
from paretune.evaluate.sandbox.program import Limits, Program, Verdict

Walls = Literal["namespaces", "landlock", "none"]
# Processor seconds of REFERENCE_PROGRAM on the machine that Limits.seconds is meant for
REFERENCE_SECONDS = 0.12
REFERENCE_PROGRAM = Program(
    code="def count(n):\n    total = 0\n    for i in range(n):\n        total += i & 3\n"
    "    return total\n",
    tests="assert count(4_000_000) == 6_000_000",
)
_START = (
    "import sys; sys.path.insert(0, {root!r}); "
    "from paretune.evaluate.sandbox.confined import warden; warden.main()"
)
# Beyond all limits of a job: then the warden itself does not answer any more
_GRACE_SECONDS = 30.0


class WardenError(RuntimeError):
    """A warden died or broke its protocol; a fault of the sandbox, not of the program."""


class Pool:
    """A sandbox of several wardens.

    Args:
        name: of the sandbox, as in the registry.
        walls: what stands between a program and the machine.
        workers: wardens; by default one for each core this process may use.
        limits: of each program, on the machine of reference.
        around: gives the command of a further sandbox that each warden is started in.
        packages: whether programs may import what is installed beside Paretune (numpy, say), as
            they may in lm-eval's code_eval.

    Raises:
        UserError: the machine refuses the walls; the message says which and why.
    """

    def __init__(
        self,
        name: str,
        walls: Walls,
        *,
        workers: int | None = None,
        limits: Limits | None = None,
        around: Callable[[dict[str, Any]], list[str]] | None = None,
        packages: bool = True,
    ) -> None:
        self.name = name
        self.limits = limits or Limits()
        self._settings = settings(walls, packages=packages)
        self._around = around(self._settings) if around else []
        count = workers or cores()
        self._wardens: list[_Warden] = []
        try:
            for _ in range(count):
                self._wardens.append(_Warden(self._settings, self._around))
        except BaseException:
            self.close()
            raise
        self.slowness = self._calibrate()

    def run(
        self,
        programs: Sequence[Program],
        *,
        done: Callable[[int], None] | None = None,
    ) -> list[Verdict]:
        """The verdict of each program, in their order.

        Raises:
            WardenError: the sandbox itself failed twice on one program.
        """
        limits = replace(self.limits, seconds=self.limits.seconds * self.slowness)
        return self._run(programs, limits, done)

    def _run(
        self, programs: Sequence[Program], limits: Limits, done: Callable[[int], None] | None = None
    ) -> list[Verdict]:
        verdicts: list[Verdict | None] = [None] * len(programs)
        waiting = iter(range(len(programs)))
        lock = threading.Lock()
        failures: list[BaseException] = []
        finished = 0

        def work(place: int) -> None:
            nonlocal finished
            while not failures:
                with lock:
                    index = next(waiting, None)
                if index is None:
                    return
                try:
                    verdicts[index] = self._judge(place, programs[index], limits)
                except BaseException as error:
                    failures.append(error)
                    return
                with lock:
                    finished += 1
                    if done is not None:
                        done(finished)

        threads = [
            threading.Thread(target=work, args=(place,), daemon=True)
            for place in range(min(len(self._wardens), len(programs)))
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:  # Ctrl-C: the threads end with the wardens they wait for
            failures.append(KeyboardInterrupt())
            self.close()
            raise
        if failures:
            raise failures[0]
        return [verdict for verdict in verdicts if verdict is not None]

    def close(self) -> None:
        """End the wardens, and with them all that they started."""
        for warden in self._wardens:
            warden.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _judge(self, place: int, program: Program, limits: Limits) -> Verdict:
        try:
            return self._wardens[place].judge(program, limits)
        except WardenError:
            # Perhaps the machine killed it (out of memory); a new one has its chance
            self._wardens[place].close()
            self._wardens[place] = _Warden(self._settings, self._around)
            return self._wardens[place].judge(program, limits)

    def _calibrate(self) -> float:
        """How many times slower than the machine of reference this one is; at least 1.

        Processor time is measured, with all wardens at work, so that a clock that sinks under
        load is part of it and a busy neighbour is not.
        """
        verdicts = self._run([REFERENCE_PROGRAM] * len(self._wardens), Limits(seconds=60))
        broken = next((verdict for verdict in verdicts if not verdict.passed), None)
        if broken is not None:
            raise WardenError(f"the reference program came back {broken.status}: {broken.reason}")
        return max(1.0, max(verdict.cpu_seconds for verdict in verdicts) / REFERENCE_SECONDS)


def settings(walls: Walls, *, packages: bool) -> dict[str, Any]:
    """What a warden must know: the walls, and the files that stay visible behind them."""
    # Of the interpreter itself, not of the virtual environment that this may be
    of_base = {"installed_base": sys.base_prefix, "installed_platbase": sys.base_exec_prefix}
    stdlib = sysconfig.get_path("stdlib", vars=of_base)
    beside = f"{stdlib}/lib-dynload"
    extensions = beside if Path(beside).exists() else sysconfig.get_config_var("DESTSHARED")
    own = sysconfig.get_paths()
    installed = sorted({own["purelib"], own["platlib"]}) if packages else []
    libraries = [str(Path(sys.base_prefix) / name) for name in ("lib", "lib64")]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"]
    visible = _outermost([*system, *libraries, stdlib, *installed])
    return {
        "walls": walls,
        "visible": visible,
        "readable": [*visible, "/dev/zero", "/dev/random", "/dev/urandom"],
        "path": [stdlib, extensions, *installed],
    }


def _outermost(paths: Sequence[str]) -> list[str]:
    """Those that exist and are in no other; of one and the same, the first."""
    kept: list[str] = []
    for path in sorted({str(Path(path)) for path in paths if Path(path).exists()}):
        if not any(Path(path).is_relative_to(other) for other in kept):
            kept.append(path)
    return kept


class _Warden:
    """The host's end of one warden."""

    def __init__(self, how: dict[str, Any], around: Sequence[str] = ()) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        start = _START.format(root=str(Path(paretune.__file__).parents[1]))
        # An empty environment: what it holds could be read in /proc, whatever is unset later.
        # A fixed seed for hashes makes what depends on the order of a set the same in every run.
        flags = ["-s", "-P", "-S", "-B", "-X", "utf8"]
        what = json.dumps({**how, "channel": theirs.fileno()})
        self._process = subprocess.Popen(
            [*around, os.path.realpath(sys.executable), *flags, "-c", start, what],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"PYTHONHASHSEED": "0"},
            cwd="/",
            start_new_session=True,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        try:
            answer = self._receive(_GRACE_SECONDS)
        except WardenError:
            self.close()
            raise
        if "refused" in answer:
            self.close()
            raise UserError(answer["refused"])

    def judge(self, program: Program, limits: Limits) -> Verdict:
        """One verdict.

        Raises:
            WardenError: none came back.
        """
        wall = limits.seconds * limits.patience
        message = {
            "cpu_seconds": limits.seconds,
            "wall_seconds": wall,
            "memory_bytes": limits.memory_bytes,
            "disk_bytes": limits.disk_bytes,
            "processes": limits.processes,
        }
        channel = self._socket.fileno()
        try:
            wire.send(channel, message)
            for text in (program.code, program.tests):
                wire.send_bytes(channel, text.encode("utf-8", "surrogatepass"))
        except OSError as error:
            raise WardenError("a warden of the sandbox has died") from error
        answer = self._receive(10 * wall + _GRACE_SECONDS)
        if answer["status"] == "broken":
            raise WardenError(f"the sandbox could not run a program: {answer['reason']}")
        return Verdict(answer["status"], answer["reason"], answer["cpu_seconds"], answer["seconds"])

    def close(self) -> None:
        """Kill it; its namespace, or the warden's end of the channel, takes the rest along."""
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _receive(self, seconds: float) -> dict[str, Any]:
        channel = self._socket.fileno()
        try:
            if not select.select([channel], [], [], seconds)[0]:
                raise wire.Ended("does not answer")
            return dict(wire.receive(channel))
        except wire.Ended as error:
            said = ""
            if self._process.poll() is not None and self._process.stderr is not None:
                said = self._process.stderr.read().decode(errors="replace")[-2000:]
            raise WardenError(f"a warden of the sandbox {error} {said}".strip()) from error

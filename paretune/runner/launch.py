"""Starting the processes of a sharded cohort, through PyTorch's launcher (torchrun).

``paretune run`` holds the arms' leases and waits; the processes end when it does. What they have to
say comes as lines of JSON: progress, and at the end how each of them ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from paretune.errors import Fault, UserError
from paretune.runner.progress import Progress
from paretune.runner.stop import GRACE_SECONDS
from paretune.study.sharding import Sharding

if TYPE_CHECKING:
    from paretune.runner.cohort import Seconds

# A process that dies without a message (killed, crashed) is started again this often, with all
RETRIES = 3
_PR_SET_PDEATHSIG = 1
_LAUNCHER = "PARETUNE_LAUNCHER"


@dataclass(frozen=True)
class Asked:
    """What the processes are to do.

    Attributes:
        arms: ids of the cohort's; none: score the base.
        device: ``cpu``, ``cuda`` for all GPUs that are visible, or one of them (``cuda:1``).
        runner: whose leases cover it, and whose log it is written to.
        report: a folder in which each process says how it ended.
    """

    folder: str
    arms: tuple[str, ...]
    sharding: Sharding
    device: str
    runner: str
    report: str = ""

    @classmethod
    def read(cls, text: str) -> Asked:
        """Undo of ``json.dumps(asdict(asked))``."""
        values = json.loads(text)
        values["sharding"] = Sharding(**values["sharding"])
        return cls(**{**values, "arms": tuple(values["arms"])})


def launch(asked: Asked, threads: int, progress: Progress, seconds: Seconds) -> None:
    """Run the processes to their end.

    Args:
        threads: of all processes together, on a CPU.
        seconds: what their time is added to.

    Raises:
        torch.OutOfMemoryError: the devices refused memory.
        UserError: their own message; a Fault where one died too often.
    """
    for attempt in range(1, RETRIES + 2):
        with tempfile.TemporaryDirectory() as report:
            how = _once(asked, Path(report), threads, progress, seconds)
        if how is None:
            return
        if attempt <= RETRIES:
            progress.line(f"a process of the sharded cohort {how}; starting it again")
    raise Fault(
        f"a process of the sharded cohort {how} {RETRIES + 1} times. What is finished stays; the "
        "same command goes on from there"
    )


def _once(
    asked: Asked, report: Path, threads: int, progress: Progress, seconds: Seconds
) -> str | None:
    """Start all processes once; how one died that said nothing, or None when all is done."""
    count = asked.sharding.devices
    kind, _, index = asked.device.partition(":")
    values = asdict(asked) | {"report": str(report), "device": kind}
    command = [sys.executable, "-m", "paretune.runner.launch", str(os.getpid())]
    command += ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(count)]
    command += ["-m", "paretune.runner.rank", json.dumps(values)]
    env = {**os.environ, "OMP_NUM_THREADS": str(max(1, threads // count))}
    if index:
        # A worker that was given one GPU of several: its processes see no other
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        env["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(index)] if visible else index
    # All processes are on this machine
    env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with (report / "errors").open("w") as errors:
        # A session of its own: Ctrl-C in a terminal reaches this process, which stops the others
        launcher = subprocess.Popen(
            command, env=env, text=True, stdout=subprocess.PIPE, stderr=errors,
            start_new_session=True,
        )  # fmt: skip
    try:
        _follow(launcher, progress, seconds)
    finally:
        if launcher.poll() is None:
            launcher.terminate()
            try:
                launcher.wait(GRACE_SECONDS + 10)
            except subprocess.TimeoutExpired:
                launcher.kill()
                launcher.wait()
    if launcher.returncode == 0:
        return None
    _raise_reported([json.loads(path.read_text()) for path in sorted(report.glob("*.json"))])
    return _how_it_died(launcher.returncode, (report / "errors").read_text(errors="replace"))


def _follow(launcher: subprocess.Popen[str], progress: Progress, seconds: Seconds) -> None:
    """Show what the processes report, until the launcher ends."""
    lines: queue.Queue[str | None] = queue.Queue()
    out = launcher.stdout
    assert out is not None

    def read() -> None:
        for line in out:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=0.5)  # open to signals
        except queue.Empty:
            continue
        if line is None:
            launcher.wait()
            return
        try:
            kind, *values = json.loads(line)
        except (ValueError, TypeError):
            continue  # a library's own words
        if kind == "seconds":
            for phase, spent in values[0].items():
                setattr(seconds, phase, getattr(seconds, phase) + spent)
        elif kind in ("begin", "advance", "line"):
            getattr(progress, kind)(*values)


def _raise_reported(reports: Sequence[dict[str, Any]]) -> None:
    """Raise what a process has reported, where that is not a consequence of another one's end."""
    for report in reports:
        # Stopped by the launcher, which was not asked to by this process: another one died
        if report["kind"] == "message" and report["code"] in (UserError.exit_code, Fault.exit_code):
            kind = Fault if report["code"] == Fault.exit_code else UserError
            raise kind(report["message"])
    for report in reports:
        if report["kind"] == "memory":
            raise torch.OutOfMemoryError(report["message"])
    for report in reports:
        if report["kind"] == "crash":
            raise RuntimeError(f"a process of the sharded cohort failed:\n{report['message']}")


def _how_it_died(code: int, errors: str) -> str:
    for found in re.findall(r"exitcode\s*:\s*-(\d+)", errors):
        if int(found) != signal.SIGTERM:
            return f"was killed by {signal.Signals(int(found)).name}"
    if code < 0:
        return f"lost its launcher to {signal.Signals(-code).name}"
    return f"failed (code {code})"


def end_with_parent(parent: int) -> None:
    """Be killed when the process that started this one ends; at once where it is gone already.

    Not SIGTERM: another run may take the arms over at that moment.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def launcher_pid() -> int:
    """The number of the launcher's process, as it told the processes that it started."""
    return int(os.environ[_LAUNCHER])


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    os.environ[_LAUNCHER] = str(os.getpid())
    from torch.distributed.run import main

    main(sys.argv[2:])

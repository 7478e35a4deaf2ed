"""What a whole tree of processes uses, and the end of it.

Limits that the kernel keeps are kept for each process: a program that forks has them many times
over. So the sums over all its processes are watched here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGESIZE")
_FIRST_LOOK, _LONGEST_PAUSE = 0.01, 0.05
_REST = 0.0002


class Watch:
    """The limits of one job.

    Args:
        limits: cpu_seconds, wall_seconds, memory_bytes, of the tests and the program together.
        begin: time.monotonic() when the job began.
    """

    def __init__(self, limits: dict[str, Any], begin: float) -> None:
        self._limits = limits
        self._begin = begin
        self._ended_cpu: dict[int, float] = {}
        self._pause = _FIRST_LOOK
        self.cpu_seconds = 0.0

    def pause(self) -> float:
        """Seconds until the next look: soon at first, so that short jobs are not disturbed."""
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return self._pause

    def measure(self) -> tuple[int, float]:
        """Memory of all processes in bytes, and seconds they waited for a core; updates CPU."""
        memory, waited = 0, 0.0
        for process in descendants():
            use = _use(process)
            if use is None:
                continue
            self._ended_cpu[process] = max(self._ended_cpu.get(process, 0.0), use[0])
            memory += use[1]
            waited = max(waited, use[2])
        self.cpu_seconds = sum(self._ended_cpu.values())
        return memory, waited

    def broken_limit(self) -> dict[str, Any] | None:
        """The verdict over a job that went past a limit, else None.

        The wall clock does not run while the job waits for a core, up to ten times the limit: on
        a busy machine a slow neighbour is not the program's fault.
        """
        memory, waited = self.measure()
        if memory > self._limits["memory_bytes"]:
            return {"status": "memory", "reason": f"used {memory >> 20} MiB of memory"}
        if self.cpu_seconds > self._limits["cpu_seconds"]:
            reason = f"used {self.cpu_seconds:.1f} s of processor time"
            return {"status": "timeout", "reason": reason}
        elapsed = time.monotonic() - self._begin
        most = self._limits["wall_seconds"]
        if elapsed > most + min(waited, 9 * most):
            return {"status": "timeout", "reason": f"took {elapsed:.1f} s"}
        return None


def descendants() -> list[int]:
    """Every process below this one, however it came there."""
    parent = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _stat(int(name))
            if fields is not None:
                parent[int(name)] = int(fields[1])
    found: list[int] = []
    level = {os.getpid()}
    while level:
        level = {process for process, above in parent.items() if above in level}
        found += level
    return found


def kill_all() -> None:
    """Kill every process below this one, and return when there is none.

    Orphans become our children, since this is the first process of its namespace or has declared
    itself a reaper, so none can get away.
    """
    while True:
        below = descendants()
        for process in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(_REST)
        except ChildProcessError:
            if not below:
                return


def _use(process: int) -> tuple[float, int, float] | None:
    """CPU seconds (with ended children), bytes of memory of its own, seconds spent waiting."""
    fields = _stat(process)
    if fields is None:
        return None
    cpu = sum(int(ticks) for ticks in fields[11:15]) / _TICK
    try:
        with open(f"/proc/{process}/statm") as file:
            _, resident, shared, *_ = (int(pages) for pages in file.read().split())
        with open(f"/proc/{process}/status") as file:
            status = file.read()
        with open(f"/proc/{process}/schedstat") as file:
            waited = int(file.read().split()[1]) / 1e9
    except (OSError, ValueError):
        return cpu, 0, 0.0
    in_memory_files = status.partition("RssShmem:")[2].split(maxsplit=1)
    shm = int(in_memory_files[0]) * 1024 if in_memory_files else 0
    return cpu, (resident - shared) * _PAGE + shm, waited


def _stat(process: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on (field 3 of proc(5) is the first)."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None

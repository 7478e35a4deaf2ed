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
            return too_long(self.cpu_seconds)
        elapsed = time.monotonic() - self._begin
        most = self._limits["wall_seconds"]
        if elapsed > most + min(waited, 9 * most):
            return {"status": "timeout", "reason": f"took {elapsed:.1f} s"}
        return None


def too_long(cpu_seconds: float) -> dict[str, Any]:
    """The verdict over a job that used too much processor time."""
    return {"status": "timeout", "reason": f"used {cpu_seconds:.1f} s of processor time"}


def descendants() -> list[int]:
    """Every process below this one, however it came there."""
    if os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        level, found = [os.getpid()], []
        while level:
            level = [child for process in level for child in _children(process)]
            found += level
        return found
    return _descendants_among_all()


def _children(process: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):
            found += map(int, _read(f"/proc/{process}/task/{thread}/children").split())
    return found


def _descendants_among_all() -> list[int]:
    """The same where the kernel does not list children."""
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


def kill_all() -> float:
    """Kill every process below this one and wait until there is none; return their CPU seconds.

    Orphans become our children, since this is the first process of its namespace or has declared
    itself a reaper, so none can get away.
    """
    seconds = 0.0
    while True:
        if os.getpid() == 1:
            with contextlib.suppress(ProcessLookupError):  # all in the namespace but this one
                os.kill(-1, signal.SIGKILL)
            wait = 0
        else:
            for process in descendants():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            wait = os.WNOHANG
        try:
            while True:
                process, _, used = os.wait4(-1, wait)
                if process == 0:
                    time.sleep(_REST)
                    break
                seconds += used.ru_utime + used.ru_stime
        except ChildProcessError:
            return seconds


def _use(process: int) -> tuple[float, int, float] | None:
    """CPU seconds (with ended children), bytes of memory of its own, seconds spent waiting."""
    fields = _stat(process)
    if fields is None:
        return None
    cpu = sum(int(ticks) for ticks in fields[11:15]) / _TICK
    try:
        _, resident, shared, *_ = (int(pages) for pages in _read(f"/proc/{process}/statm").split())
        in_memory_files = _read(f"/proc/{process}/status").partition("RssShmem:")[2].split()
        waited = int(_read(f"/proc/{process}/schedstat").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return cpu, 0, 0.0
    shm = int(in_memory_files[0]) * 1024 if in_memory_files else 0
    return cpu, (resident - shared) * _PAGE + shm, waited


def _stat(process: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on (field 3 of proc(5) is the first)."""
    try:
        return _read(f"/proc/{process}/stat").rpartition(")")[2].split()
    except OSError:
        return None


def _read(path: str) -> str:
    opened = os.open(path, os.O_RDONLY)
    try:
        return os.read(opened, 8192).decode(errors="replace")
    finally:
        os.close(opened)

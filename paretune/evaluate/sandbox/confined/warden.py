"""The parent of all that runs inside: it builds the walls once, then confines program by program.

    host -- warden -- examiner (the tests) -- candidate (the program)

The host sends a job and reads a verdict; the warden forks an examiner and watches the clock, the
memory and the processes; the examiner forks the candidate behind further walls and puts the
tests to it. After every verdict the warden kills whatever is left and waits until it is alone.

Run as: python -c "... warden.main()" SETTINGS, which name the host's channel, a descriptor.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import random
import resource
import select
import signal
import socket
import sys
import time
from typing import Any

from paretune.evaluate.sandbox.confined import (
    candidate,
    examiner,
    landlock,
    linux,
    mounts,
    seccomp,
    watch,
    wire,
)

HOST = 3
# An id that no distribution gives to anyone: under root, everything runs as this user
UNPRIVILEGED = 64_999
INSIDE = 1000
# Modules that tests and programs use often, loaded once for all of them
LOADED_BEFORE = (
    "bisect collections copy datetime decimal fractions functools hashlib heapq itertools math "
    "numbers operator random re statistics string struct time typing"
)
_ENVIRONMENT = {
    "HOME": mounts.SCRATCH,
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": "/usr/bin:/bin",
    "TMPDIR": mounts.SCRATCH,
}
_OPEN_FILES = 64


def main() -> None:
    """Build the walls that ``sys.argv[1]`` (JSON) asks for, say so, and serve the host."""
    settings = json.loads(sys.argv[1])
    walls = settings["walls"]
    if settings["channel"] != HOST:
        os.dup2(settings["channel"], HOST)
        os.close(settings["channel"])
    for name in LOADED_BEFORE.split():
        __import__(name)
    try:
        if walls != "none" and not seccomp.supported():
            raise OSError(f"the system calls of {platform.machine()} are not known to it")
        if walls == "namespaces":
            _behind_namespaces(settings["visible"])
        else:
            linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
            if walls == "landlock":
                _behind_landlock(settings["path"][0])
    except OSError as error:
        wire.send(HOST, {"refused": str(error)})
        return
    sys.path[:] = settings["path"]
    os.environ.clear()
    os.environ.update(_ENVIRONMENT)
    settings["rules"] = None
    if walls != "none":
        linux.never_gain_capabilities()
        if landlock.version():
            settings["rules"] = landlock.rules(settings["readable"])
        seccomp.compiled(processes=True, only_signal=None)
    gc.freeze()
    wire.send(HOST, {"ready": os.getpid()})
    with contextlib.suppress(wire.Ended):
        while True:
            limits = wire.receive(HOST)
            wire.send(HOST, _judge(settings, limits))


def _behind_namespaces(visible: list[str]) -> None:
    """Leave every namespace of the host, and its files, for new ones.

    Returns in the first process of the new process namespace: when it dies, all in it die.
    """
    base = "/tmp"
    as_root = os.geteuid() == 0
    if as_root:
        linux.unshare(linux.CLONE_NEWNS)
        mounts.build(visible, base)
        _become_unprivileged()
    user, group = os.getuid(), os.getgid()
    linux.unshare(
        linux.CLONE_NEWUSER
        | linux.CLONE_NEWNS
        | linux.CLONE_NEWPID
        | linux.CLONE_NEWNET
        | linux.CLONE_NEWIPC
        | linux.CLONE_NEWUTS
        | linux.CLONE_NEWCGROUP
    )
    for name, line in [
        ("uid_map", f"{INSIDE} {user} 1"),
        ("setgroups", "deny"),
        ("gid_map", f"{INSIDE} {group} 1"),
    ]:
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)
    child = os.fork()
    if child:
        os.close(HOST)
        os.waitpid(child, 0)
        os._exit(0)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if not as_root:
        mounts.build(visible, base)
    mounts.enter(base)


def _behind_landlock(library: str) -> None:
    """Become unprivileged; files and signals are walled off later, for each program."""
    if landlock.version() == 0:
        raise OSError("the kernel has no Landlock, or it is not switched on")
    _become_unprivileged()
    try:
        os.listdir(library)
    except PermissionError:
        raise OSError(
            f"run by root, it becomes another user, who cannot enter {library}: let others read "
            "that folder, or do not run as root"
        ) from None


def _become_unprivileged() -> None:
    """Under root, become a user that owns nothing; a mapped id alone would be cosmetic."""
    if os.geteuid() != 0:
        return
    os.setgroups([])
    os.setresgid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
    os.setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
    # Else /proc/self belongs to root still, and with it the map of users
    linux.prctl(linux.PR_SET_DUMPABLE, 1)


def _judge(settings: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    """Let an examiner judge the job that follows on the host's channel, and watch over it."""
    begin = time.monotonic()
    report, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(report)
            _examine(settings, limits, write)
        except BaseException as error:
            with contextlib.suppress(BaseException):
                wire.send(write, {"status": "broken", "reason": f"{type(error).__name__}: {error}"})
        os._exit(0)
    os.close(write)
    overseer = watch.Watch(limits, begin)
    try:
        verdict = _await(report, overseer)
    finally:
        os.close(report)
        cpu_seconds = watch.kill_all()
    if cpu_seconds > limits["cpu_seconds"] and verdict["status"] in ("passed", "failed"):
        # It ended between two looks of the watch; whether it does so must not decide
        verdict = watch.too_long(cpu_seconds)
    return {
        **verdict,
        "cpu_seconds": cpu_seconds,
        "seconds": time.monotonic() - begin,
    }


def _await(report: int, overseer: watch.Watch) -> dict[str, Any]:
    """The examiner's verdict, or the watch's."""
    poll = select.poll()
    poll.register(report, select.POLLIN)
    poll.register(HOST, 0)
    while True:
        ready = dict(poll.poll(1000 * overseer.pause()))
        if HOST in ready:  # the host is gone
            watch.kill_all()
            os._exit(0)
        if ready:
            try:
                return dict(wire.receive(report))
            except wire.Ended:
                reason = "the process that ran the tests ended"
                return overseer.broken_limit() or {"status": "failed", "reason": reason}
        broken = overseer.broken_limit()
        if broken is not None:
            return broken


def _examine(settings: dict[str, Any], limits: dict[str, Any], write: int) -> None:
    """In the examiner's process: start the candidate, put the tests to it, report."""
    walls = settings["walls"]
    code = wire.receive_bytes(HOST).decode("utf-8", "surrogatepass")
    ours, theirs = _channel()
    if walls == "namespaces":
        linux.unshare(linux.CLONE_NEWPID | linux.CLONE_NEWNS | linux.CLONE_NEWIPC)
    if os.fork() == 0:
        # Before the tests are read: they are never in the program's memory
        try:
            os.dup2(theirs, HOST)
            os.closerange(HOST + 1, 1 << 16)
            _confine_candidate(settings, limits)
            candidate.serve(HOST, code)
        except BaseException as error:
            with contextlib.suppress(BaseException):
                wire.send(HOST, candidate.raised(error))
        os._exit(0)
    os.close(theirs)
    tests = wire.receive_bytes(HOST).decode("utf-8", "surrogatepass")
    os.close(HOST)
    _silence()
    _limit(limits, processes=False)
    if walls != "none":
        linux.drop_capabilities()
        if settings["rules"] is not None:
            landlock.restrict(settings["rules"])
        seccomp.restrict(processes=False, signals=False)
    random.seed(0)
    wire.send(write, examiner.examine(ours, tests))


def _channel() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def _confine_candidate(settings: dict[str, Any], limits: dict[str, Any]) -> None:
    """In the candidate's process: the last walls, then nothing of ours is left to reach."""
    walls = settings["walls"]
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if walls == "namespaces":
        mounts.own_processes("/proc")
        mounts.scratch(limits["disk_bytes"], settings["visible"])
    _silence()
    _limit(limits, processes=walls == "namespaces")
    if walls != "none":
        spaces = walls == "namespaces"
        linux.drop_capabilities()
        if spaces and landlock.version():
            # Its whole root is made of what it may read
            landlock.restrict(landlock.rules(["/"], [mounts.SCRATCH, "/dev/null"]))
        elif not spaces:
            landlock.restrict(landlock.rules(settings["readable"], ["/dev/null"]))
        seccomp.restrict(processes=spaces, signals=spaces)
    random.seed(0)


def _silence() -> None:
    """Give the standard streams no other end."""
    nothing = os.open("/dev/null", os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    os.close(nothing)


def _limit(limits: dict[str, Any], *, processes: bool) -> None:
    """Limits that the kernel keeps for each process; the warden's watch keeps those of the tree."""
    bounds = {
        resource.RLIMIT_AS: limits["memory_bytes"] + (512 << 20),
        resource.RLIMIT_CORE: 1,  # 1 and not 0: no crash handler is started either, see core(5)
        resource.RLIMIT_CPU: int(limits["cpu_seconds"]) + 2,
        resource.RLIMIT_FSIZE: limits["disk_bytes"],
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
    }
    if processes:
        # Counted for the user in this user namespace, where three are ours
        bounds[resource.RLIMIT_NPROC] = limits["processes"] + 3
    for limit, bound in bounds.items():
        resource.setrlimit(limit, (bound, bound))

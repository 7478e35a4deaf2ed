"""Landlock: the kernel lets a process, and all it starts, touch only the files named here."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from paretune.evaluate.sandbox.confined import linux

# The same numbers on every architecture
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
# Rights on files by version of Landlock: 13 at first, then refer, truncate, device ioctl
_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
_TCP = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def version() -> int:
    """The kernel's version of Landlock; 0 where there is none."""
    try:
        return linux.system_call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    except OSError:
        return 0


def rules(readable: Iterable[str], writable: Iterable[str] = ()) -> int:
    """A descriptor for ``restrict``: nothing but ``readable`` to read, ``writable`` to do all with.

    No file may be executed, no TCP port used and, from version 6 on, no process outside signalled.
    Paths that do not exist are passed over.
    """
    has = version()
    everything = (1 << max(n for v, n in _RIGHTS.items() if v <= has)) - 1
    ruleset = _Ruleset(everything)
    size = 8
    if has >= 4:
        ruleset.net, size = _TCP, 16
    if has >= 6:
        ruleset.scoped, size = _ABSTRACT_SOCKETS_AND_SIGNALS, 24
    made = linux.system_call(
        _CREATE, ctypes.byref(ruleset), ctypes.c_size_t(size), ctypes.c_uint32(0)
    )
    reading = _READ_FILE | _READ_FOLDER
    for path, allowed in [*((p, reading) for p in readable), *((p, everything) for p in writable)]:
        if not os.path.exists(path):
            continue
        if not os.path.isdir(path):
            allowed &= _READ_FILE | 1 << 1  # what is no folder takes only the rights of a file
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = _PathBeneath(allowed, opened)
        linux.system_call(
            _ADD, made, ctypes.c_int(_PATH_BENEATH), ctypes.byref(rule), ctypes.c_uint32(0)
        )
        os.close(opened)
    return made


def restrict(made: int) -> None:
    """Keep to ``rules`` from now on, and all processes started hereafter; it cannot be undone."""
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.system_call(_RESTRICT, made, ctypes.c_uint32(0))
    os.close(made)

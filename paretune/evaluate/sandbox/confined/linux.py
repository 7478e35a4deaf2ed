"""The Linux calls that Python's standard library does not offer, through ctypes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
# linux/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
AT_FDCWD = -100
AT_RECURSIVE = 0x8000
# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2

_libc = ctypes.CDLL(None, use_errno=True)
_ARM = platform.machine() == "aarch64"
_PIVOT_ROOT = 41 if _ARM else 155
_CAPSET = 91 if _ARM else 126
_MOUNT_SETATTR = 442
_CAPABILITY_VERSION_3 = 0x20080522


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def system_call(number: int, *arguments: object) -> int:
    """The result of a system call.

    Raises:
        OSError: the kernel refused it.
    """
    return _checked(_libc.syscall(ctypes.c_long(number), *arguments), f"system call {number}")


def prctl(option: int, value: int | ctypes.Structure = 0, extra: object = 0) -> None:
    """prctl(2) with one or two arguments."""
    first = ctypes.byref(value) if isinstance(value, ctypes.Structure) else ctypes.c_ulong(value)
    second = extra if isinstance(extra, int) else ctypes.byref(extra)  # type: ignore[arg-type]
    if isinstance(second, int):
        second = ctypes.c_ulong(second)  # type: ignore[assignment]
    none = ctypes.c_ulong(0)
    _checked(_libc.prctl(option, first, second, none, none), f"prctl {option}")


def unshare(flags: int) -> None:
    """Leave namespaces shared with others for new ones of our own."""
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    arguments = [text.encode() if text is not None else None for text in (source, target, kind)]
    done = _libc.mount(*arguments, ctypes.c_ulong(flags), options.encode())
    _checked(done, f"mount of {source} at {target}")


def bind(source: str, target: str, *, read_only: bool) -> None:
    """Show ``source``, with what is mounted beneath it, at ``target`` as well."""
    mount(source, target, None, MS_BIND | MS_REC)
    if read_only:
        flags = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
        attributes = _MountAttributes(set=flags)
        system_call(
            _MOUNT_SETATTR,
            ctypes.c_int(AT_FDCWD),
            ctypes.c_char_p(target.encode()),
            ctypes.c_uint(AT_RECURSIVE),
            ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
        )


def pivot_root(new: str) -> None:
    """Make ``new``, a mount point, the root, and let go of the old one with all it holds."""
    os.chdir(new)
    # "." twice stacks the old root on the new one, whence it is unmounted: pivot_root(2), notes
    dot = ctypes.c_char_p(b".")
    system_call(_PIVOT_ROOT, dot, dot)
    _checked(_libc.umount2(b".", MNT_DETACH), "unmounting the old root")
    os.chdir("/")


def never_gain_capabilities() -> None:
    """Make sure that no executable can give this process, or those it starts, a capability."""
    # Beyond the last capability it is an error, as everywhere without CAP_SETPCAP, where there
    # is nothing to drop and the line after suffices
    with contextlib.suppress(OSError):
        for capability in range(64):
            prctl(PR_CAPBSET_DROP, capability)
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Give up every capability."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    system_call(_CAPSET, ctypes.byref(header), ctypes.byref(none))


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result

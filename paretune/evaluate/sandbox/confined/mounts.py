"""The only files there are inside: the interpreter and its libraries, read-only, and a scratch.

The root is an empty file system in memory; what a program may read is bound into it. That makes
an interpreter under a private home folder readable too: the folders on the way to it are new.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from paretune.evaluate.sandbox.confined import linux

SCRATCH = "/tmp"
_DEVICES = ("null", "zero", "random", "urandom")


def build(visible: Sequence[str], at: str) -> None:
    """Mount a root at the folder ``at`` that holds ``visible``, absolute paths, and devices.

    Needs the right to mount in a mount namespace of its own.
    """
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    # Opened first: the new root may cover some of them
    opened = [(path, os.open(path, os.O_PATH)) for path in visible if not os.path.islink(path)]
    devices = [(f"/dev/{name}", os.open(f"/dev/{name}", os.O_PATH)) for name in _DEVICES]
    links = [(path, os.readlink(path)) for path in visible if os.path.islink(path)]
    linux.mount("root", at, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m,mode=755")
    for folder in (SCRATCH, "/proc", "/dev"):
        os.mkdir(at + folder)
    for path, descriptor in [*opened, *devices]:
        target = Path(at + path)
        if path.startswith("/dev/") or not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        else:
            target.mkdir(parents=True, exist_ok=True)
        linux.bind(
            f"/proc/self/fd/{descriptor}", str(target), read_only=not path.startswith("/dev/")
        )
        os.close(descriptor)
    for path, goal in links:
        Path(at + path).symlink_to(goal)
    os.symlink(SCRATCH, f"{at}/dev/shm")


def enter(at: str) -> None:
    """Make the root built at ``at`` ours, with a view of our own processes, and seal it."""
    # A mount of our own: one that came with the user namespace may not become the root
    linux.mount(at, at, None, linux.MS_BIND | linux.MS_REC)
    own_processes(f"{at}/proc")
    linux.pivot_root(at)
    flags = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("none", "/", None, linux.MS_BIND | 0x20 | flags)


def own_processes(at: str) -> None:
    """Mount a /proc that shows only this process namespace."""
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("proc", at, "proc", flags, "hidepid=2,subset=pid")


def scratch(size: int, visible: Sequence[str]) -> None:
    """Mount an empty folder in memory, of at most ``size`` bytes, at SCRATCH and enter it.

    Of ``visible``, what lies below SCRATCH stays so: an environment may have been made there.
    """
    below = [path for path in visible if Path(path).is_relative_to(SCRATCH)]
    opened = [(path, os.open(path, os.O_PATH)) for path in below]
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("scratch", SCRATCH, "tmpfs", flags, f"size={size},nr_inodes=4096,mode=700")
    for path, descriptor in opened:
        os.makedirs(path)
        linux.bind(f"/proc/self/fd/{descriptor}", path, read_only=True)
        os.close(descriptor)
    os.chdir(SCRATCH)

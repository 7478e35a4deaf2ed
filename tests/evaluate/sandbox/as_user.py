"""Run Python as a user without privileges: python as_user.py ARGUMENTS, started by root.

An interpreter in root's own home folder would be closed to that user, so it is shown in this
process's own view of the file system.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from paretune.evaluate.sandbox.confined import linux

USER = 23_456


def show_interpreter() -> None:
    """Cover a private home folder on the way to the interpreter by one that holds only that."""
    prefix = Path(sys.base_prefix)
    private = [p for p in prefix.parents if p != Path("/") and not p.stat().st_mode & 0o001]
    if not private:
        return
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    opened = os.open(prefix, os.O_PATH)
    linux.mount("home", str(private[-1]), "tmpfs", 0, "mode=755")
    prefix.mkdir(parents=True)
    linux.bind(f"/proc/self/fd/{opened}", str(prefix), read_only=True)


def main() -> None:
    """Become the user in a child process and run Python there."""
    temporary = Path("/tmp") / f"as-user-{os.getpid()}"
    temporary.mkdir()
    os.chown(temporary, USER, USER)
    show_interpreter()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        os.environ.update(HOME=str(temporary), TMPDIR=str(temporary))
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    shutil.rmtree(temporary)
    sys.exit(code)


if __name__ == "__main__":
    main()

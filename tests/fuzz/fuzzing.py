"""Doing something with damaged or hostile input: it must answer, in time, and write nowhere else.

``survives`` runs an action. The only errors a user may see are UserErrors; anything else would be
a traceback. An audit hook of the interpreter sees every file that is opened for writing, renamed
or removed.
"""

from __future__ import annotations

import getpass
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paretune.errors import UserError

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events of the standard library, with the places of the paths among their arguments
_CHANGING = {
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "os.utime": (0,),
    "shutil.rmtree": (0,),
}


class Hung(BaseException):
    """The action took longer than it may; no handler of errors should stop it."""


@dataclass
class Finding:
    """One thing that went wrong: ``what`` is the same for the same fault."""

    what: str
    detail: str


@dataclass
class Watch:
    """Where the running action may write, and what it did beside that."""

    allowed: tuple[Path, ...] = ()
    watching: bool = False
    elsewhere: list[str] = field(default_factory=list)


_WATCH = Watch()
_HOOKED = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCH.watching:
        return
    if event == "open":
        path, _, flags = arguments
        if not isinstance(flags, int) or not flags & WRITING:
            return
        paths = [path]
    elif event in _CHANGING:
        paths = [arguments[index] for index in _CHANGING[event]]
    else:
        return
    for path in paths:
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str | os.PathLike):
            continue  # a descriptor: its path was seen when it was opened
        if event != "open" and not os.path.isabs(path):
            continue  # shutil.rmtree works relative to a folder that it opened
        # A link itself may be replaced or removed; what it leads to may not be written
        folder, name = os.path.split(os.path.abspath(path))
        real = os.path.realpath(path) if event == "open" else f"{os.path.realpath(folder)}/{name}"
        if not any(Path(real).is_relative_to(allowed) for allowed in _WATCH.allowed):
            _WATCH.elsewhere.append(f"{event} {real}")


@contextmanager
def writing_only(*allowed: Path) -> Iterator[list[str]]:
    """Every write elsewhere, as it happens; ``/dev`` and the folder of PyTorch's own are free."""
    global _HOOKED
    if not _HOOKED:
        sys.addaudithook(_audit)
        _HOOKED = True
    compiled = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    places = (*allowed, Path("/dev"), compiled)
    _WATCH.allowed = tuple(Path(os.path.realpath(path)) for path in places)
    _WATCH.elsewhere = []
    _WATCH.watching = True
    try:
        yield _WATCH.elsewhere
    finally:
        _WATCH.watching = False


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise Hung when it takes longer, by the clock of this process's own work."""

    def stop(*_: Any) -> None:
        raise Hung(f"more than {seconds} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def survives(
    action: Callable[[], object], *, within: tuple[Path, ...], seconds: float
) -> tuple[bool, Finding | None]:
    """Do it.

    Returns:
        whether it was done, and not refused with a message; what went wrong, if anything did.
    """
    done = False
    found = None
    with writing_only(*within) as elsewhere:
        try:
            with at_most(seconds):
                action()
            done = True
        except UserError as error:
            if not str(error).strip():
                found = Finding("an empty message", repr(error))
        except (Exception, Hung) as error:
            trace = traceback.extract_tb(error.__traceback__)
            frames = [frame for frame in trace if frame.filename != __file__] or trace
            own = [f for f in frames if "/paretune/" in f.filename] or frames
            last = own[-1]
            where = f"{Path(last.filename).name}:{last.name}"
            what = f"{type(error).__name__} in {where}"
            found = Finding(what, "".join(traceback.format_exception(error))[-3000:])
    if elsewhere:
        found = Finding(f"wrote elsewhere: {elsewhere[0].split()[0]}", "\n".join(elsewhere))
    return done, found

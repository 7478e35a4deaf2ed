"""What a user may see: what is wrong, where, and what to do about it."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """A mistake in what the user gave (a study file, a data row, a path, an argument).

    The message is complete: it names the thing, the place and the remedy. The command line
    prints it without a traceback and exits with ``exit_code``.
    """

    exit_code = 2


class UserErrors(UserError):
    """Several mistakes found together, so that a file is mended in one go."""

    def __init__(self, messages: list[str]) -> None:
        self.messages = messages
        super().__init__("\n".join(messages))


class Damaged(UserError):
    """A file that is not what was written: torn, altered, or with a checksum that differs."""

    def __init__(self, path: Path, message: str) -> None:
        self.path = path
        super().__init__(message)


class Fault(UserError):
    """Something outside failed: a disk is full, memory ran out, a hub does not answer.

    What was finished stays; the same command goes on when the cause is mended. Its exit code is
    that of an input/output error in sysexits.h.
    """

    exit_code = 74


class Stopped(BaseException):
    """Asked to stop (SIGTERM, as preemption sends); the state is saved. sysexits.h's TEMPFAIL.

    It is raised by a signal, anywhere, and is no failure of what happened to run then. So, like
    KeyboardInterrupt, it is no ``Exception``: what a library, or our own code, does about failures
    must not take a stop for one.
    """

    exit_code = 75


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# How libraries that do not raise MemoryError or a numbered OSError word it
_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc",
           "can't start new thread", "unable to allocate", "out of memory")  # fmt: skip


def short_of_memory(error: BaseException) -> bool:
    """Whether a failure is one of the machine's or the device's memory, however it is worded."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(mark in str(error).lower() for mark in _MEMORY)
    )

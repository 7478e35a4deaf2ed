"""What failed around a study, in one message: disks, memory, and what to do about it."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paretune.errors import Fault, UserError, short_of_memory

_AGAIN = "What is finished stays; the same command goes on from there"
_DISK = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
_BROKEN = {
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reports an input/output error",
    errno.ESTALE: "the network file system lost the folder",
    errno.EACCES: "writing is not allowed",
    errno.EPERM: "writing is not allowed",
}


@contextmanager
def explained(folder: Path | None = None) -> Iterator[None]:
    """Turn a failure of disk or memory into a :class:`Fault` that says what to do.

    Args:
        folder: the study's; its disk is the one asked for free space.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = explain(error, folder)
        if message is None:
            raise
        raise Fault(message) from error


def explain(error: BaseException, folder: Path | None = None) -> str | None:
    """The message for a failure of disk or memory; None for anything else."""
    text = str(error)
    number = _number(error, text)
    where = _where(error, folder)
    if number in _DISK:
        return f"{where}: {_DISK[number]}{_free(folder)}. Free some space. {_AGAIN}"
    if number in _BROKEN:
        said = getattr(error, "strerror", None) or _first(text)
        return f"{where}: {_BROKEN[number]} ({said}). Mend that. {_AGAIN}"
    if type(error).__name__ in ("OutOfMemoryError", "AcceleratorError") and "memory" in text:
        return (
            f"the device is out of memory ({_first(text)}). Run fewer arms together or a smaller "
            f"training.batch_size or training.block_length, or take a larger device. {_AGAIN}"
        )
    if number == errno.ENOMEM or short_of_memory(error):
        return (
            f"the machine is out of memory ({_first(text) or 'an allocation failed'}). End other "
            f"programs, or take a machine with more. {_AGAIN}"
        )
    return None


def _number(error: BaseException, text: str) -> int | None:
    """The error number of the system, which some libraries put into the text alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, OSError) or type(error).__name__ in ("SafetensorError", "RuntimeError"):
        for number in (*_DISK, *_BROKEN, errno.ENOMEM):
            if f"os error {number})" in text or f"errno {number}]" in text.lower():
                return number
        if "no space left on device" in text.lower():
            return errno.ENOSPC
    return None


def _where(error: BaseException, folder: Path | None) -> str:
    name = str(getattr(error, "filename", None) or "the study's folder")
    # Files are written beside their place first: what the user knows is the place
    return str(folder or re.sub(r"(^|/)\.([^/]+)\.\d+\.tmp$", r"\1\2", name))


def _free(folder: Path | None) -> str:
    try:
        return f" ({shutil.disk_usage(folder or '.').free / 1e6:.1f} MB left)"
    except OSError:
        return ""


def _first(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:200] if lines else ""

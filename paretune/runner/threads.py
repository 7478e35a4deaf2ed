"""A thread that dies before it has begun must not leave the one that started it waiting for ever.

Python waits in ``Thread.start`` until the new thread says that it runs. Where memory is short, the
new one may fail before that, and the wait has no end (python/cpython issue 140746). It can be any
library's thread, such as those that read a base's weights.
"""

from __future__ import annotations

import threading

# More than a thread takes to begin on a machine that does much else
SECONDS = 60.0

_start = threading.Thread.start


class _Begun(threading.Event):
    """Set by a thread that has begun; who waits without a limit waits SECONDS."""

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None:
            return super().wait(timeout)
        if not super().wait(SECONDS):
            raise RuntimeError(f"can't start new thread: it did not begin within {SECONDS:.0f} s")
        return True


def start(self: threading.Thread) -> None:
    """``Thread.start`` that gives up a thread which does not begin.

    Raises:
        RuntimeError: it did not, or could not be made.
    """
    self._started = _Begun()  # type: ignore[attr-defined]
    _start(self)


def give_up_on_dead_threads() -> None:
    """Use :func:`start` for every thread of this process, those of libraries too."""
    threading.Thread.start = start  # type: ignore[method-assign]

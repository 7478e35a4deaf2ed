"""Stopping when asked: SIGTERM and Ctrl-C let the step end and the state be saved, within a time.

During a training step a signal only leaves a mark, which the training loop reads after the step;
anywhere else nothing is lost by stopping at once, since every file is written whole.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from paretune.errors import Stopped

# Seconds within which a step must end and its state be saved; Slurm's and Kubernetes' usual grace
GRACE_SECONDS = 30.0


class Interrupted(Stopped):
    """Ctrl-C; the shell's own exit code for it."""

    exit_code = 130


class Stop:
    """Whether this process was asked to stop, and how much it still may do."""

    def __init__(self) -> None:
        self._asked: Stopped | None = None
        self._deferred = False

    @contextmanager
    def listening(self, grace: float = GRACE_SECONDS) -> Iterator[None]:
        """Take SIGTERM and SIGINT (main thread only); a second one stops at once.

        Args:
            grace: seconds after which a step that has not ended is given up.
        """

        def handle(number: int, frame: FrameType | None) -> None:
            again = self._asked is not None
            if number == signal.SIGINT:
                self._asked = Interrupted("interrupted; the same command goes on from there")
            elif number == signal.SIGTERM:
                self._asked = Stopped("stopped by SIGTERM; the same command goes on from there")
            if again or not self._deferred:
                raise self._asked or Stopped("stopped")
            signal.setitimer(signal.ITIMER_REAL, grace)

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
        self._asked = None
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A stretch in which being asked to stop waits for :meth:`now`, or for its end."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.now()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within :meth:`deferred`, a stretch that may be stopped anywhere."""
        before, self._deferred = self._deferred, False
        try:
            self.now()
            yield
        finally:
            self._deferred = before

    @property
    def asked(self) -> bool:
        """Whether to save and call :meth:`now`."""
        return self._asked is not None

    def now(self) -> None:
        """Raise what a signal asked for, if one came.

        Raises:
            Stopped: a signal came; the command line turns it into an exit code.
        """
        if self._asked is not None:
            raise self._asked


# One a process, as its signals are
STOP = Stop()

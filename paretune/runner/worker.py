"""A worker: one process that takes arms of a study that nobody works on, until none is left.

Executors start it as ``python -m paretune.runner.worker DIR``, or call :func:`work`.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from pathlib import Path

from paretune.errors import Stopped, UserError
from paretune.runner.progress import Progress, Silent

_PR_SET_PDEATHSIG = 1


def work(
    folder: Path, *, device: str | None = None, workers: int = 1, progress: Progress | None = None
) -> None:
    """Take part in the study in ``folder`` until it is complete.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``; a GPU where there is one by default.
        workers: how many there are in all, so that there are arms for each of them.
    """
    from paretune.runner.ledger import Ledger
    from paretune.runner.run import take_part

    study = Ledger(folder).study()
    take_part(study, folder, device=device, workers=workers, progress=progress or Silent())


class _Lines:
    """Progress as plain lines on standard output, for the process that started the worker."""

    def begin(self, name: str, total: int) -> None: ...

    def advance(self, amount: int = 1) -> None: ...

    def line(self, text: str) -> None:
        print(text, flush=True)


def main() -> None:
    """Parse the arguments and work; a message and an exit code as the command line's."""
    parser = argparse.ArgumentParser(prog="paretune.runner.worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--parent", action="store_true", help="end when the parent process does")
    given = parser.parse_args()
    parent = os.getppid()
    if given.parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from paretune.runner.faults import explained
    from paretune.runner.stop import STOP
    from paretune.runner.threads import give_up_on_dead_threads

    give_up_on_dead_threads()
    if given.parent and os.getppid() != parent:
        sys.exit(1)  # it was gone before we asked to be told
    try:
        with STOP.listening(), explained(given.folder):
            work(given.folder, device=given.device, workers=given.workers, progress=_Lines())
    except (UserError, Stopped) as error:
        print("error: " + " ".join(str(error).splitlines()), file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

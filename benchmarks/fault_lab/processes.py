"""Real processes without the seconds of importing: children forked from one that has imported."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def preload() -> None:
    """Import all that a run needs, and start no thread: threads do not survive a fork."""
    import datasets  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import paretune.cli
    import paretune.evaluate.suite
    import paretune.runner.record
    import paretune.runner.run  # noqa: F401

    torch.set_num_threads(1)


@dataclass
class Child:
    """A process of the command line, with what it wrote."""

    pid: int
    log: Path
    code: int | None = None

    def wait(self, timeout: float = 240.0) -> int:
        """Its exit code, or minus the signal that ended it; one that hangs is killed (-1000)."""
        deadline = time.monotonic() + timeout
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.code = -1000
            else:
                time.sleep(0.005)
        return self.code

    def running(self) -> bool:
        """Whether it has not ended yet."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def send(self, number: int) -> bool:
        """Send a signal if it still runs."""
        if self.running():
            os.kill(self.pid, number)
            return True
        return False

    @property
    def errors(self) -> str:
        """What it wrote on standard error."""
        return self.log.read_text(errors="replace")


def spawn(work: Callable[[], None], log: Path, before: Callable[[], None] | None = None) -> Child:
    """Fork; the child calls ``before`` (to be disturbed) and ``work``, and ends with its code."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Child(pid, log)
    code = 1
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # ends with its parent
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(out, 2)
        if before is not None:
            before()
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def command(*arguments: str, cwd: Path) -> Callable[[], None]:
    """``paretune ARGUMENTS`` in ``cwd``."""

    def work() -> None:
        import paretune.cli

        os.chdir(cwd)
        sys.argv = ["paretune", *arguments]
        paretune.cli.main()

    return work

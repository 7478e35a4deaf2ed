"""Workers on this machine: one for each visible GPU, or several on its CPU."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

import torch

from paretune.errors import Fault, Stopped, UserError
from paretune.runner.progress import Progress
from paretune.runner.stop import GRACE_SECONDS

# A worker that dies without a message (killed, crashed) is started again this often
RETRIES = 3


class Local:
    """Worker processes, each on its own device; they steal work from each other by leases."""

    def __init__(self, workers: int | None, device: str | None) -> None:
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.devices = [kind] * (workers or 2)
        if kind == "cuda":
            count = torch.cuda.device_count()
            if workers is not None and workers > count:
                raise UserError(f"--workers {workers}: there are {count} GPUs here")
            self.devices = [f"cuda:{index}" for index in range(workers or count)]

    def run(self, folder: Path, progress: Progress) -> None:
        """Start a worker on each device, and start again those that die."""
        ended: queue.Queue[int] = queue.Queue()
        workers = [Worker(folder, d, len(self.devices), i) for i, d in enumerate(self.devices)]
        try:
            for worker in workers:
                worker.start(progress, ended)
            left = len(workers)
            while left:
                left -= self._ended(workers[_next(ended)], progress, ended)
        finally:
            for worker in workers:
                worker.ask_to_stop()
            for worker in workers:
                worker.stop()

    def _ended(self, worker: Worker, progress: Progress, ended: queue.Queue[int]) -> bool:
        """Whether a worker that ended is done; one that died is started again."""
        code = worker.code
        if code == 0:
            return True
        if code in (UserError.exit_code, Fault.exit_code):
            kind = UserError if code == UserError.exit_code else Fault
            raise kind(worker.message or f"{worker.name} failed")
        if code == Stopped.exit_code:
            raise Stopped(f"{worker.name} was stopped; the same command goes on from there")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed (code {code})"
        if worker.starts > RETRIES:
            raise Fault(
                f"{worker.name} {how} {worker.starts} times. {worker.message} "
                "What is finished stays; the same command goes on from there"
            )
        progress.line(f"{worker.name} {how}; starting it again")
        worker.start(progress, ended)
        return False


class Worker:
    """One worker process, which ends when this process does.

    Attributes:
        starts: how often it was started.
        message: the last line it wrote on standard error.
    """

    def __init__(self, folder: Path, device: str, workers: int, index: int) -> None:
        self.name = device if device != "cpu" else f"worker {index + 1}"
        self.starts = 0
        self.message = ""
        self._index = index
        self._command = [sys.executable, "-m", "paretune.runner.worker", str(folder)]
        self._command += ["--device", device, "--workers", str(workers), "--parent"]
        # Threads of all workers together fill the cores
        threads = max(1, (os.cpu_count() or 1) // workers)
        self._env = {"OMP_NUM_THREADS": str(threads), **os.environ}
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process is not None
        return self._process.pid

    @property
    def code(self) -> int:
        """Its exit code; minus the signal that killed it."""
        assert self._process is not None
        return self._process.wait()

    def start(self, progress: Progress, ended: queue.Queue[int]) -> None:
        """Start it; its lines go to ``progress``, its end puts its index into ``ended``."""
        self.starts += 1
        # A session of its own: Ctrl-C in a terminal reaches this process, which stops the workers
        process = self._process = subprocess.Popen(
            self._command,
            env=self._env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = process.stdout, process.stderr

        def follow() -> None:
            for line in out:
                progress.line(f"[{self.name}] {line.rstrip()}")
            reader.join()
            ended.put(self._index)

        def listen() -> None:
            for line in err:
                if line.strip():
                    self.message = line.strip().removeprefix("error: ")

        reader = threading.Thread(target=listen, daemon=True)
        reader.start()
        threading.Thread(target=follow, daemon=True).start()

    def ask_to_stop(self) -> None:
        """Send SIGTERM, upon which it saves its state."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """Wait until it has ended; after the grace period it is killed."""
        if self._process is None:
            return
        try:
            self._process.wait(GRACE_SECONDS + 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _next(ended: queue.Queue[int]) -> int:
    """Wait for a worker's end, open to signals."""
    while True:
        try:
            return ended.get(timeout=0.5)
        except queue.Empty:
            continue

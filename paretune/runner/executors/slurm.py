"""Workers as a Slurm job array, through submitit; a preempted one saves and is queued again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from paretune.errors import Fault, UserError
from paretune.runner.progress import Progress
from paretune.runner.stop import GRACE_SECONDS

RETRIES = 3
# Seconds between looks at the jobs' states
_LOOK = 2.0
# What a job asks for where --slurm does not say: a GPU, some cores, and the shortest usual limit
_DEFAULTS: dict[str, Any] = {"gpus_per_node": 1, "cpus_per_task": 4, "timeout_min": 240}


class Slurm:
    """A job array of workers; what ends too early is submitted again.

    Args:
        options: ``key=value`` for submitit (``partition=...`` is ``slurm_partition``); with
            ``cluster=local`` the jobs are processes of this machine.
    """

    def __init__(self, workers: int | None, device: str | None, options: Sequence[str]) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError(
                "--executor slurm needs the package submitit: pip install 'paretune[slurm]'"
            ) from None
        self._submitit: Any = submitit
        self._workers = workers or 2
        self._device = device
        self._options = dict(_option(text) for text in options)

    def run(self, folder: Path, progress: Progress) -> None:
        """Submit the array, wait for all of it, and submit again what failed."""
        jobs = [(worker, 1) for worker in self._submit(folder, self._workers)]
        progress.line(f"slurm: jobs {', '.join(str(job.job_id) for job, _ in jobs)}")
        try:
            while jobs:
                jobs = [again for each in jobs for again in self._follow(folder, each, progress)]
                time.sleep(_LOOK)
        finally:
            for job, _ in jobs:
                job.cancel()

    def _submit(self, folder: Path, count: int) -> list[Any]:
        options = dict(self._options)
        executor = self._submitit.AutoExecutor(
            folder=str(folder / "slurm"), cluster=options.pop("cluster", None)
        )
        defaults = dict(_DEFAULTS)
        if self._device == "cpu":
            defaults["gpus_per_node"] = 0
        executor.update_parameters(name="paretune", **{**defaults, **options})
        job = Preemptible(str(folder.resolve()), self._device, self._workers)
        jobs: list[Any] = executor.map_array(job, range(count))
        return jobs

    def _follow(
        self, folder: Path, job: tuple[Any, int], progress: Progress
    ) -> list[tuple[Any, int]]:
        """The job itself while it runs, a new one where it failed, nothing when it is done."""
        submitted, tries = job
        if not submitted.done():
            return [job]
        try:
            submitted.result()
            return []
        except self._submitit.core.utils.FailedJobError as error:
            text = str(error)
        except self._submitit.core.utils.UncompletedJobError as error:
            text = str(error)
        for kind in (Fault, UserError):
            mark = f"{kind.__name__}: "
            if mark in text:
                raise kind(text.rpartition(mark)[2].splitlines()[0])
        first = text.strip().splitlines()[0]
        if tries > RETRIES:
            raise Fault(f"slurm: job {submitted.job_id} failed {tries} times ({first})")
        progress.line(f"slurm: job {submitted.job_id} failed ({first}); submitting it again")
        return [(new, tries + 1) for new in self._submit(folder, 1)]


class Preemptible:
    """A worker as a child process, which can save its state when the job is preempted."""

    def __init__(self, folder: str, device: str | None, workers: int) -> None:
        self.folder = folder
        self.device = device
        self.workers = workers
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self, index: int) -> str:
        """Run the worker to its end; submitit calls it in the job.

        Raises:
            UserError, Fault: the worker's own message.
            RuntimeError: it died without one.
        """
        command = [sys.executable, "-m", "paretune.runner.worker", self.folder, "--parent"]
        command += ["--workers", str(self.workers)]
        if self.device is not None:
            command += ["--device", self.device]
        with tempfile.TemporaryFile("w+") as errors:
            self._child = subprocess.Popen(command, stderr=errors)
            code = self._child.wait()
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [""])[-1].removeprefix("error: ")
        if code == UserError.exit_code:
            raise UserError(last)
        if code == Fault.exit_code:
            raise Fault(last)
        if code:
            raise RuntimeError(f"the worker ended with code {code}: {last}")
        return "done"

    def checkpoint(self, index: int) -> Any:
        """Called by submitit on preemption or timeout: save, then be queued again."""
        import submitit

        if self._child is not None:
            _end(self._child.pid)
        fresh = Preemptible(self.folder, self.device, self.workers)
        return submitit.helpers.DelayedSubmission(fresh, index)


def _end(pid: int) -> None:
    """Let a child save its state and end.

    Runs inside a signal handler, perhaps in the middle of ``Popen.wait``, whose lock would never
    be given back: so the child is looked at without Popen, and without taking its exit code.
    """
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS + 10
        while time.monotonic() < deadline:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                return
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--slurm {text}: write it as key=value, such as partition=long")
    plain = ("cluster", "timeout_min", "gpus_per_node", "cpus_per_task", "mem_gb", "nodes")
    name = key if key in plain or key.startswith("slurm_") else f"slurm_{key}"
    return name, yaml.safe_load(value)

"""Workers as tasks of a Ray cluster: one that runs, or one started for the purpose."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from paretune.errors import Fault, UserError
from paretune.runner.progress import Progress

# Times Ray starts a task again whose process or node was lost
RETRIES = 8


class OnRay:
    """Ray tasks, each on the CPU cores or the GPU it asked for.

    The study's folder, the base and the data must be seen under the same path by all nodes. A task
    that is lost is started again by Ray, anywhere; the arms it worked on are taken over from their
    last saved state, once its heartbeat has stopped.
    """

    def __init__(self, workers: int | None, device: str | None) -> None:
        try:
            import ray
        except ImportError:
            raise UserError(
                "--executor ray needs the package ray: pip install 'paretune[ray]'"
            ) from None
        self._ray: Any = ray
        self._workers = workers
        self._device = device

    def run(self, folder: Path, progress: Progress) -> None:
        """Connect to the cluster of RAY_ADDRESS, or start one, and run the workers in it."""
        ray = self._ray
        ours = not ray.is_initialized()
        if ours:
            self._connect(os.environ.get("RAY_ADDRESS"))
        try:
            self._run(folder, progress)
        finally:
            if ours:
                ray.shutdown()

    def _connect(self, address: str | None) -> None:
        # Said outright where there is none: Ray by itself joins whatever it finds on this machine,
        # and fails over the address that a cluster which was killed has left behind
        settings: dict[str, Any] = {"address": address}
        if not address:
            cpus = max(self._workers or 2, os.cpu_count() or 1)
            settings = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        try:
            self._ray.init(log_to_driver=False, logging_level="ERROR", **settings)
        except Exception as error:  # one that starts too slowly is a bare Exception of Ray's
            if not address:
                raise Fault(
                    f"ray: no cluster could be started on this machine ({error})"
                ) from error
            if not isinstance(error, ConnectionError):
                raise
            raise UserError(
                f"RAY_ADDRESS {address}: no cluster answers there. Start it, or unset "
                "RAY_ADDRESS and one is started for this study"
            ) from error

    def _run(self, folder: Path, progress: Progress) -> None:
        ray = self._ray
        have = ray.cluster_resources()
        gpus = int(have.get("GPU", 0))
        device = self._device or ("cuda" if gpus else "cpu")
        workers = self._workers or (gpus if device == "cuda" else 2)
        cores = have.get("CPU", 1) / workers
        progress.line(f"ray: {workers} workers on {len(ray.nodes())} nodes, {device}")
        # A node that is lost must not take the study with it; a mistake is raised at once
        task = ray.remote(
            num_cpus=min(1, cores) if device == "cuda" else max(1, int(cores)),
            num_gpus=1 if device == "cuda" else 0,
            max_retries=RETRIES,
            retry_exceptions=False,
            scheduling_strategy="SPREAD",
        )(task_of_a_worker)
        left = [task.remote(str(folder.resolve()), device, workers) for _ in range(workers)]
        try:
            while left:
                done, left = ray.wait(left, timeout=1.0)
                for reference in done:
                    self._result(reference)
        finally:
            for reference in left:
                ray.cancel(reference, force=False)

    def _result(self, reference: Any) -> None:
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, UserError):
                raise cause from None
            raise
        except self._ray.exceptions.RayError as error:
            first = str(error).strip().splitlines()[0]
            raise Fault(
                f"ray: a worker was lost {RETRIES + 1} times ({first}). What is finished stays; "
                "the same command goes on from there"
            ) from error


def task_of_a_worker(folder: str, device: str, workers: int) -> None:
    """What a Ray task does; Ray has set which GPU it sees."""
    from paretune.runner.worker import work

    work(Path(folder), device=device, workers=workers)

"""Spreading a study over devices and machines: each worker takes arms that nobody works on.

All executors start the same worker (``paretune.runner.worker``); the study's folder is the only
thing that workers share. They differ in where a worker runs and in what starts it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from paretune.errors import UserError
from paretune.runner.progress import Progress


class Executor(Protocol):
    """Starts workers for a study, and returns when there is nothing left to do."""

    def run(self, folder: Path, progress: Progress) -> None:
        """Bring the study in ``folder`` to its end.

        Raises:
            UserError: a worker found a mistake, or failed too often.
        """
        ...


def executor(
    name: str, *, workers: int | None = None, device: str | None = None, options: Sequence[str] = ()
) -> Executor:
    """The executor of this name: local, ray or slurm.

    Args:
        workers: how many; every visible GPU, or two on a CPU, by default.
        device: cpu or cuda; a GPU where there is one by default.
        options: of Slurm, ``partition=long``; anything submitit takes.

    Raises:
        UserError: no such executor, or its package is not installed.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: give 1 or more")
    if options and name != "slurm":
        raise UserError("--slurm goes with --executor slurm")
    if name == "local":
        from paretune.runner.executors.local import Local

        return Local(workers, device)
    if name == "ray":
        from paretune.runner.executors.on_ray import OnRay

        return OnRay(workers, device)
    if name == "slurm":
        from paretune.runner.executors.slurm import Slurm

        return Slurm(workers, device, options)
    raise UserError(f"--executor {name}: there is local, ray and slurm")

"""What of a study is done, running, diverged and left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.errors import Damaged
from paretune.runner.leases import Leases
from paretune.runner.ledger import Ledger


@dataclass(frozen=True)
class ArmStatus:
    """Where one arm stands.

    Attributes:
        state: planned, running, stopped (begun, and no process works on it now), done or diverged.
        tokens: training tokens up to its last saved state.
        scored: budgets (in tokens) that have scores.
        reason: why it diverged, with the step.
    """

    arm: str
    label: str
    state: str
    tokens: int
    scored: tuple[int, ...]
    reason: str | None


def running_or_stopped(holder: dict[str, Any] | None) -> str:
    """The state of an arm that has begun and not ended: without a holder nobody works on it."""
    return "stopped" if holder is None else "running"


def status(folder: Path | str) -> list[ArmStatus]:
    """The arms of the study in ``folder``, in the order of its cohorts.

    Raises:
        UserError: the folder holds no study.
    """
    ledger = Ledger.open(Path(folder))
    arms = ledger.arms()
    leases = Leases(ledger.folder)
    order = [arm_id for group in ledger.cohorts() for arm_id in group]
    found = []
    for arm_id in [*order, *(other for other in arms if other not in order)]:
        if arm_id not in arms:
            path = ledger.arm_folder(arm_id) / "arm.json"
            raise Damaged(path, f"{path}: gone; `paretune run` with the study file makes it anew")
        state = ledger.status(arm_id)
        reason, now = None, state["state"]
        if now == "diverged":
            reason = f"step {state['diverged_at']}: {state['reason']}"
        if now == "running":
            now = running_or_stopped(leases.holder(arm_id))
        scored = sorted({row["tokens"] for row in ledger.scores(arm_id)})
        found.append(
            ArmStatus(arm_id, arms[arm_id].label, now, state["tokens"], tuple(scored), reason)
        )
    return found

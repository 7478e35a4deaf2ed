"""What of an arm is there: its scores, its checkpoints, or a divergence that ends it."""

from __future__ import annotations

from paretune.errors import Damaged
from paretune.runner.ledger import Ledger
from paretune.runner.repair import set_aside_before
from paretune.runner.workspace import Workspace
from paretune.study.arms import ArmConfig


def has(ledger: Ledger, work: Workspace, arm: ArmConfig, step: int) -> bool:
    """Whether a budget's scores are there, and no checkpoint of it has to be made again."""
    tokens = work.tokens(step)
    keep = work.config.checkpoints.keep
    kept = keep == "all" or (keep == "last" and step == work.budgets[-1])
    if kept and set_aside_before(ledger.checkpoint(arm.id, tokens)):
        return False
    return ledger.scored(arm.id, tokens, work.config.metric_names())


def reached(ledger: Ledger, work: Workspace, arm: ArmConfig, step: int) -> bool:
    """Whether a budget is done: scored, or the arm diverged before it."""
    status = ledger.status(arm.id)
    gone = status["state"] == "diverged" and status["step"] >= step
    return bool(gone) or has(ledger, work, arm, step)


def finished(ledger: Ledger, work: Workspace, arm: ArmConfig) -> bool:
    """Whether nothing is left to do for an arm."""
    return ended(ledger, arm.id) and all(reached(ledger, work, arm, s) for s in work.budgets)


def ended(ledger: Ledger, arm_id: str) -> bool:
    """Whether an arm's status says that nothing is left to do."""
    try:
        state = ledger.status(arm_id)["state"]
    except Damaged:
        return False
    return state in ("done", "diverged") and not (ledger.arm_folder(arm_id) / "resume").exists()

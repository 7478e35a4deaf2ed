"""A copy of a study's curves and scores for a tracker with the W&B API; the ledger stays the truth.

Offline mode works: set WANDB_MODE=offline, and sync later with ``wandb sync``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paretune.errors import UserError
from paretune.runner.ledger import Ledger


def track(folder: Path | str, *, project: str | None = None, module: str = "wandb") -> int:
    """Send each arm as a run of its own: its settings, training curve and scores.

    Sending again makes new runs: send a study that has ended.

    Args:
        project: by default the study's name.
        module: a package with W&B's API: ``wandb``, or ``trackio``.

    Returns:
        The number of arms sent.

    Raises:
        UserError: the package is not installed, or the folder holds no study.
    """
    from importlib import import_module

    try:
        tracker: Any = import_module(module)
    except ImportError:
        raise UserError(
            f"paretune track needs the package {module}: pip install 'paretune[track]'"
        ) from None
    ledger = Ledger.open(Path(folder))
    study = ledger.study().config.name
    arms = ledger.arms()
    for arm_id, arm in arms.items():
        run = tracker.init(
            project=project or study,
            name=arm.label,
            group=study,
            config={**arm.record(), "arm": arm_id, "study": study},
        )
        _send(run, ledger, arm_id)
        run.finish()
    return len(arms)


def _send(run: Any, ledger: Ledger, arm_id: str) -> None:
    for row in ledger.curve(arm_id):
        values = {f"{row['leg']}/{key}": row[key] for key in ("loss", "grad_norm", "learning_rate")}
        # Legs begin at steps that are past already, so steps are a value and not the run's own
        run.log({"step": row["step"], "tokens": row["tokens"], **values})
    status = ledger.status(arm_id)
    run.summary.update({"state": status["state"], "seconds": status["seconds"]})
    for row in ledger.scores(arm_id):
        run.summary.update({f"{row['metric']}@{row['tokens']}": row["value"]})
        run.summary.update({row["metric"]: row["value"]})

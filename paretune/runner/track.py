"""A copy of a study's curves and scores for a tracker with the W&B API; the ledger stays the truth.

It reads the ledger alone, so that it may follow a study from any machine that sees the folder, and
neither slows nor stops what trains. Offline mode works: set WANDB_MODE=offline, and sync later with
``wandb sync``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from paretune.errors import Damaged, UserError, first_line
from paretune.runner.ledger import Ledger

_ENDED = ("done", "diverged")


def track(
    folder: Path | str,
    *,
    project: str | None = None,
    module: str = "wandb",
    follow: float | None = None,
) -> int:
    """Send each arm as a run of its own: its settings, training curve and scores.

    Sending again makes new runs.

    Args:
        project: by default the study's name.
        module: a package with W&B's API: ``wandb``, or ``trackio``.
        follow: seconds between looks at a study that runs, until it has ended; what is there is
            sent once where it is None.

    Returns:
        The number of arms sent.

    Raises:
        UserError: the package is not installed, or the folder holds no study.
    """
    from importlib import import_module

    try:
        tracker: Any = import_module(module)
    except ImportError:
        wanted = "'paretune[track]'" if module == "wandb" else module
        raise UserError(
            f"paretune track needs the package {module}: pip install {wanted}"
        ) from None
    ledger = Ledger.open(Path(folder))
    sent: dict[str, _Sent] = {}
    try:
        while True:
            ended = True
            for arm_id in ledger.arms():
                if arm_id not in sent:
                    sent[arm_id] = _Sent(ledger, arm_id, tracker, project)
                try:
                    ended &= sent[arm_id].catch_up()
                except Damaged:
                    if follow is None:
                        raise
                    ended = False  # a run that goes on repairs it
            if follow is None or (ended and sent):
                return len(sent)
            time.sleep(follow)
    finally:
        for one in sent.values():
            one.finish()


class _Sent:
    """What a tracker has been told of an arm."""

    def __init__(self, ledger: Ledger, arm_id: str, tracker: Any, project: str | None) -> None:
        self._ledger, self._arm_id = ledger, arm_id
        study, arm = ledger.study().config.name, ledger.arms()[arm_id]
        # Arms of a cohort advance together, so their runs are open at the same time
        several = {"reinit": "create_new"} if tracker.__name__ == "wandb" else {}
        try:
            self._run: Any = tracker.init(
                project=project or study,
                name=arm.label,
                group=study,
                config={**arm.record(), "arm": arm_id, "study": study},
                **several,
            )
        except Exception as error:  # trackers raise kinds of their own: no key, no network
            name = tracker.__name__
            hint = "; log in with `wandb login`, or set WANDB_MODE=offline" * (name == "wandb")
            message = f"{name} does not take the study ({first_line(error).rstrip('.')}){hint}"
            raise UserError(message) from error
        self._steps: set[tuple[str, int]] = set()
        self._scores: set[tuple[str, int]] = set()

    def catch_up(self) -> bool:
        """Send what is new; whether the arm has ended.

        Raises:
            Damaged: one of its files is.
        """
        if self._run is None:
            return True
        # Its state first: what is written after that is sent at the next look
        status = self._ledger.status(self._arm_id)
        for row in self._ledger.curve(self._arm_id):
            step = (str(row["leg"]), int(row["step"]))
            if step not in self._steps:  # a step trained again after a kill is the same to the bit
                self._steps.add(step)
                self._step(row)
        for row in self._ledger.scores(self._arm_id):
            score = (str(row["metric"]), int(row["tokens"]))
            if score not in self._scores:
                self._scores.add(score)
                self._run.log({"tokens": score[1], score[0]: row["value"]})
                self._sum_up({f"{score[0]}@{score[1]}": row["value"], score[0]: row["value"]})
        self._sum_up({"state": status["state"], "seconds": status["seconds"]})
        if status["state"] not in _ENDED:
            return False
        self.finish()
        return True

    def _step(self, row: dict[str, Any]) -> None:
        values = {f"{row['leg']}/{key}": row[key] for key in ("loss", "grad_norm", "learning_rate")}
        # Legs begin at steps that are past already, so steps are a value and not the run's own
        self._run.log({"step": row["step"], "tokens": row["tokens"], **values})

    def _sum_up(self, values: dict[str, Any]) -> None:
        if hasattr(self._run, "summary"):  # trackio's runs have none
            self._run.summary.update(values)

    def finish(self) -> None:
        """Close the run; nothing is sent after that."""
        if self._run is not None:
            self._run.finish()
            self._run = None

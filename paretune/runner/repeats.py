"""Which arms are trained again under other seeds: the best of each group."""

from __future__ import annotations

from typing import Any

from paretune.errors import UserError
from paretune.runner.ledger import Ledger
from paretune.study.arms import ArmConfig
from paretune.study.config import RepeatBest


def _group(arm: ArmConfig, setting: str) -> str:
    """What ``repeat_best.per`` groups arms by; variants of LoRA are methods of their own."""
    return arm.family if setting == "method" else str(getattr(arm, setting))


def best_again(
    ledger: Ledger, repeat: RepeatBest, arms: tuple[ArmConfig, ...], tokens: int
) -> list[ArmConfig]:
    """The best arm of each group at the last budget, under the other seeds.

    Raises:
        UserError: an arm has no such score and did not diverge.
    """
    best: dict[tuple[Any, ...], tuple[float, ArmConfig]] = {}
    for arm in arms:
        rows = [
            row
            for row in ledger.scores(arm.id)
            if row["metric"] == repeat.metric and row["tokens"] == tokens
        ]
        if not rows:
            if ledger.status(arm.id)["state"] != "diverged":
                raise UserError(f"{arm.id}: has no {repeat.metric} at {tokens} tokens")
            continue
        if rows[0]["value"] is None:
            continue  # its outcomes are not numbers: it cannot be the best
        value = rows[0]["value"] * (1 if rows[0]["higher_is_better"] else -1)
        key = tuple(_group(arm, name) for name in repeat.per)
        if key not in best or value > best[key][0]:
            best[key] = (value, arm)
    return [
        ArmConfig.model_validate({**arm.record(), "seed": seed})
        for _, arm in best.values()
        for seed in repeat.seeds
        if seed != arm.seed
    ]

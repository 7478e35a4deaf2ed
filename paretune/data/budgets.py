"""From budgets to optimizer steps, and to how much training data has to be read for them."""

from __future__ import annotations

from paretune.data.blocks import Blocks
from paretune.data.order import steps_per_epoch
from paretune.errors import UserError
from paretune.study.config import StudyConfig


def rows_needed(config: StudyConfig) -> int | None:
    """Rows of training data to read: the largest budget and one batch more; None means all.

    All are needed when any budget is in epochs, for only they say how long an epoch is.
    """
    if any(budget.unit == "ep" for budget in config.budgets.at):
        return None
    batch = config.training.batch_size
    return (max(_steps(config, 1)) + 1) * batch


def check_budgets(config: StudyConfig, blocks: Blocks) -> list[int]:
    """Optimizer steps of each budget, ascending.

    Raises:
        UserError: a budget in tokens or batches needs more than one pass over the data (and
            ``training.repeat`` is off), or two budgets fall on one step.
    """
    training = config.training
    epoch = steps_per_epoch(blocks.count, training.batch_size)
    tokens_per_step = training.batch_size * training.block_length
    by_step: dict[int, str] = {}
    for budget, steps in zip(config.budgets.at, _steps(config, epoch), strict=True):
        if budget.unit != "ep" and steps > epoch and not training.repeat:
            raise UserError(
                f"budgets.at: {budget} takes {steps} steps of {tokens_per_step} tokens, and one "
                f"pass over the training data gives {epoch} ({epoch * tokens_per_step} tokens). "
                "Lower it, write it in epochs (2ep), or set training.repeat: true"
            )
        if steps in by_step:
            raise UserError(
                f"budgets.at: {by_step[steps]} and {budget} both end at step {steps} "
                f"({tokens_per_step} tokens a step, {epoch} steps a pass): leave one out"
            )
        by_step[steps] = str(budget)
    return sorted(by_step)


def _steps(config: StudyConfig, epoch: int) -> list[int]:
    tokens_per_step = config.training.batch_size * config.training.block_length
    return [
        budget.steps(tokens_per_step=tokens_per_step, steps_per_epoch=epoch)
        for budget in config.budgets.at
    ]

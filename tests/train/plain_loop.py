"""What cohorts are held against: a plain training loop of torch and transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from train_helpers import BATCH
from transformers import get_scheduler

from paretune.data.blocks import Blocks
from paretune.data.order import rows_for_step


def plain_losses(
    loss_at: Callable[[int], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    cosine: bool = False,
) -> list[float]:
    """Loss of every step: backward, torch's clipping at norm 1, the optimizer.

    Args:
        loss_at: differentiable loss of a step's batch.
        cosine: transformers' schedule, over all steps after a warmup of a tenth of them; by
            default a constant rate.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    name = "cosine" if cosine else "constant"
    schedule = get_scheduler(name, optimizer, steps // 10, steps)
    losses = []
    for t in range(steps):
        loss = loss_at(t)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def on_blocks(model: Any, blocks: Blocks) -> Callable[[int], torch.Tensor]:
    """transformers' own loss of a model on the blocks that an arm of seed 0 reads in a step."""

    def loss_at(t: int) -> torch.Tensor:
        ids = blocks.batch(rows_for_step(blocks.count, BATCH, t, 0)).input_ids
        loss: torch.Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
        return loss

    return loss_at


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that learn."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]

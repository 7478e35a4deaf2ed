"""States of sharded training on disk, which any number of processes can go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from paretune.train.sharded import ShardedCohort, ShardedFull


def save_sharded(folder: Path, trainer: ShardedFull | ShardedCohort) -> None:
    """Write a state; every process calls it, and each writes its own shards."""
    save(_state(trainer), checkpoint_id=folder)


def load_sharded(folder: Path, trainer: ShardedFull | ShardedCohort) -> None:
    """Undo of :func:`save_sharded`, for any number of processes; every process calls it."""
    state = _state(trainer)
    load(state, checkpoint_id=folder)
    if isinstance(trainer, ShardedFull):
        set_state_dict(
            trainer.trainee.model,
            trainer.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        return
    for position in range(len(trainer.trainee.arms)):
        own = state[f"arm-{position}"]
        trainer.restore(position, own["tensors"], own["watch"])


def _state(trainer: ShardedFull | ShardedCohort) -> dict[str, Any]:
    if isinstance(trainer, ShardedFull):
        model, optimizer = get_state_dict(trainer.trainee.model, trainer.optimizer)
        return {"model": model, "optimizer": optimizer}
    state: dict[str, Any] = {}
    for position in range(len(trainer.trainee.arms)):
        tensors, watch = trainer.state(position)
        numbers = {name: torch.tensor(value).item() for name, value in watch.items()}
        # Their own memory: loading writes into what it is given
        own = {name: value.clone() for name, value in tensors.items()}
        state[f"arm-{position}"] = {"tensors": own, "watch": numbers}
    return state

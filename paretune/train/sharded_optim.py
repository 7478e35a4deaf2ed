"""The optimizers of :mod:`paretune.train.optim` over one arm's sharded weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from paretune.study.arms import ArmConfig
from paretune.train.optim import ELEMENTS, UPDATES, Settings


class ShardedOptimizer:
    """One arm's optimizer; each process updates the shards it holds.

    Args:
        parameters: sharded weights (DTensors) by name; their gradients are in ``grad``.
    """

    def __init__(self, parameters: Mapping[str, Any], arm: ArmConfig) -> None:
        self._parameters = dict(parameters)
        self._kind = arm.optimizer
        self._device = next(iter(parameters.values())).to_local().device
        self._settings = Settings([arm], self._device)
        moments = ("m", "v") if arm.optimizer == "adamw" else ("m",)
        self.state: dict[str, dict[str, Any]] = {
            moment: {name: torch.zeros_like(value.detach()) for name, value in parameters.items()}
            for moment in moments
        }

    def reset(self) -> None:
        """Forget all gradients seen so far."""
        for moment in self.state.values():
            for value in moment.values():
                value.zero_()

    @torch.no_grad()
    def step(self, t: int, rate_K: torch.Tensor, scale_K: torch.Tensor) -> None:
        """One update, as ``PerArmOptimizer.step``; [1] each."""
        rates = rate_K.to(self._device), scale_K.to(self._device)
        scalars = self._settings.scalars(t, *rates)
        update = UPDATES[self._kind]
        chunk = ELEMENTS[self._device.type]
        for name, value in self._parameters.items():
            if value.grad is None:
                continue
            own = [_row(value), _row(value.grad), *(_row(m[name]) for m in self.state.values())]
            for first in range(0, own[0].shape[1], chunk):
                part = [tensor[:, first : first + chunk] for tensor in own]
                update(part[0], part[1], None, part[2:], scalars, self._settings.constants)


def _row(sharded: Any) -> torch.Tensor:
    """What this process holds of a tensor, as one row [1, n]."""
    local: torch.Tensor = sharded.detach().to_local().view(1, -1)
    return local

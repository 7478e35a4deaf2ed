"""Noticing that an arm has diverged, without waiting for the device and without hurting others."""

from __future__ import annotations

import math

import torch

LIMIT = 2.0
PATIENCE = 10


class Divergence:
    """Per-arm watch over loss and gradient norm.

    An arm diverges at the first step whose loss or gradient is not finite, or at the tenth step in
    a row whose loss is above twice ln(vocabulary): twice what knowing nothing costs.

    Attributes:
        alive_K: bool on the device; False from the step at which an arm diverged.
    """

    def __init__(self, count: int, vocabulary: int, device: torch.device) -> None:
        self.limit = LIMIT * math.log(vocabulary)
        self.alive_K = torch.ones(count, dtype=torch.bool, device=device)
        self._high_K = torch.zeros(count, dtype=torch.int64, device=device)
        self._step_K = torch.full((count,), -1, dtype=torch.int64, device=device)
        self._cause_K = torch.zeros(count, dtype=torch.int64, device=device)

    def watch(self, step: int, loss_K: torch.Tensor, norm_K: torch.Tensor) -> torch.Tensor:
        """Take note of a step (counted from 1); returns which arms may be updated."""
        broken = ~torch.isfinite(loss_K) | ~torch.isfinite(norm_K)
        self._high_K = torch.where(loss_K > self.limit, self._high_K + 1, 0)
        lost = self.alive_K & (broken | (self._high_K >= PATIENCE))
        self._cause_K = torch.where(lost, torch.where(broken, 1, 2), self._cause_K)
        self._step_K = torch.where(lost, step, self._step_K)
        self.alive_K = self.alive_K & ~lost
        return self.alive_K

    def verdicts(self) -> dict[int, tuple[int, str]]:
        """Arms that diverged: position -> (step, reason)."""
        found: dict[int, tuple[int, str]] = {}
        causes = self._cause_K.tolist()
        for position, step in enumerate(self._step_K.tolist()):
            if step >= 0:
                broken = causes[position] == 1
                found[position] = (
                    step,
                    "loss or gradient is not a finite number"
                    if broken
                    else f"loss above {self.limit:.2f} (twice ln of the vocabulary) "
                    f"for {PATIENCE} steps",
                )
        return found

    def state(self, position: int) -> dict[str, int]:
        """What a resumed run needs of one arm."""
        return {
            "high": int(self._high_K[position]),
            "step": int(self._step_K[position]),
            "cause": int(self._cause_K[position]),
        }

    def restore(self, position: int, state: dict[str, int]) -> None:
        """Undo of :meth:`state`."""
        self._high_K[position] = state["high"]
        self._step_K[position] = state["step"]
        self._cause_K[position] = state["cause"]
        self.alive_K[position] = state["step"] < 0

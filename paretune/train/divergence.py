"""Noticing that an arm has diverged, without waiting for the device and without hurting others."""

from __future__ import annotations

import math

import torch

PATIENCE = 10
_MARGIN = 1.0
_UNIFORM = 0.98

_REASONS = {
    1: "loss or gradient is not a finite number",
    2: f"for {PATIENCE} steps the loss stood above what knowing nothing costs, "
    "and above where it began",
    3: f"for {PATIENCE} steps the gradient was zero: the weights have overflowed what the network "
    "can compute",
}


class Divergence:
    """Per-arm watch over loss and gradient norm.

    An arm diverges at the first step whose loss or gradient is not finite; at the tenth step in a
    row whose loss is above 0.98 ln(vocabulary), about the cost of a uniform guess, and more than 1
    nat above the arm's first loss; or at the tenth in a row whose gradient is exactly zero.

    Attributes:
        alive_K: bool on the device; False from the step at which an arm diverged.
    """

    def __init__(self, count: int, vocabulary: int, device: torch.device) -> None:
        self._uniform = _UNIFORM * math.log(vocabulary)
        self.alive_K = torch.ones(count, dtype=torch.bool, device=device)
        self._first_K = torch.full((count,), math.nan, device=device)
        self._counts_2K = torch.zeros(2, count, dtype=torch.int64, device=device)
        self._step_K = torch.full((count,), -1, dtype=torch.int64, device=device)
        self._cause_K = torch.zeros(count, dtype=torch.int64, device=device)

    def watch(self, step: int, loss_K: torch.Tensor, norm_K: torch.Tensor) -> torch.Tensor:
        """Take note of a step (counted from 1); returns which arms may be updated."""
        self._first_K = torch.where(self._first_K.isnan(), loss_K, self._first_K)
        broken = ~torch.isfinite(loss_K) | ~torch.isfinite(norm_K)
        high = loss_K > (self._first_K + _MARGIN).clamp(min=self._uniform)
        self._counts_2K = (self._counts_2K + 1) * torch.stack([high, norm_K == 0])
        worn_2K = self._counts_2K >= PATIENCE
        cause = torch.where(broken, 1, torch.where(worn_2K[0], 2, torch.where(worn_2K[1], 3, 0)))
        lost = self.alive_K & (cause > 0)
        self._cause_K = torch.where(lost, cause, self._cause_K)
        self._step_K = torch.where(lost, step, self._step_K)
        self.alive_K = self.alive_K & ~lost
        return self.alive_K

    def verdicts(self) -> dict[int, tuple[int, str]]:
        """Arms that diverged: position -> (step, reason)."""
        steps, causes = self._step_K.tolist(), self._cause_K.tolist()
        return {
            position: (step, _REASONS[causes[position]])
            for position, step in enumerate(steps)
            if step >= 0
        }

    def state(self, position: int) -> dict[str, float]:
        """What a resumed run needs of one arm."""
        return {
            "first": float(self._first_K[position]),
            "high": int(self._counts_2K[0, position]),
            "zero": int(self._counts_2K[1, position]),
            "step": int(self._step_K[position]),
            "cause": int(self._cause_K[position]),
        }

    def restore(self, position: int, state: dict[str, float]) -> None:
        """Undo of :meth:`state`."""
        self._first_K[position] = state["first"]
        self._counts_2K[0, position] = int(state["high"])
        self._counts_2K[1, position] = int(state["zero"])
        self._step_K[position] = int(state["step"])
        self._cause_K[position] = int(state["cause"])
        self.alive_K[position] = state["step"] < 0

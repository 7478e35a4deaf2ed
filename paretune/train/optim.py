"""AdamW and decoupled Lion where each arm has its own settings."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from paretune.model.flat import Flat
from paretune.study.arms import ArmConfig

# Columns updated at a time: bounds temporaries, and on a CPU keeps them in cache
_COLUMNS = {"cpu": 1 << 18, "cuda": 1 << 26}


class PerArmOptimizer:
    """One optimizer for the K arms of one :class:`Flat`; each row has its own rate and decay.

    AdamW is Loshchilov & Hutter's, with torch.optim.AdamW's order of operations. Lion (Chen et
    al., 2023) is LLM Foundry's decoupled LionW: the update is sign(b1 m + (1 - b1) g), then
    m = b2 m + (1 - b2) g. In both, weights first shrink by 1 - lr * decay, where ``decay`` is in
    torch's convention (``ArmConfig.decay``).

    Args:
        flat: values and gradients of the arms.
        arms: their configurations, in the order of the rows; all with the same optimizer.
    """

    def __init__(self, flat: Flat, arms: Sequence[ArmConfig]) -> None:
        self.flat = flat
        self.kind = arms[0].optimizer
        if any(arm.optimizer != self.kind for arm in arms):
            raise ValueError("arms of one Flat must share their optimizer")
        device = flat.values.device
        self._betas = [arm.betas or (0.9, 0.999) for arm in arms]
        self._beta1 = torch.tensor([b[0] for b in self._betas], device=device)[:, None]
        self._beta2 = torch.tensor([b[1] for b in self._betas], device=device)[:, None]
        self._eps = torch.tensor([arm.eps for arm in arms], device=device)[:, None]
        self._decay = torch.tensor([arm.decay for arm in arms], dtype=torch.float64, device=device)
        self.state: dict[str, torch.Tensor] = {"m": torch.zeros_like(flat.values)}
        if self.kind == "adamw":
            self.state["v"] = torch.zeros_like(flat.values)

    @torch.no_grad()
    def step(self, t: int, rate_K: torch.Tensor) -> None:
        """One update from the gradients in the flat.

        Args:
            t: number of this update for these arms, from 1 (AdamW's bias correction).
            rate_K: float64 learning rates. With rate 0 and a gradient of 0 a row's weights stay
                as they are to the bit, which is how an arm is frozen.
        """
        width = self.flat.values.shape[1]
        chunk = _COLUMNS.get(self.flat.values.device.type, 1 << 26)
        keep_K1 = (1 - rate_K * self._decay).float()[:, None]
        size_K1, root_K1 = self._corrections(t, rate_K)
        for first in range(0, width, chunk):
            part = slice(first, min(first + chunk, width))
            p, g = self.flat.values[:, part], self.flat.grad[:, part]
            state = {name: value[:, part] for name, value in self.state.items()}
            p.mul_(keep_K1)
            if self.kind == "lion":
                p.sub_(torch.sign(torch.lerp(g, state["m"], self._beta1)) * size_K1)
                state["m"].copy_(torch.lerp(g, state["m"], self._beta2))
                continue
            m, v = state["m"], state["v"]
            m.lerp_(g, 1 - self._beta1)
            v.mul_(self._beta2).addcmul_(g * (1 - self._beta2), g)
            p.sub_(m / v.sqrt().div_(root_K1).add_(self._eps) * size_K1)

    def _corrections(self, t: int, rate_K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Step sizes [K, 1] and divisors of sqrt(v) [K, 1], with AdamW's bias corrections."""
        if self.kind == "lion":
            return rate_K.float()[:, None], torch.ones_like(self._beta1)
        first = [1 - beta1**t for beta1, _ in self._betas]
        second = [(1 - beta2**t) ** 0.5 for _, beta2 in self._betas]
        size_K = rate_K / torch.tensor(first, dtype=torch.float64, device=rate_K.device)
        return size_K.float()[:, None], torch.tensor(second, device=rate_K.device)[:, None]

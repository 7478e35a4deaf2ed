"""AdamW and decoupled Lion where each arm has its own settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from paretune.model.compilation import fused_on_gpu
from paretune.model.flat import ALIGNMENT, Flat, Part
from paretune.study.arms import ArmConfig

# Elements updated at a time on a CPU: keeps them in its cache. A GPU's kernel has no temporaries,
# but counts elements in 32 bits
ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 30}


class Settings:
    """What an update takes of the settings of K arms that share their optimizer.

    Attributes:
        constants: beta1, beta2 and epsilon, [K, 1] each.
    """

    def __init__(self, arms: Sequence[ArmConfig], device: torch.device) -> None:
        self._kind = arms[0].optimizer
        self._betas = [arm.betas or (0.9, 0.999) for arm in arms]
        self.constants = (
            torch.tensor([b[0] for b in self._betas], device=device)[:, None],
            torch.tensor([b[1] for b in self._betas], device=device)[:, None],
            torch.tensor([arm.eps for arm in arms], device=device)[:, None],
        )
        self._decay = torch.tensor([arm.decay for arm in arms], dtype=torch.float64, device=device)

    def scalars(
        self, t: int, rate_K: torch.Tensor, scale_K: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """What an update at some rates needs of each arm, [K, 1] each."""
        keep_K1 = (1 - rate_K * self._decay).float()[:, None]
        return keep_K1, *self._corrections(t, rate_K), scale_K[:, None]

    def _corrections(self, t: int, rate_K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Step sizes [K, 1] and divisors of sqrt(v) [K, 1], with AdamW's bias corrections."""
        if self._kind == "lion":
            return rate_K.float()[:, None], torch.ones_like(self.constants[0])
        first = [1 - beta1**t for beta1, _ in self._betas]
        second = [(1 - beta2**t) ** 0.5 for _, beta2 in self._betas]
        first_K, second_K = put(
            torch.tensor([first, second], dtype=torch.float64), rate_K.device
        ).unbind()
        return (rate_K / first_K).float()[:, None], second_K.float()[:, None]


class PerArmOptimizer:
    """One optimizer for the K arms of one :class:`Flat`; each row has its own rate and decay.

    AdamW is Loshchilov & Hutter's, with torch.optim.AdamW's order of operations. Lion (Chen et
    al., 2023) is LLM Foundry's decoupled LionW: the update is sign(b1 m + (1 - b1) g), then
    m = b2 m + (1 - b2) g. In both, weights first shrink by 1 - lr * decay, where ``decay`` is in
    torch's convention (``ArmConfig.decay``). Under LoRA+ (Hayou et al., 2024, arXiv 2402.12354)
    all but the factors A learns at a multiple of the rate.

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
        self._settings = Settings(arms, device)
        ratios = [arm.loraplus_lr_ratio or 1.0 for arm in arms]
        self._ratio_K = torch.tensor(ratios, dtype=torch.float64, device=device)
        self._stretches = _stretches(flat, fast=any(ratio != 1 for ratio in ratios))
        self.state: dict[str, torch.Tensor] = {"m": torch.zeros_like(flat.values)}
        if self.kind == "adamw":
            self.state["v"] = torch.zeros_like(flat.values)

    @torch.no_grad()
    def step(self, t: int, rate_K: torch.Tensor, scale_K: torch.Tensor) -> None:
        """One update from the gradients in the flat, scaled; writes the bf16 copies too.

        Args:
            t: number of this update for these arms, from 1 (AdamW's bias correction).
            rate_K: float64 learning rates.
            scale_K: factor of each arm's gradient (clipping). An arm whose rate and scale are 0 is
                frozen: its weights stay as they are to the bit, whatever its gradient is.
        """
        device = self.flat.values.device
        scalars = {False: self._settings.scalars(t, rate_K, scale_K)}
        if any(fast for _, _, fast in self._stretches):
            scalars[True] = self._settings.scalars(t, rate_K * self._ratio_K, scale_K)
        update = UPDATES[self.kind]
        chunk = _columns_at_a_time(len(self.flat.arms), ELEMENTS[device.type])
        for part, stretch, fast in self._stretches:
            for first in range(stretch.start, stretch.stop, chunk):
                columns = slice(first, min(first + chunk, stretch.stop))
                within = slice(first - part.columns.start, columns.stop - part.columns.start)
                update(
                    self.flat.values[:, columns],
                    part.total[:, within],
                    None if part.copy_KC is None else part.copy_KC[:, within],
                    [value[:, columns] for value in self.state.values()],
                    scalars[fast],
                    self._settings.constants,
                )
        self.flat.changes += 1


def _columns_at_a_time(arms: int, elements: int) -> int:
    """Columns whose values of all arms are at most ``elements``, aligned as a flat's tensors are.

    A compiled kernel copies the whole of a matrix whose part it is given is not aligned.
    """
    return max(1, elements // arms // ALIGNMENT) * ALIGNMENT


def _stretches(flat: Flat, *, fast: bool) -> list[tuple[Part, slice, bool]]:
    """The columns of a flat in stretches: their part, and whether they learn at LoRA+'s rate.

    With ``fast``, all but the factors A do, which come first.
    """
    slow = max(
        (offset + 1 for name, (offset, _) in flat.slots.items() if name.endswith(".A")), default=0
    )
    border = min(
        (offset for offset, _ in flat.slots.values() if offset >= slow),
        default=flat.values.shape[1],
    )
    found = []
    for part in flat.parts:
        start, stop = part.columns.start, part.columns.stop
        cut = min(max(border, start), stop) if fast else stop
        found += [(part, slice(start, cut), False), (part, slice(cut, stop), True)]
    return [stretch for stretch in found if stretch[1].start < stretch[1].stop]


def put(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on the device, without waiting for what the device is doing."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _adamw(
    p: torch.Tensor,
    gradient: torch.Tensor,
    copy: torch.Tensor | None,
    state: list[torch.Tensor],
    scalars: tuple[torch.Tensor, ...],
    constants: tuple[torch.Tensor, ...],
) -> None:
    m, v = state
    keep, size, root, scale = scalars
    beta1, beta2, eps = constants
    g = _scaled(gradient, scale)
    p.mul_(keep)
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g * (1 - beta2), g)
    p.sub_(m / v.sqrt().div_(root).add_(eps) * size)
    if copy is not None:
        copy.copy_(p)


def _lion(
    p: torch.Tensor,
    gradient: torch.Tensor,
    copy: torch.Tensor | None,
    state: list[torch.Tensor],
    scalars: tuple[torch.Tensor, ...],
    constants: tuple[torch.Tensor, ...],
) -> None:
    (m,) = state
    keep, size, _, scale = scalars
    beta1, beta2, _ = constants
    g = _scaled(gradient, scale)
    p.mul_(keep)
    p.sub_(torch.sign(torch.lerp(g, m, beta1)) * size)
    m.copy_(torch.lerp(g, m, beta2))
    if copy is not None:
        copy.copy_(p)


def _scaled(gradient: torch.Tensor, scale_K1: torch.Tensor) -> torch.Tensor:
    # Where the scale is 0 the gradient may be anything, NaN included
    return torch.where(scale_K1 != 0, gradient.float() * scale_K1, 0.0)


# By kind of optimizer, an update in place. It takes values [K, P], gradients, a copy to write or
# None, the optimizer's states, scalars and constants (:class:`Settings`)
UPDATES: dict[str, Callable[..., None]] = {
    "adamw": fused_on_gpu(_adamw, dynamic=True),
    "lion": fused_on_gpu(_lion, dynamic=True),
}

"""Several full-finetuning arms in one cohort."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from paretune.model.arm_axis import Current, FullBank, give_arm_axis
from paretune.model.load import load_model
from paretune.model.trainee import Pass, Trainee
from paretune.study.arms import ArmConfig
from paretune.study.config import Base


def full_cohort(
    base: Base,
    arms: Sequence[ArmConfig],
    device: torch.device,
    *,
    arms_per_pass: int | None = None,
) -> Trainee:
    """Full finetuning of several arms, float32 masters with an arm axis.

    Args:
        arms_per_pass: arms in one forward pass; all by default. On a CPU one: an arm's arithmetic
            is then that of an arm alone, to the bit.

    Raises:
        ValueError: the base has weights that cannot carry several arms.
    """
    model = load_model(base, torch.device("cpu"))
    current = Current()
    weights = give_arm_axis(model, current, device)
    model.to(device)
    # Arms that share an optimizer stand side by side, so that they share a bank
    ordered = sorted(arms, key=lambda arm: (arm.optimizer, arm.id))
    size = arms_per_pass or (1 if device.type == "cpu" else len(ordered))
    passes: list[Pass] = []
    for optimizer in dict.fromkeys(arm.optimizer for arm in ordered):
        positions = [i for i, arm in enumerate(ordered) if arm.optimizer == optimizer]
        for first in range(0, len(positions), size):
            own = positions[first : first + size]
            bank = FullBank([ordered[i] for i in own], own, weights, device)
            passes.append(Pass(own[0], own[-1] + 1, (bank,)))
    flats = [bank.flat for group in passes for bank in group.banks]
    return Trainee(model, ordered, flats, passes, current, device, base)

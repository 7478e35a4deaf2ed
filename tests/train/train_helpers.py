"""Training a few steps in one line, with every step's loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from paretune.data.blocks import Blocks
from paretune.model.full_cohort import full_cohort
from paretune.model.lora_cohort import lora_cohort
from paretune.model.trainee import full_arm
from paretune.study.arms import ArmConfig
from paretune.study.config import Base
from paretune.train.schedule import Span, resolve
from paretune.train.trainer import Trainer

CPU = torch.device("cpu")
BATCH = 4


def arm(**settings: object) -> ArmConfig:
    """An arm with a constant learning rate unless told otherwise."""
    defaults = {"schedule": {"shape": "constant", "warmup": "0%"}, "learning_rate": 1e-3}
    return ArmConfig.model_validate({**defaults, **settings})


def lora(rank: int, rate: float, **settings: object) -> ArmConfig:
    """A LoRA arm."""
    return arm(method="lora", rank=rank, learning_rate=rate, **settings)


def train(
    base: Base,
    arms: Sequence[ArmConfig],
    blocks: Blocks,
    steps: int,
    *,
    arms_per_pass: int | None = None,
    rows: int | None = None,
) -> tuple[Trainer, dict[str, list[float | None]]]:
    """Train arms together; returns the trainer and each arm's losses by id."""
    if arms[0].method == "lora":
        trainee = lora_cohort(base, arms, CPU, arms_per_pass=arms_per_pass)
    elif len(arms) > 1:
        trainee = full_cohort(base, arms, CPU, arms_per_pass=arms_per_pass)
    else:
        trainee = full_arm(base, arms[0], CPU)
    trainer = Trainer(trainee, blocks, BATCH)
    if rows is not None:
        trainee.rows = rows
    go_on(trainer, 0, steps)
    curves = trainer.curve()
    losses = {
        a.id: [row["loss"] for row in rows] for a, rows in zip(trainee.arms, curves, strict=True)
    }
    return trainer, losses


def go_on(trainer: Trainer, first: int, stop: int) -> None:
    """Train steps ``first`` to ``stop`` (not included), the last of the schedule."""
    blocks = trainer.blocks
    span = Span(BATCH * blocks.block_length, blocks.count // BATCH)
    arms = trainer.trainee.arms
    schedules = [resolve(a.schedule, span, total=stop, warmup_total=stop) for a in arms]
    for t in range(first, stop):
        trainer.step(t, schedules)


def weights(trainer: Trainer, wanted: ArmConfig) -> dict[str, torch.Tensor]:
    """The trained tensors of an arm."""
    position = [a.id for a in trainer.trainee.arms].index(wanted.id)
    return {name: value.clone() for name, value in trainer.weights(position).items()}


def equal_each_alone(
    base: Base,
    arms: Sequence[ArmConfig],
    blocks: Blocks,
    steps: int,
    *,
    arms_per_pass: int,
    tolerance: float,
) -> None:
    """Assert that arms trained together are each what they are alone.

    To the bit where they pass one by one, as on a CPU; else losses to 1e-5 and weights to
    ``tolerance``, of each tensor's norm.
    """
    together, losses = train(base, arms, blocks, steps, arms_per_pass=arms_per_pass)
    for one in arms:
        alone, own = train(base, [one], blocks, steps)
        np.testing.assert_allclose(losses[one.id], own[one.id], rtol=1e-5)
        for name, value in weights(alone, one).items():
            got = weights(together, one)[name]
            if arms_per_pass == 1:
                assert torch.equal(got, value), (one.label, name)
            elif not name.endswith("c_attn.bias"):
                # (a bias on all keys cancels in the softmax: its gradient is amplified rounding)
                assert (got - value).norm() <= tolerance * value.norm(), (one.label, name)

"""What a study will take: which arms train together, and the tokens, memory and time expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paretune.study.arms import ArmConfig

# float32 weights, gradient and two moments of whatever is trained (one moment for Lion)
_BYTES_TRAINED = {"adamw": 16, "lion": 12}
# Adapters of one cohort may take this share of the device
_ADAPTER_SHARE = 0.4
# Share of the device's measured matrix-product rate that a training step reaches
EFFICIENCY = 0.35


@dataclass(frozen=True)
class Machine:
    """The device a study runs on: its memory in bytes and matrix-product rate in FLOP/s."""

    name: str
    memory: int
    flops: float


@dataclass(frozen=True)
class CohortPlan:
    """Arms that train together, and what that takes."""

    arms: tuple[str, ...]
    memory: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The whole study before it starts."""

    cohorts: tuple[CohortPlan, ...]
    trained_tokens: int
    disk: int

    @property
    def seconds(self) -> float:
        """Expected training time of all cohorts, one after another."""
        return sum(cohort.seconds for cohort in self.cohorts)


def cohorts(
    arms: Sequence[ArmConfig], trained: Mapping[str, int], memory: int
) -> list[list[ArmConfig]]:
    """Arms that train together: LoRA arms over one base, each full arm alone.

    Arms whose cooldowns differ run different legs in ``cooldown`` mode, so they are kept apart. A
    cohort's adapters, gradients and optimizer state stay within a share of the device's memory.

    Args:
        trained: number of trained parameters by arm id.
        memory: bytes on the device.
    """
    groups: list[list[ArmConfig]] = []
    sizes: list[int] = []
    open_at: dict[str, int] = {}
    for arm in arms:
        if arm.method == "full":
            groups.append([arm])
            sizes.append(0)
            continue
        layout = str(arm.schedule.cooldown)
        size = trained[arm.id] * _BYTES_TRAINED[arm.optimizer]
        index = open_at.get(layout)
        if index is None or sizes[index] + size > _ADAPTER_SHARE * memory:
            groups.append([])
            sizes.append(0)
            index = open_at[layout] = len(groups) - 1
        groups[index].append(arm)
        sizes[index] += size
    # LoRA cohorts first: their results come soonest
    return sorted(groups, key=lambda group: group[0].method == "full")


def make_plan(
    groups: Sequence[Sequence[ArmConfig]],
    trained: Mapping[str, int],
    *,
    parameters: int,
    machine: Machine,
    steps: int,
    budgets: int,
    rows: tuple[int, int],
) -> Plan:
    """Expected memory, time and disk of the cohorts.

    Time counts 4 N FLOPs a token for LoRA (forward, and the backward pass to the inputs) and 6 N
    for full finetuning, plus 6 for each adapter weight, at a fixed share of the device's rate.
    Memory is that of weights and optimizer states; activations fill what is left, in pieces.

    Args:
        parameters: N, the base's parameters.
        steps: optimizer steps of one arm over all its runs.
        budgets: checkpoints of one arm.
        rows: batch size and block length.
    """
    tokens = steps * rows[0] * rows[1]
    plans = []
    disk = 0
    for group in groups:
        bytes_trained = sum(trained[a.id] * _BYTES_TRAINED[a.optimizer] for a in group)
        full = group[0].method == "full"
        base = 0 if full else 4 * parameters
        per_token = sum(
            (6 * parameters if full else 4 * parameters + 6 * trained[a.id]) for a in group
        )
        seconds = per_token * tokens / (EFFICIENCY * machine.flops)
        plans.append(CohortPlan(tuple(a.id for a in group), base + bytes_trained, seconds))
        disk += sum(4 * trained[a.id] * budgets for a in group)
    return Plan(tuple(plans), tokens * sum(len(group) for group in groups), disk)

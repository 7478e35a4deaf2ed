"""What a study will take: which arms train together, and the tokens, memory and time expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paretune.study.arms import ArmConfig
from paretune.study.memory import Workload
from paretune.study.sharding import Sharding

# Above this many parameters one full arm fills a GPU, and several gain nothing from each other
SMALL_BASE = 500_000_000


@dataclass(frozen=True)
class CohortPlan:
    """Arms that train together, and what that takes."""

    arms: tuple[str, ...]
    memory: int
    seconds: float
    devices: int = 1
    sharding: Sharding | None = None


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
    arms: Sequence[ArmConfig], trained: Mapping[str, int], workload: Workload
) -> list[list[ArmConfig]]:
    """Arms that train together: LoRA arms over one base; full arms where the base is small.

    Arms whose cooldowns differ run different legs in ``cooldown`` mode, so they are kept apart. A
    cohort takes in arms for as long as at least one row of each fits on the device, or on those
    of the machine where it is sharded anyway.

    Args:
        trained: number of trained parameters by arm id.
    """
    groups: list[list[ArmConfig]] = []
    open_at: dict[str, int] = {}
    for arm in arms:
        small = workload.full_together and trained[arm.id] <= SMALL_BASE
        if arm.method == "full" and (not small or arm.attention_dropout):
            groups.append([arm])
            continue
        layout = f"{arm.method} {arm.schedule.cooldown}"
        index = open_at.get(layout)
        if index is None or not workload.fits([*groups[index], arm], trained):
            groups.append([])
            index = open_at[layout] = len(groups) - 1
        groups[index].append(arm)
    # LoRA cohorts first: their results come soonest
    return sorted(groups, key=lambda group: group[0].method == "full")


def spread(groups: Sequence[list[ArmConfig]], workers: int) -> list[list[ArmConfig]]:
    """Cohorts for several workers: the largest are halved until there is one for each.

    An arm's result does not depend on its cohort, so this changes time and memory alone.
    """
    found = [list(group) for group in groups]
    while found and len(found) < workers:
        largest = max(range(len(found)), key=lambda i: len(found[i]))
        group = found[largest]
        if len(group) == 1:
            break
        half = (len(group) + 1) // 2
        found[largest : largest + 1] = [group[:half], group[half:]]
    return found


def make_plan(
    groups: Sequence[Sequence[ArmConfig]],
    trained: Mapping[str, int],
    workload: Workload,
    *,
    steps: int,
    budgets: int,
) -> Plan:
    """Expected memory, time and disk of the cohorts (``study.memory``).

    Args:
        steps: optimizer steps of one arm over all its runs.
        budgets: checkpoints of one arm.
    """
    plans = [
        CohortPlan(
            tuple(arm.id for arm in group),
            workload.bytes(group, trained),
            steps * workload.seconds(group, trained),
            workload.devices(group, trained),
            workload.sharding(group, trained),
        )
        for group in groups
    ]
    arms = [arm for group in groups for arm in group]
    disk = sum(4 * trained[arm.id] * budgets for arm in arms)
    tokens = steps * workload.batch.rows * workload.batch.length
    return Plan(tuple(plans), tokens * len(arms), disk)

"""Plain-text tables of a plan and of a status, for the terminal and for log files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from paretune.runner.planner import StudyPlan
from paretune.runner.sharding import parts
from paretune.runner.status import ArmStatus
from paretune.study.units import duration, size


def plan_table(planned: StudyPlan) -> str:
    """A plan as text: arms by cohort, tokens, memory, time, disk."""
    config = planned.study.config
    budgets = ", ".join(f"{tokens:,}" for tokens in planned.budgets)
    lines = [
        f"study {config.name}: {len(planned.arms)} arms, base {config.base.name}, {config.regime}",
        f"budgets: {budgets} tokens ({config.budgets.mode})",
        *planned.notes,
    ]
    rows = []
    for number, cohort in enumerate(planned.plan.cohorts, start=1):
        for i, arm_id in enumerate(cohort.arms):
            rows.append(
                (
                    str(number) if i == 0 else "",
                    arm_id,
                    f"{planned.trained[arm_id]:,}",
                    size(cohort.memory) if i == 0 else "",
                    duration(cohort.seconds) if i == 0 else "",
                )
            )
    header = ("cohort", "arm", "trained", "memory", "time")
    lines += columns(header, rows)
    plan = planned.plan
    lines += [
        f"in all: {plan.trained_tokens:,} training tokens, "
        f"about {duration(plan.seconds)} of training on {planned.machine.name}, "
        f"{size(plan.disk)} of checkpoints",
        "memory is the expected peak of training, on each device. "
        "Time is an estimate from the device's speed; scoring comes on top.",
    ]
    lines += _sharded(planned)
    repeat = config.repeat_best
    if repeat is not None:
        per = " and ".join(repeat.per)
        lines.append(
            f"then the best arm of each {per} again under seeds {', '.join(map(str, repeat.seeds))}"
        )
    return "\n".join(lines)


def _sharded(planned: StudyPlan) -> list[str]:
    """A line for each cohort that is sharded, or would have to be: over how many, and the parts."""
    lines = []
    machine = planned.machine
    for number, cohort in enumerate(planned.plan.cohorts, start=1):
        found = cohort.sharding
        if found is None:
            continue
        if not found.devices:
            lines.append(
                f"cohort {number} has no room on any number of devices like {machine.name} "
                f"({size(machine.memory)}): {parts(found)}; it takes smaller blocks"
            )
            continue
        lines.append(
            f"cohort {number} is sharded over {found.devices} devices (FSDP2), each with "
            f"{size(found.memory)}: {parts(found)}"
        )
        if machine.kind == "cuda" and found.devices > machine.devices:
            lines[-1] += f"; {machine.name} x {machine.devices} is not enough"
    return lines


def status_table(arms: Sequence[ArmStatus]) -> str:
    """The state of every arm as text, and a count by state."""
    rows = [
        (
            arm.arm,
            arm.state,
            f"{arm.tokens:,}",
            ", ".join(f"{tokens:,}" for tokens in arm.scored),
            arm.reason or "",
        )
        for arm in arms
    ]
    counts = Counter(arm.state for arm in arms)
    summary = ", ".join(
        f"{counts[s]} {s}"
        for s in ("done", "running", "stopped", "diverged", "planned")
        if counts[s]
    )
    if counts["stopped"]:
        summary += "; the same `paretune run` goes on from there"
    lines = columns(("arm", "state", "tokens", "scored at", ""), rows)
    return "\n".join([*lines, f"{len(arms)} arms: {summary}"])


def columns(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]

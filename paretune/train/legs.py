"""How budgets become runs: one hot run, separate runs, or a trunk with branches that cool down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paretune.errors import UserError
from paretune.study.schedule import Schedule
from paretune.train.schedule import Resolved, Span, resolve


@dataclass(frozen=True)
class Leg:
    """A stretch of training steps [start, stop) under one schedule.

    Attributes:
        parent: the leg whose state at ``start`` this one goes on from; None: the base's weights.
        scored: steps (as ``stop`` values) after which arms are scored.
        kept: steps whose state later legs start from.
    """

    name: str
    start: int
    stop: int
    total: int
    parent: str | None = None
    scored: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()

    @property
    def stops(self) -> list[int]:
        """Steps at which the run pauses to score or to keep its state, ascending."""
        return sorted({*self.scored, *self.kept, self.stop})


def legs(budgets: Sequence[int], mode: str, schedule: Schedule, span: Span) -> list[Leg]:
    """The legs of an arm for budgets in steps, in the order they run.

    ``cooldown`` is the paper's way (Biderman et al., 2024, section 3): one run of the largest
    budget, and for each budget a branch over its last 20% (or the schedule's own cooldown).

    Raises:
        UserError: cooldown branches asked of a schedule that has none.
    """
    steps = sorted(budgets)
    if mode == "hot":
        return [Leg("main", 0, steps[-1], steps[-1], scored=tuple(steps))]
    if mode == "separate":
        return [Leg(f"to-{n}", 0, n, n, scored=(n,)) for n in steps]
    if schedule.shape == "cosine":
        raise UserError(
            "budgets.mode: cooldown needs a schedule that can be cut short; set the arm's schedule "
            "to constant, trapezoid or inverse_sqrt"
        )
    cooldown = "20%" if schedule.cooldown is None else schedule.cooldown
    starts = {n: n - max(1, min(n, span.steps(cooldown, n))) for n in steps}
    last = max(starts.values())
    trunk = Leg("trunk", 0, last, steps[-1], kept=tuple(sorted(set(starts.values()) - {0})))
    branches = [
        Leg(f"to-{n}", start, n, n, parent="trunk" if start else None, scored=(n,))
        for n, start in starts.items()
    ]
    return ([trunk] if last else []) + branches


def leg_schedule(
    leg: Leg, mode: str, schedule: Schedule, span: Span, budgets: Sequence[int]
) -> Resolved:
    """The schedule over a leg's steps, which count from the start of its trunk.

    Raises:
        UserError: a run would end, or a branch cool down, before the warm-up is over.
    """
    if mode != "cooldown":
        resolved = resolve(schedule, span, total=leg.total, warmup_total=leg.total)
        if resolved.warmup > leg.total:
            raise UserError(
                f"budgets.at: the run to step {leg.stop} ends before its warm-up of "
                f"{resolved.warmup} steps does; shorten the schedule's warm-up"
            )
        return resolved
    # All branches share the trunk's warm-up, so a share is taken of the smallest budget
    resolved = resolve(schedule, span, total=leg.total, warmup_total=min(budgets))
    start = leg.total if leg.name == "trunk" else leg.start
    if leg.name != "trunk" and start < resolved.warmup:
        raise UserError(
            f"budgets.at: the branch to the budget at step {leg.stop} cools down from step "
            f"{start}, but warm-up takes {resolved.warmup} steps; shorten the schedule's warm-up"
        )
    return Resolved(resolved.shape, resolved.warmup, start, leg.total, resolved.final)

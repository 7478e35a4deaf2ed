"""What to run next, so that the advice becomes surer or better."""

from __future__ import annotations

import numpy as np

from paretune.analyse.ahead import Ahead
from paretune.analyse.candidates import SURE, Candidates, share_words, span
from paretune.analyse.claims.judge import HOPELESS
from paretune.analyse.power import POWER_80, rounded
from paretune.analyse.record import method_group


def next_steps(
    candidates: Candidates, top: int, rivals: list[int], ahead: list[Ahead], settled: bool
) -> list[str]:
    """What to run next, the most useful first: what is open, what lies ahead, what is untried."""
    chosen = candidates.candidate(top)
    steps = []
    if not settled and rivals:
        steps.append(_settle(candidates, top, rivals[0]))
    if candidates.limit is not None and chosen.within is not None and chosen.within < SURE:
        steps.append(
            "More items of the forgetting metric: whether the choice stays within the limit is "
            "not sure."
        )
    for ahead_one in ahead:
        better = ahead_one.learning[0] > chosen.learning
        inside = ahead_one.within is None or ahead_one.within >= 0.5
        if better and inside:
            chance = "" if ahead_one.within is None else (
                f", within the limit with probability {share_words(ahead_one.within)}"
            )  # fmt: skip
            steps.append(
                f"Train {ahead_one.name} on to {ahead_one.tokens:,} tokens: extrapolated, it "
                f"would learn {span(*ahead_one.learning)} and forget "
                f"{span(*ahead_one.forgetting)}{chance}."
            )
            break
    steps += _rates(candidates, top)
    if chosen.seeds < 2:
        steps.append(f"Run {chosen.name} again under two more seeds: it was run once.")
    return steps


def _rates(candidates: Candidates, top: int) -> list[str]:
    """Rates beyond the end of the sweep of the choice's method, where the choice is at it."""
    record = candidates.evidence.record
    chosen = record.arms[candidates.arm_of(candidates.cells[top][0])]
    group = method_group(chosen)
    alike = [config for config in record.arms.values() if method_group(config) == group]
    rates = sorted({config.learning_rate for config in alike})
    rate = chosen.learning_rate
    if len(rates) == 1:
        return [f"More learning rates of {group}: only {rate:g} was tried."]
    if rate not in (rates[0], rates[-1]):
        return []
    end = rate / 3 if rate == rates[0] else rate * 3
    side = "lowest" if rate == rates[0] else "highest"
    return [f"{rate:g} is the {side} rate of {group} that was tried: try {end:.1g} as well."]


def _settle(candidates: Candidates, top: int, rival: int) -> str:
    """Items or seeds that would tell the choice from the runner-up."""
    weights: dict[int, float] = {}
    for sign, index in ((1.0, top), (-1.0, rival)):
        cell = candidates.cells[index][2]
        for point in cell:
            weights[point] = weights.get(point, 0.0) + sign / len(cell)
    effect = candidates.evidence.contrast("learning", weights)
    one, two = candidates.candidate(top), candidates.candidate(rival)
    gap = abs(effect.estimate.value or 0.0)
    seen = np.sqrt(POWER_80 * (effect.item_variance + effect.run_variance))
    text = (
        f"To tell {one.words} from {two.words} (apart by {gap:.3g}, and this study could have "
        f"seen {seen:.3g})"
    )
    spare = gap**2 / POWER_80 - effect.run_variance
    if spare > 0 and effect.item_variance / spare < HOPELESS:
        items = rounded(effect.estimate.n * max(effect.item_variance / spare, 1.0))
        return f"{text}: about {items:,} items instead of {effect.estimate.n:,}."
    spare = gap**2 / POWER_80 - effect.item_variance
    if effect.run_variance and spare > 0 and effect.run_variance / spare < HOPELESS:
        seeds = min(one.seeds, two.seeds)
        return f"{text}: about {rounded(seeds * effect.run_variance / spare)} seeds of each."
    return f"{text}: no larger study of this kind; they are as good as each other."

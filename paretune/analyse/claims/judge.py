"""From comparisons to a judgement: p values, Holm's correction, and what would settle the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from paretune.analyse.claims.evidence import Effect
from paretune.analyse.claims.verdict import Judgement, Outcome, Part
from paretune.analyse.power import POWER_80, rounded
from paretune.analyse.statistics import Estimate, holm

ALPHA = 0.05
HOPELESS = 100.0  # times as many items or seeds: no plan


def judge(effects: Sequence[tuple[str, Effect]], unit: str, *, note: str = "") -> Outcome:
    """Judge a claim that says that each of these effects is above zero.

    Supported when each is, after Holm's correction; contradicted when at least one is below zero;
    else unresolved. The effect shown is the one that speaks most against the claim.
    """
    tested = [effect.p is not None for _, effect in effects]
    adjusted = iter(holm([effect.p for _, effect in effects if effect.p is not None]))
    parts = [
        Part(name, effect.estimate, effect.p, next(adjusted) if done else None)
        for (name, effect), done in zip(effects, tested, strict=True)
    ]
    parts = [replace(part, judgement=_of(part)) for part in parts]
    index = int(np.argmax([_against(part) for part in parts]))
    decided, effect = parts[index], effects[index][1]
    found = [part.judgement for part in parts]
    overall: Judgement = "unresolved"
    if all(one == "supported" for one in found):
        overall = "supported"
    elif any(one == "contradicted" for one in found):
        overall = "contradicted"
    return Outcome(
        overall,
        "; ".join(filter(None, [_reason(parts, unit), note])),
        decided.estimate,
        unit,
        settle(effect) if overall == "unresolved" else None,
        tuple(parts),
    )


def settle(effect: Effect) -> str:
    """How much more of what would settle an open difference of this size, 4 times in 5."""
    estimate = effect.estimate
    if estimate.value == 0:
        return "no larger study of this kind: there is no difference"
    if estimate.value is None or not estimate.stderr:
        return "more items, so that there is an interval"
    variance = estimate.value**2 / POWER_80
    items, runs = effect.item_variance, effect.run_variance
    if items and items / variance > HOPELESS:
        return "no larger study of this kind: the difference is next to nil"
    if runs < variance and items > 0:
        times = items / (variance - runs)
        if times <= HOPELESS and estimate.n:
            more = estimate.n * max(times, 1.0)
            if times > 1:
                return f"about {rounded(more):,} items instead of {estimate.n:,}" + (
                    " (or their outcomes one by one, so that arms are compared on the same items)"
                    if effect.unpaired
                    else ""
                )
            return "a few more items: it is at the edge"
    times = (items + runs) / variance
    if times > HOPELESS:
        return "no larger study of this kind: the difference is next to nil"
    return f"about {rounded(max(times, 2.0))} times as many seeds of these arms"


def show(value: float | None, digits: int = 3) -> str:
    """A number in a sentence."""
    if value is None:
        return "?"
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e" in text and abs(value) >= 1 else text


def interval(estimate: Estimate) -> str:
    """A number with its interval, or with why it has none."""
    if estimate.value is None:
        return estimate.reason or "undefined"
    if estimate.low is None:
        return f"{show(estimate.value)} ({estimate.reason or 'no interval'})"
    return f"{show(estimate.value)} [{show(estimate.low)}, {show(estimate.high)}]"


def _of(part: Part) -> Judgement:
    if part.p_adjusted is None or part.estimate.value is None or part.p_adjusted > ALPHA:
        return "unresolved"
    return "supported" if part.estimate.value > 0 else "contradicted"


def _against(part: Part) -> float:
    """How strongly a comparison speaks against the claim: its number of standard errors."""
    estimate = part.estimate
    if estimate.value is None or estimate.stderr is None:
        return -np.inf
    return -estimate.value / max(estimate.stderr, 1e-300)


def _reason(parts: Sequence[Part], unit: str) -> str:
    texts = []
    for part in parts:
        adjusted = ""
        if len(parts) > 1 and part.p_adjusted is not None:
            adjusted = f", p {_p(part.p_adjusted)}"
        texts.append(f"{part.name}: {interval(part.estimate)}{adjusted}")
    shown = "; ".join(texts)
    if unit:
        shown += f" ({unit})"
    if sum(part.p is not None for part in parts) > 1:
        shown += f"; p by Holm over {sum(part.p is not None for part in parts)}"
    return shown


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")

"""The claim at matched learning: who forgot less on the way to the same place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from paretune.analyse.claims.evidence import Effect, Evidence
from paretune.analyse.claims.judge import HOPELESS, interval, judge, show
from paretune.analyse.claims.verdict import Claim, Outcome, missing
from paretune.analyse.matched import CANNOT, NEEDED, envelope_at
from paretune.analyse.power import POWER_80, rounded
from paretune.analyse.statistics import Estimate, Floats, centred, percentile_interval

LEVELS = 9  # over the range of learning that both methods cover, ends included
Curves = tuple[Floats, Floats]  # learning and forgetting, [1 + R, P]: estimates, then draws


def forgets_less_at_matched_learning(evidence: Evidence) -> Outcome:
    """Full minus LoRA of each rank in forgetting, the mean over the learning that both cover.

    A method's envelope is its lower convex hull, which noise lowers the more, the more settings
    were tried. So each rank is compared alone and by as many settings as full finetuning has:
    where one side has more, those that learned most. LoRA of all ranks together, at the most that
    both learned, is told beside it as in the report, and does not decide.
    """
    evidence.full()
    groups = evidence.groups()
    effects = []
    for rank in evidence.ranks():
        keys = groups[f"lora r{rank}"]
        count = min(len(keys), len(groups["full"]))
        full, lora = (
            curves(evidence, _most_learned(evidence, side, count))
            for side in (groups["full"], keys)
        )
        effects.append((f"full minus LoRA r{rank}", over_the_range(evidence, full, lora)))
    if all(effect.estimate.value is None for _, effect in effects):
        raise missing(effects[0][1].estimate.reason or CANNOT)
    full = curves(evidence, groups["full"])
    every = curves(evidence, [k for name, keys in groups.items() if name != "full" for k in keys])
    note = (
        "forgetting interpolated along each method's envelope; all ranks together, at the most "
        f"that both learned ({show(top_level(full, every))} {evidence.unit('learning')}): "
        f"{interval(at_the_top(evidence, full, every).estimate)}"
    )
    outcome = judge(effects, f"{evidence.unit('forgetting')}, mean over shared learning", note=note)
    if outcome.judgement != "unresolved" or not outcome.effect.stderr:
        return outcome
    apart = [name for name, effect in effects if effect.estimate.value is None]
    resolve = _settle(outcome.effect)
    if apart:
        resolve = (
            "budgets or learning rates at which both methods learn as much as each other "
            f"({', '.join(apart)}), and {resolve}"
        )
    return replace(outcome, resolve=resolve)


def _most_learned(evidence: Evidence, settings: list[str], count: int) -> list[str]:
    rest, chosen = sorted(settings), []
    for _ in range(count):
        chosen.append(evidence.best(rest))
        rest.remove(chosen[-1])
    return chosen


def curves(evidence: Evidence, settings: list[str]) -> Curves:
    """All points of some settings, the mean over seeds in each."""
    x, y = evidence.draws("learning"), evidence.draws("forgetting")
    cells = [cell for key in sorted(settings) for cell in evidence.cells[key].values()]
    return (
        np.stack([x[:, cell].mean(axis=1) for cell in cells], axis=1),
        np.stack([y[:, cell].mean(axis=1) for cell in cells], axis=1),
    )


def top_level(a: Curves, b: Curves) -> float:
    """The largest learning that both reached."""
    return float(min(a[0][0].max(), b[0][0].max()))


def at_the_top(evidence: Evidence, a: Curves, b: Curves) -> Effect:
    """a minus b in forgetting at the largest learning that both reached, found in each draw."""
    levels = np.minimum(a[0].max(axis=1), b[0].max(axis=1))
    return _effect(evidence, envelope_at(*a, levels) - envelope_at(*b, levels))


def over_the_range(evidence: Evidence, a: Curves, b: Curves) -> Effect:
    """The mean of a minus b over evenly spaced levels of the learning that both cover."""
    low = np.maximum(a[0].min(axis=1), b[0].min(axis=1))
    high = np.minimum(a[0].max(axis=1), b[0].max(axis=1))
    shares = np.linspace(0, 1, LEVELS)
    # Not beyond the top by rounding, where no envelope is
    levels = [np.minimum(low + (high - low) * share, high) for share in shares]
    gaps = np.stack([envelope_at(*a, at) - envelope_at(*b, at) for at in levels])
    return _effect(evidence, np.where(high > low, gaps.mean(axis=0), np.nan))


def _effect(evidence: Evidence, values: Floats) -> Effect:
    """The estimate with a percentile interval of its draws, and p from the same draws."""
    n = min(estimate.n for estimate in evidence.points.forgetting)
    if np.isnan(values[0]):
        apart = f"{CANNOT}: what the two learned does not overlap"
        return Effect(Estimate(None, None, None, None, n, apart))
    value, draws = float(values[0]), values[1:][~np.isnan(values[1:])]
    share = len(draws) / max(1, len(values) - 1)
    reason: str | None = None
    if evidence.points.resampled < 2:
        reason = "one item has no interval"
    elif share < NEEDED:
        reason = f"no interval: the level is reached in {share:.0%} of resamples"
    if reason is not None:
        return Effect(Estimate(value, None, None, None, n, reason))
    draws = centred(value, draws)
    low, high = percentile_interval(draws)
    below = min(float((draws <= 0).mean()), float((draws >= 0).mean()))
    p = min(1.0, 2 * max(below, 1 / (len(draws) + 1)))
    stderr = (high - low) / 3.92  # the draws may be skew: what the interval amounts to
    return Effect(Estimate(value, stderr, low, high, n), p, stderr**2, 0.0, evidence.unpaired)


def _settle(estimate: Estimate) -> str:
    """Both axes move the difference, so both need more."""
    times = POWER_80 * ((estimate.stderr or 0.0) / (estimate.value or 1e-12)) ** 2
    if times > HOPELESS:
        return "no larger study of this kind: the difference is next to nil"
    return (
        f"about {rounded(max(times, 2.0))} times as many items on both axes, or seeds, and "
        "budgets or learning rates near the level"
    )


CLAIMS = (
    Claim(
        "forgets-less-at-matched-learning",
        "At equal learning LoRA of every rank forgets less than full finetuning.",
        "Biderman et al. (2024), Tables S1-S13; tested by interpolation",
        "full finetuning and LoRA whose curves of learning overlap",
        forgets_less_at_matched_learning,
    ),
)

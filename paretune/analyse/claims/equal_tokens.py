"""Claims at an equal number of tokens: LoRA against full finetuning, each at its best rate."""

from __future__ import annotations

from paretune.analyse.claims.evidence import Effect, Evidence
from paretune.analyse.claims.judge import ALPHA, interval, judge, settle, show
from paretune.analyse.claims.verdict import Claim, Judgement, Outcome, Part, missing
from paretune.analyse.statistics import Estimate, holm

NEEDS = "full finetuning and LoRA, scored at the same budgets"
CLOSED = 0.1  # a gap below a tenth of what full finetuning learned counts as closed


def learns_less(evidence: Evidence) -> Outcome:
    """Full minus LoRA in learning, of each rank, the mean over budgets."""
    full = evidence.full()
    effects = [
        (f"full minus LoRA r{rank}", evidence.difference("learning", full, key))
        for rank, key in evidence.ranks().items()
    ]
    return judge(effects, unit_of(evidence, "learning"), note=settings(evidence))


def forgets_less(evidence: Evidence) -> Outcome:
    """Full minus LoRA in forgetting, of each rank, the mean over budgets."""
    full = evidence.full()
    effects = [
        (f"full minus LoRA r{rank}", evidence.difference("forgetting", full, key))
        for rank, key in evidence.ranks().items()
    ]
    return judge(effects, unit_of(evidence, "forgetting"), note=settings(evidence))


def closes_the_gap(evidence: Evidence) -> Outcome:
    """The highest rank learns more than the lowest, and what is left of the gap is small."""
    if evidence.record.config.regime != "ift":
        raise missing(
            "the claim is about instruction finetuning, and this is continued pretraining"
        )
    full, ranks = evidence.full(), evidence.ranks()
    if len(ranks) < 2:
        raise missing("the study has only one LoRA rank")
    low, high = min(ranks), max(ranks)
    gained = evidence.difference("learning", ranks[high], ranks[low])
    gap = evidence.difference("learning", full, ranks[high])
    cell = evidence.cells[full]
    learned = evidence.contrast(
        "learning",
        {i: 1 / len(points) / len(cell) for points in cell.values() for i in points},
    ).estimate.value
    margin = CLOSED * max(learned or 0.0, 0.0)
    left = shifted(gap, margin)
    names = (f"r{high} minus r{low}", f"a tenth of full's learning minus its lead over r{high}")
    adjusted = holm([1.0 if effect.p is None else effect.p for effect in (gained, left)])
    parts = [
        Part(name, effect.estimate, effect.p, p, _signed(effect, p))
        for name, effect, p in zip(names, (gained, left), adjusted, strict=True)
    ]
    found = [part.judgement for part in parts]
    verdict: Judgement = "unresolved"
    if found == ["supported", "supported"]:
        verdict = "supported"
    elif "contradicted" in found:
        verdict = "contradicted"
    reason = (
        f"r{high} learned {interval(gained.estimate)} more than r{low}; full leads r{high} by "
        f"{interval(gap.estimate)}, and a gap below {show(margin)}, a tenth of what full learned, "
        f"counts as closed; {settings(evidence)}"
    )
    open_one = gained if found[0] != "supported" else left
    return Outcome(
        verdict,
        reason,
        gap.estimate,
        f"{evidence.unit('learning')}, full minus r{high}",
        settle(open_one) if verdict == "unresolved" else None,
        tuple(parts),
    )


def shifted(effect: Effect, margin: float) -> Effect:
    """``margin`` minus the effect, with its p (degrees of freedom are large enough for normal)."""
    from scipy.special import ndtr

    estimate = effect.estimate
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return effect
    value = margin - estimate.value
    moved = Estimate(
        value, estimate.stderr, margin - estimate.high, margin - estimate.low, estimate.n
    )
    p = float(2 * ndtr(-abs(value) / estimate.stderr)) if estimate.stderr else float(value == 0)
    return Effect(moved, p, effect.item_variance, effect.run_variance, effect.unpaired)


def unit_of(evidence: Evidence, axis: str) -> str:
    """The unit, and what is averaged."""
    unit = evidence.unit("learning" if axis == "learning" else "forgetting")
    budgets = len({tokens for _, tokens in evidence.points.points})
    return f"{unit}, mean of {budgets} budgets" if budgets > 1 else unit


def settings(evidence: Evidence) -> str:
    """Which settings stand for the methods."""
    rates = [f"full {evidence.settings[evidence.full()].learning_rate:g}"]
    rates += [
        f"r{rank} {evidence.settings[key].learning_rate:g}"
        for rank, key in evidence.ranks().items()
    ]
    tried = {len(keys) for keys in evidence.groups().values()}
    best = "each at the setting that learned most at the last budget; " if max(tried) > 1 else ""
    if len(tried) > 1:
        best += "methods were not tried with equally many settings, which favours those with more; "
    return f"{best}learning rates: {', '.join(rates)}"


def _signed(effect: Effect, p: float) -> Judgement:
    if effect.p is None or effect.estimate.value is None or p > ALPHA:
        return "unresolved"
    return "supported" if effect.estimate.value > 0 else "contradicted"


CLAIMS = (
    Claim(
        "learns-less",
        "At equal tokens LoRA of every rank learns less than full finetuning.",
        "Biderman et al. (2024), Tables S1-S13",
        NEEDS,
        learns_less,
    ),
    Claim(
        "high-rank-closes-the-gap",
        "In instruction finetuning a high rank closes LoRA's gap in learning.",
        "Biderman et al. (2024), Tables S1-S13",
        "instruction finetuning (regime ift) by full and by LoRA of two or more ranks",
        closes_the_gap,
    ),
    Claim(
        "forgets-less",
        "At equal tokens LoRA of every rank forgets less than full finetuning.",
        "Biderman et al. (2024), Tables S1-S13",
        NEEDS,
        forgets_less,
    ),
)

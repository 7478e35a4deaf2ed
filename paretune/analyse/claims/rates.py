"""The claim that LoRA's best learning rate is about ten times that of full finetuning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paretune.analyse.claims.evidence import Evidence, setting_key
from paretune.analyse.claims.judge import show
from paretune.analyse.claims.verdict import Claim, Judgement, Outcome, Part, missing
from paretune.analyse.record import group_order, method_group
from paretune.analyse.statistics import Estimate, Floats

# Nearer to ten than to one or to a hundred; a sweep of half decades can just tell: its bracket of
# half a step on each side then ends where this does, which counts as inside or outside
LOW, HIGH = 10**0.5, 10**1.5
ROUNDING = 1.001  # rates such as 3e-4 are written with one digit
FEWEST = 3


@dataclass(frozen=True)
class Optimum:
    """[1 + R] draws of log10 of the best learning rate, and the bracket that it lies in.

    The optimum is taken to lie nearer to the best rate tried than to its neighbours. Where the
    best is the lowest or the highest, the bracket is open (infinite) there.
    """

    best: Floats
    low: Floats
    high: Floats

    @property
    def edge(self) -> str | None:
        """What is wrong with the sweep, if its best is at its end."""
        for bound, name in ((self.low[0], "lowest"), (self.high[0], "highest")):
            if np.isinf(bound):
                return f"at {10 ** float(self.best[0]):g}, the {name} rate tried"
        return None


def ten_times(evidence: Evidence) -> Outcome:
    """LoRA's best rate over full's, by learning at the last budget, for each rank."""
    groups = evidence.groups()
    full = optimum(evidence, groups.get("full", []))
    if full is None:
        raise missing("no scores of full finetuning at three or more learning rates")
    tried = {
        group.removeprefix("lora "): optimum(evidence, groups[group])
        for group in sorted(groups, key=group_order)
        if group != "full"
    }
    loras = {name: best for name, best in tried.items() if best is not None}
    if not loras:
        raise missing("no scores of a LoRA rank at three or more learning rates")
    parts = [_part(name, lora, full, evidence, len(loras)) for name, lora in loras.items()]
    found = [part.judgement for part in parts]
    verdict: Judgement = "unresolved"
    if all(one == "supported" for one in found):
        verdict = "supported"
    elif "contradicted" in found:
        verdict = "contradicted"
    shown = parts[found.index(verdict)]
    edges = [
        f"{name}'s best is {best.edge}"
        for name, best in {"full": full, **loras}.items()
        if best.edge
    ]
    told = ", ".join(f"{part.name} {_words(part.estimate)}" for part in parts)
    reason = (
        f"best rate over full's: {told}; each best is known to half a step of its sweep, intervals "
        f"are 95% for all ranks together, and {show(LOW, 2)} to {show(HIGH, 2)} counts as about ten"
    )
    resolve = None
    if verdict == "unresolved":
        resolve = (
            "learning rates beyond the end of the sweep"
            if edges
            else "learning rates closer together about the best ones, and more seeds"
        )
    return Outcome(
        verdict,
        "; ".join([reason, *edges]),
        shown.estimate,
        f"times full's best rate, {shown.name}",
        resolve,
        tuple(parts),
    )


def optimum(evidence: Evidence, settings: list[str]) -> Optimum | None:
    """The best learning rate of settings that differ in it; None with fewer than three rates.

    Where settings of one rate differ in something else, the one that learned most counts. A rate
    at which all diverged learned nothing, which closes the bracket.
    """
    last = max((tokens for _, tokens in evidence.points.points), default=0)
    draws = evidence.draws("learning")
    by_rate: dict[float, list[Floats]] = {}
    for key in settings:
        cell = evidence.cells[key].get(last)
        if cell:
            rate = evidence.settings[key].learning_rate
            by_rate.setdefault(rate, []).append(draws[:, cell].mean(axis=1))
    if not by_rate:
        return None
    learned = {rate: max(values, key=lambda one: float(one[0])) for rate, values in by_rate.items()}
    nothing = np.full(len(draws), -np.inf)
    learned = dict.fromkeys(_diverged(evidence, settings), nothing) | learned
    if len(learned) < FEWEST:
        return None
    rates = np.log10(sorted(learned))
    top = np.stack([learned[rate] for rate in sorted(learned)], axis=1).argmax(axis=1)
    middles = np.concatenate([[-np.inf], (rates[1:] + rates[:-1]) / 2, [np.inf]])
    return Optimum(rates[top], middles[top], middles[top + 1])


def _diverged(evidence: Evidence, settings: list[str]) -> list[float]:
    """Rates of diverged arms of the same method and rank."""
    record = evidence.record
    groups = {method_group(evidence.settings[key]) for key in settings}
    return [
        config.learning_rate
        for arm, config in record.arms.items()
        if record.state(arm) == "diverged"
        and method_group(config) in groups
        and setting_key(config) not in evidence.settings
    ]


def _part(name: str, lora: Optimum, full: Optimum, evidence: Evidence, ranks: int) -> Part:
    """The ratio of one rank; its interval is Bonferroni's, 95% for all ranks together."""
    bottom, top = lora.low - full.high, lora.high - full.low
    # Quantiles by rank: there is nothing between a number and infinity
    low = float(np.quantile(bottom[1:], 0.025 / ranks, method="lower"))
    high = float(np.quantile(top[1:], 1 - 0.025 / ranks, method="higher"))
    if evidence.points.resampled < 2:
        low, high = -np.inf, np.inf
    judgement: Judgement = "unresolved"
    if 10**low * ROUNDING >= HIGH or 10**high <= LOW * ROUNDING:
        judgement = "contradicted"
    elif 10**low * ROUNDING >= LOW and 10**high <= HIGH * ROUNDING:
        judgement = "supported"
    estimate = Estimate(
        10 ** float(lora.best[0] - full.best[0]),
        None,
        10**low if np.isfinite(low) else None,
        10**high if np.isfinite(high) else None,
        min((estimate.n for estimate in evidence.points.learning), default=0),
    )
    return Part(name, estimate, judgement=judgement)


def _words(estimate: Estimate) -> str:
    if estimate.low is None and estimate.high is None:
        return "open at both ends"
    if estimate.low is None:
        return f"below {show(estimate.high)}"
    if estimate.high is None:
        return f"above {show(estimate.low)}"
    return f"{show(estimate.value)} [{show(estimate.low)}, {show(estimate.high)}]"


CLAIMS = (
    Claim(
        "ten-times-the-rate",
        "LoRA's best learning rate is about ten times that of full finetuning.",
        "Schulman et al. (2025), LoRA Without Regret; Biderman et al. (2024), appendix B",
        "full finetuning and LoRA, each at three or more learning rates around its best",
        ten_times,
    ),
)

"""Claims that one number predicts forgetting: KL on the target, or the loss on it."""

from __future__ import annotations

import numpy as np

from paretune.analyse.claims.evidence import Evidence
from paretune.analyse.claims.judge import show
from paretune.analyse.claims.verdict import Claim, Judgement, Outcome, missing
from paretune.analyse.statistics import Estimate, Floats, percentile_interval

LOSSES = ("bits/byte", "nats/token", "bits/token", "nats/byte")
LINEAR = 0.9  # published: .945 and .974
FOLLOWS = 0.5  # published: .71 for a language model, .96 for a toy
KL = ("target/kl",)
FEWEST = 8


def follows_kl(evidence: Evidence) -> Outcome:
    """R squared of forgetting as one quadratic of KL on the target, over all methods together."""
    metric = evidence.metric(KL)
    if metric is None:
        raise missing("the divergence from the base on target text was not scored")
    kl = evidence.on(metric)
    if kl.points.reason:
        raise missing(kl.points.reason)
    methods = {kl.record.arms[arm].family for arm, _ in kl.points.points}
    if len(methods) < 2:
        raise missing("the claim is about several methods on one curve, and there is one")
    x, y = np.abs(kl.draws("learning")), kl.draws("forgetting")
    return _fit(kl, x, y, 2, FOLLOWS, "all settings; published: .71 and .96")


def linear_in_loss(evidence: Evidence) -> Outcome:
    """R squared of the line of forgetting on learning over LoRA's ranks and budgets.

    Each rank at its best setting, as published: one learning rate, several ranks and lengths.
    """
    for axis in ("learning", "forgetting"):
        unit = evidence.unit("learning" if axis == "learning" else "forgetting")
        if unit not in LOSSES:
            raise missing(f"{axis} is measured in {unit or 'nothing'}, and the claim is of losses")
    chosen = set(evidence.ranks().values())
    columns = [
        i for i, (arm, _) in enumerate(evidence.points.points) if evidence.key(arm) in chosen
    ]
    x = evidence.draws("learning")[:, columns]
    y = evidence.draws("forgetting")[:, columns]
    points = evidence.points.points
    every = [i for i, (arm, _) in enumerate(points) if evidence.record.arms[arm].family == "lora"]
    which = "each rank at its best setting; published: .945 and .974"
    if len(every) > len(columns):
        values = evidence.points.values[None, every]
        all_of_them = float(r_squared(values[..., 0], values[..., 1], 1)[0][0])
        which += f"; over all {len(every)} points of LoRA it is {show(all_of_them)}"
    return _fit(evidence, x, y, 1, LINEAR, which)


def r_squared(x: Floats, y: Floats, degree: int) -> tuple[Floats, Floats]:
    """[R] share of the variance of y that a polynomial of x explains, and the linear term.

    x and y are [R, P]; each row is fitted by least squares, with x standardised.
    """
    spread = x.std(axis=1, keepdims=True)
    z = (x - x.mean(axis=1, keepdims=True)) / np.where(spread == 0, 1, spread)
    design = np.stack([z**power for power in range(degree + 1)], axis=2)
    solved = np.matmul(np.linalg.pinv(design), y[:, :, None])
    left = ((y - np.matmul(design, solved)[:, :, 0]) ** 2).sum(axis=1)
    whole = ((y - y.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - left / whole), np.asarray(solved[:, 1, 0])


def _fit(
    evidence: Evidence, x: Floats, y: Floats, degree: int, threshold: float, which: str
) -> Outcome:
    count = x.shape[1]
    if count < FEWEST:
        raise missing(f"{count} points are too few for a curve; {FEWEST} are needed")
    values, slopes = r_squared(x, y, degree)
    value, slope = float(values[0]), float(slopes[0])
    n = min(estimate.n for estimate in evidence.points.forgetting)
    if not np.isfinite(value) or evidence.points.resampled < 2:
        raise missing("one item, or one value, has no interval")
    # Noise lowers R squared, in the estimate as in its draws: the basic interval turns that round
    worst, most = percentile_interval(values[1:][np.isfinite(values[1:])])
    low, high = (float(np.clip(2 * value - end, 0, 1)) for end in (most, worst))
    verdict: Judgement = "unresolved"
    if low >= threshold and slope > 0:
        verdict = "supported"
    elif high < threshold or (low >= threshold and slope < 0):
        verdict = "contradicted"
    shape = "line" if degree == 1 else "quadratic"
    reason = (
        f"one {shape} through {count} points ({which}) explains {show(value)} of the variance of "
        f"forgetting; {threshold:g} or more counts as following it"
    )
    if slope < 0:
        reason += "; and it falls"
    return Outcome(
        verdict,
        reason,
        Estimate(value, None, low, high, n),
        "R squared",
        "more arms and budgets, and more items" if verdict == "unresolved" else None,
    )


CLAIMS = (
    Claim(
        "forgetting-follows-kl",
        "Forgetting follows the divergence from the base on the target, whatever the method.",
        "Shenfeld et al. (2025), RL's Razor",
        "the divergence from the base on held-out target text (target/kl), for several methods",
        follows_kl,
    ),
    Claim(
        "forgetting-linear-in-loss",
        "LoRA's forgetting is a linear function of its loss on the target.",
        "Kalajdzievski (2024), arXiv 2401.05605",
        "LoRA of several ranks at several budgets; learning and forgetting measured as losses",
        linear_in_loss,
    ),
)

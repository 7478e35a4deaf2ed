"""Claims about the rank of what full finetuning changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from paretune.analyse.claims.evidence import Effect, Evidence, two_sided
from paretune.analyse.claims.judge import interval, judge, show
from paretune.analyse.claims.verdict import Claim, Judgement, Outcome, missing
from paretune.analyse.statistics import Estimate, Floats, t_quantile

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("arm", "tokens", "layer", "kind", "rank90", "null_rank90")
NEEDS = "the spectrum of each checkpoint of a full finetune"
TYPICAL = 64  # the paper's middle rank, where a study has no LoRA
LOW, HIGH = 10.0, 100.0


def tens_of_times(evidence: Evidence) -> Outcome:
    """Rank for 90% of variance of full's update over the study's middle LoRA rank."""
    frame = _full(evidence)
    last = frame[frame["tokens"] == frame["tokens"].max()]
    ranks = sorted({c.rank for c in evidence.record.arms.values() if c.rank is not None})
    rank = ranks[len(ranks) // 2] if ranks else TYPICAL
    logs = last.assign(value=np.log10(last["rank90"].to_numpy(dtype=np.float64) / rank))
    ratio = _mean(_by_layer(logs).to_numpy())
    if ratio.value is None or ratio.low is None or ratio.high is None:
        raise missing("one layer has no interval")
    low, high = 10**ratio.low, 10**ratio.high
    verdict: Judgement = "unresolved"
    if low >= LOW and high <= HIGH:
        verdict = "supported"
    elif high < LOW or low > HIGH:
        verdict = "contradicted"
    estimate = Estimate(10**ratio.value, None, low, high, ratio.n)
    return Outcome(
        verdict,
        f"the update's rank is {interval(estimate)} times r{rank}, the middle LoRA rank, the "
        f"geometric mean over {ratio.n} layers; the largest that a matrix could have is "
        f"{show(float(last['null_rank90'].max()) / rank)} times for noise",
        estimate,
        f"times r{rank}",
        "matrices wide enough to hold such a rank" if verdict == "unresolved" else None,
    )


def grows(evidence: Evidence) -> Outcome:
    """Rank at the last budget minus the first, matrix by matrix, layers as the sample."""
    frame = _full(evidence)
    first, last = int(frame["tokens"].min()), int(frame["tokens"].max())
    if first == last:
        raise missing("spectra of one budget only")
    sides = [_value(frame[frame["tokens"] == tokens], "rank90") for tokens in (last, first)]
    return judge([("last budget minus first", _effect(_differences(*sides)))], "rank")


def larger_in_mlp(evidence: Evidence) -> Outcome:
    """MLP minus attention in the rank for 90% of variance."""
    return _kinds(evidence, "rank90", "rank")


def larger_in_mlp_than_null(evidence: Evidence) -> Outcome:
    """MLP minus attention in the rank relative to that of noise of the same shape."""
    return _kinds(evidence, "relative", "share of the null's rank")


def _kinds(evidence: Evidence, column: str, unit: str) -> Outcome:
    frame = _full(evidence)
    frame = frame[frame["tokens"] == frame["tokens"].max()]
    if not {"attention", "mlp"} <= set(frame["kind"]):
        raise missing("spectra of both attention and MLP matrices are needed")
    sides = [_value(frame[frame["kind"] == kind], column) for kind in ("mlp", "attention")]
    if set(sides[0]["layer"]) != set(sides[1]["layer"]):
        raise missing("some layers have no MLP or no attention spectra")
    effect = _effect(_differences(*sides))
    return judge([("MLP minus attention", effect)], f"{unit}, mean of layers")


def _full(evidence: Evidence) -> pd.DataFrame:
    """The spectra of the best plain full setting's first arm."""
    frame = evidence.spectra
    if frame is None or not len(frame):
        raise missing("the study has no spectra")
    frame = frame.assign(relative=frame["rank90"] / frame["null_rank90"])
    arms = [
        arm
        for arm, config in sorted(evidence.record.arms.items())
        if config.method == "full" and arm in set(frame["arm"])
    ]
    if not arms:
        raise missing("no full finetune has spectra")
    best = evidence.full() if evidence.points.points else ""
    chosen = next((arm for arm in arms if evidence.key(arm) == best), arms[0])
    return frame[frame["arm"] == chosen]


def _value(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    return frame.assign(value=frame[column].astype("float64"))


def _by_layer(frame: pd.DataFrame) -> pd.Series:
    """The mean of each layer, by its number: matrices of one layer are not independent."""
    return frame.groupby("layer", sort=True)["value"].mean()


def _differences(a: pd.DataFrame, b: pd.DataFrame) -> Floats:
    """[L] a minus b, layer by layer, of the layers that both have."""
    return np.asarray((_by_layer(a) - _by_layer(b)).dropna().to_numpy(dtype=np.float64))


def _mean(values: Floats) -> Estimate:
    n = len(values)
    if n < 2:
        return Estimate(float(values.mean()), None, None, None, n, "one layer has no interval")
    stderr = float(values.std(ddof=1) / np.sqrt(n))
    half, value = t_quantile(n - 1) * stderr, float(values.mean())
    return Estimate(value, stderr, value - half, value + half, n)


def _effect(values: Floats) -> Effect:
    estimate = _mean(values)
    if estimate.stderr is None or estimate.value is None:
        return Effect(estimate)
    p = two_sided(estimate.value, estimate.stderr, estimate.n - 1)
    return Effect(estimate, p, estimate.stderr**2)


CLAIMS = (
    Claim(
        "update-rank-10-100x",
        "The rank of full finetuning's update is 10 to 100 times that of usual LoRA.",
        "Biderman et al. (2024), Figure 6",
        f"{NEEDS}, in a model wide enough",
        tens_of_times,
    ),
    Claim(
        "update-rank-grows",
        "The rank of full finetuning's update grows with tokens.",
        "Biderman et al. (2024), Figure 6",
        f"{NEEDS} at two or more budgets",
        grows,
    ),
    Claim(
        "update-rank-larger-in-mlp",
        "The rank of full finetuning's update is larger in MLP than in attention matrices.",
        "Biderman et al. (2024), Figure 6",
        NEEDS,
        larger_in_mlp,
    ),
    Claim(
        "update-rank-larger-in-mlp-than-null",
        "It is larger in MLP matrices also relative to noise of the same shape.",
        "the check that Figure 6 of Biderman et al. (2024) lacks",
        NEEDS,
        larger_in_mlp_than_null,
    ),
)

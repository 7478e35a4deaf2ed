"""Each claim on studies made so that it holds, so that it fails, and so that it cannot be told."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from claims_studies import X, full, lora, made, verdict

from paretune.analyse.claims import score_card
from paretune.analyse.claims.card import CLAIMS, caveats, verdicts
from paretune.analyse.claims.evidence import Evidence
from paretune.analyse.matched import matched_difference
from paretune.analyse.points import measured
from paretune.analyse.statistics import paired_difference

AS_PAPER = {
    full(): [(0.5, 0.3), (1.0, 0.6)],
    lora(4): [(0.2, 0.05), (0.7, 0.1)],
    lora(64): [(0.4, 0.1), (0.8, 0.2)],
}
REVERSED = {
    full(): [(0.1, 0.02), (0.3, 0.05)],
    lora(4): [(0.4, 0.4), (0.8, 0.6)],
    lora(64): [(0.2, 0.1), (0.6, 0.4)],
}
IN_ORDER = [
    "learns-less",
    "forgets-less",
    "forgets-less-at-matched-learning",
    "rank-orders-learning",
    "rank-orders-forgetting",
    "rank-orders-learning-at-one-rate",
    "rank-orders-forgetting-at-one-rate",
]


@pytest.mark.parametrize("claim", IN_ORDER)
def test_supported_contradicted_and_open(claim):
    held = verdict(claim, made(AS_PAPER))
    assert held.verdict == "supported"
    assert held.effect > 0
    assert held.resolve is None
    assert verdict(claim, made(REVERSED)).verdict == "contradicted"
    noisy = verdict(claim, made(AS_PAPER, noise=5.0))
    assert noisy.verdict == "unresolved"
    assert noisy.resolve


def test_the_effect_is_the_mean_over_budgets_of_the_weakest_rank():
    found = verdict("learns-less", made(AS_PAPER))
    assert found.effect == pytest.approx((0.5 - 0.4 + 1.0 - 0.8) / 2)
    assert [part.name for part in found.parts] == ["full minus LoRA r4", "full minus LoRA r64"]
    assert found.parts[0].estimate.value == pytest.approx((0.3 + 0.3) / 2)
    assert found.n == 100
    assert found.low < found.effect < found.high


def test_a_contrast_of_one_budget_is_the_paired_difference():
    record = made({full(): [(1.0, 0.5)], lora(4): [(0.6, 0.2)]}, noise=0.4, exact=False)
    a, b = (record.items(arm.id, 1000, X) for arm in (full(), lora(4)))
    expected = paired_difference(a, b, sign=-1)
    found = verdict("learns-less", record)
    assert found.effect == pytest.approx(expected.value)
    half = (found.high - found.low) / 2
    assert half == pytest.approx((expected.high - expected.low) / 2, rel=0.05)


def test_methods_are_compared_at_the_rate_that_learned_most():
    record = made(
        {
            full(1e-5): [(0.2, 0.1)],
            full(1e-4): [(1.0, 0.5)],
            lora(4, 1e-4): [(0.1, 0.0)],
            lora(4, 1e-3): [(0.7, 0.2)],
        }
    )
    assert verdict("learns-less", record).effect == pytest.approx(0.3)


def test_arms_with_decay_or_dropout_do_not_stand_for_full_finetuning():
    record = made(
        {
            full(): [(0.5, 0.5)],
            full(weight_decay=1.0): [(0.9, 0.1)],
            lora(4): [(0.3, 0.2)],
        }
    )
    assert verdict("learns-less", record).effect == pytest.approx(0.2)


def test_repeated_seeds_widen_the_interval_by_their_spread():
    """Two arms of three seeds: the run variance is 2/3 of the pooled variance, worked by numpy."""
    deviations = np.array([[-0.03, 0.01, 0.02], [0.04, -0.01, -0.03]])
    values = {}
    for method, base, row in (
        (full, 1.0, deviations[0]),
        (lambda **k: lora(4, **k), 0.5, deviations[1]),
    ):
        for seed, deviation in enumerate(row):
            values[method(seed=seed)] = [(base + deviation, 0.1)]
    record = made(values, noise=0.0)
    evidence = Evidence.of(record)
    effect = evidence.difference("learning", evidence.full(), evidence.ranks()[4])
    pooled = (deviations**2).sum() / 4
    assert effect.run_variance == pytest.approx(pooled / 3 + pooled / 3)
    assert effect.estimate.value == pytest.approx(0.5)
    # four degrees of freedom: t = 2.776
    assert effect.estimate.high - 0.5 == pytest.approx(2.776 * np.sqrt(2 * pooled / 3), rel=1e-3)
    assert "2 settings" in caveats(evidence)[0]
    assert evidence.draws("learning")[1:].std(axis=0) == pytest.approx(np.sqrt(pooled), rel=0.1)


def test_without_repeats_the_card_says_so():
    assert "No setting was repeated" in caveats(Evidence.of(made(AS_PAPER)))[0]


def test_the_pooled_comparison_beside_matched_learning_is_the_reports():
    evidence = Evidence.of(made(AS_PAPER))
    expected = matched_difference(evidence.record, "full", "lora", points=evidence.points)
    found = verdict("forgets-less-at-matched-learning", made(AS_PAPER))
    assert f"{expected.difference.value:.3g}" in found.reason


def test_matched_learning_by_hand():
    """Full forgets 0.6 per unit learned, rank 64 half of it; both cover 0.5 to 0.8."""
    found = verdict("forgets-less-at-matched-learning", made({**AS_PAPER, lora(4): [(0.6, 0.1)]}))
    part = next(p for p in found.parts if p.name.endswith("r64"))
    levels = np.linspace(0.5, 0.8, 9)
    assert part.estimate.value == pytest.approx(np.mean(0.6 * levels - 0.25 * levels))


def test_curves_that_do_not_meet_are_not_compared():
    record = made({full(): [(0.9, 0.5), (1.0, 0.6)], lora(4): [(0.1, 0.1), (0.2, 0.2)]})
    found = verdict("forgets-less-at-matched-learning", record)
    assert found.verdict == "unresolved"
    assert "does not overlap" in found.reason


@pytest.mark.parametrize(
    ("high", "expected"),
    [(0.99, "supported"), (0.55, "contradicted"), (0.905, "unresolved")],
)
def test_high_rank_closes_the_gap(high, expected):
    values = {full(): [(1.0, 0.5)], lora(4): [(0.5, 0.1)], lora(64): [(high, 0.2)]}
    target = {"target": {"data": {"from": "arithmetic"}, "metrics": ["exact_match"]}}
    record = made(values, noise=0.2, regime="ift", frontier={"learning": None}, **target)
    record.config = record.config.model_copy(
        update={"target": record.config.target.model_copy(update={"metrics": ("bits_per_byte",)})}
    )
    assert verdict("high-rank-closes-the-gap", record).verdict == expected
    other = verdict("high-rank-closes-the-gap", made(values))
    assert other.verdict == "unresolved"
    assert "continued pretraining" in other.reason


def test_regularises_more():
    values = {
        full(): [(1.0, 0.5)],
        full(weight_decay=1.0): [(1.0, 0.45)],
        full(attention_dropout=0.1): [(1.0, 0.48)],
        lora(4): [(0.8, 0.2)],
    }
    assert verdict("regularises-more", made(values)).verdict == "supported"
    worse = {**values, full(attention_dropout=0.1): [(1.0, 0.1)]}
    assert verdict("regularises-more", made(worse)).verdict == "contradicted"
    lacking = verdict(
        "regularises-more", made({k: v for k, v in values.items() if not k.attention_dropout})
    )
    assert lacking.verdict == "unresolved"
    assert "dropout" in lacking.reason
    assert "weight decay" not in lacking.reason


def test_keeps_diversity():
    values = {full(): [(1.0, 0.5, -3.0)], lora(4): [(0.8, 0.2, -1.0)]}
    found = verdict("keeps-diversity", made(values, extra="target/distinct"))
    assert (found.verdict, found.unit) == ("supported", "strings")
    assert found.effect == pytest.approx(2.0)
    less = {full(): [(1.0, 0.5, -1.0)], lora(4): [(0.8, 0.2, -3.0)]}
    assert verdict("keeps-diversity", made(less, extra="target/distinct")).verdict == "contradicted"
    assert verdict("keeps-diversity", made(AS_PAPER)).verdict == "unresolved"


def test_targets_and_alpha():
    values = {
        lora(16, targets="all"): [(0.9, 0.1)],
        lora(16, targets="mlp"): [(0.7, 0.1)],
        lora(16, targets="attention"): [(0.4, 0.1)],
        lora(16, targets="all", alpha=8.0): [(0.8, 0.1)],
    }
    assert verdict("targets", made(values)).verdict == "supported"
    assert verdict("alpha-2r", made(values)).effect == pytest.approx(0.1)
    assert verdict("alpha-2r", made(values)).verdict == "supported"
    swapped = values | {lora(16, targets="mlp"): [(0.95, 0.1)]}
    assert verdict("targets", made(swapped)).verdict == "contradicted"
    assert verdict("targets", made(AS_PAPER)).verdict == "unresolved"


def rate_study(lora_best: int, full_best: int, **changes):
    rates = [10 ** (-5 + i / 2) for i in range(8)]
    values = {}
    for i, rate in enumerate(rates):
        values[full(rate)] = [(1 - 0.1 * (i - full_best) ** 2, 0.1)]
        values[lora(4, rate)] = [(0.9 - 0.1 * (i - lora_best) ** 2, 0.1)]
    return made(values, **changes)


@pytest.mark.parametrize(
    ("lora_best", "full_best", "expected", "ratio"),
    [
        (4, 2, "supported", 10.0),
        (2, 2, "contradicted", 1.0),
        (6, 2, "contradicted", 100.0),
        (3, 2, "unresolved", 10**0.5),
        (2, 0, "unresolved", 10.0),  # full's best is the lowest rate tried
        (2, 7, "contradicted", 10**-2.5),  # at an edge, but in no way ten times
    ],
)
def test_best_rates(lora_best, full_best, expected, ratio):
    found = verdict("ten-times-the-rate", rate_study(lora_best, full_best, noise=0.01))
    assert found.verdict == expected
    assert found.effect == pytest.approx(ratio)


def test_a_rate_that_diverged_bounds_the_sweep():
    record = made(
        {full(r): [(v, 0.1)] for r, v in ((1e-4, 0.5), (1e-3, 0.9), (1e-2, 0.2))}
        | {lora(4, r): [(v, 0.1)] for r, v in ((1e-3, 0.5), (1e-2, 0.9))}
    )
    wrecked = lora(4, 1e-1)
    record.arms[wrecked.id] = wrecked
    assert verdict("ten-times-the-rate", record).effect is None
    record.status[wrecked.id] = {"state": "diverged"}
    found = verdict("ten-times-the-rate", record)
    assert found.effect == pytest.approx(10)
    assert found.high == pytest.approx(100)


def test_forgetting_on_a_line():
    line = {
        lora(r): [(x, 0.5 * x) for x in (0.1 * r**0.5, 0.2 * r**0.5, 0.4 * r**0.5)]
        for r in (1, 4, 16)
    }
    found = verdict("forgetting-linear-in-loss", made(line, noise=0.01))
    assert found.verdict == "supported"
    assert found.effect == pytest.approx(1.0, abs=0.01)
    bent = {arm: [(x, (x - 0.9) ** 2) for x, _ in points] for arm, points in line.items()}
    assert verdict("forgetting-linear-in-loss", made(bent, noise=0.01)).verdict == "contradicted"


def test_forgetting_follows_kl():
    rng = np.random.default_rng(0)
    kl = {arm: rng.random(6) for arm in (full(), lora(4), lora(64))}
    curve = {arm: [(1.0, 0.2 + k + k**2, k) for k in values] for arm, values in kl.items()}
    found = verdict("forgetting-follows-kl", made(curve, noise=0.01, extra="target/kl"))
    assert found.verdict == "supported"
    unrelated = {arm: [(1.0, rng.random(), k) for k in values] for arm, values in kl.items()}
    found = verdict("forgetting-follows-kl", made(unrelated, noise=0.01, extra="target/kl"))
    assert found.verdict == "contradicted"


def spectra(attention: float, mlp: float, growth: float = 2.0) -> pd.DataFrame:
    """Twelve layers; noise has rank 200 in attention matrices and 300 in the MLP's."""
    rng = np.random.default_rng(0)
    rows = [
        (full().id, tokens, layer, kind, rank * factor * rng.uniform(0.95, 1.05), null)
        for tokens, factor in ((1000, 1.0), (2000, growth))
        for layer in range(12)
        for kind, rank, null in (("attention", attention, 200), ("mlp", mlp, 300))
    ]
    return pd.DataFrame(rows, columns=["arm", "tokens", "layer", "kind", "rank90", "null_rank90"])


def test_spectra():
    record = made({full(): [(1.0, 0.5)], lora(4): [(0.5, 0.1)]})
    names = [claim.id for claim in CLAIMS if claim.id.startswith("update-rank")]
    found = {name: verdict(name, record, spectra(60, 90)) for name in names}
    assert found["update-rank-10-100x"].verdict == "supported"
    assert found["update-rank-10-100x"].effect == pytest.approx(2 * 75 / 4, rel=0.05)
    assert found["update-rank-grows"].verdict == "supported"
    assert found["update-rank-larger-in-mlp"].verdict == "supported"
    # 60 of 200 is 90 of 300: what shape alone predicts
    assert found["update-rank-larger-in-mlp-than-null"].verdict == "unresolved"
    flat = {name: verdict(name, record, spectra(3, 2, growth=0.8)) for name in names}
    assert {one.verdict for one in flat.values()} == {"contradicted"}
    other = spectra(60, 90)
    other.loc[other["kind"] == "mlp", "layer"] += 1
    for name in ("update-rank-larger-in-mlp", "update-rank-larger-in-mlp-than-null"):
        assert "some layers have no MLP" in verdict(name, record, other).reason, "not the same ones"
    bare = {name: verdict(name, record) for name in names}
    assert {one.verdict for one in bare.values()} == {"unresolved"}
    assert all("spectra" in one.reason for one in bare.values())


@pytest.mark.parametrize(
    "values",
    [
        {},
        {full(): [(1.0, 0.5)]},
        {lora(4): [(1.0, 0.5)]},
        {full(): [(-0.5, 9.0)], lora(4): [(-0.4, 8.0)]},
    ],
    ids=["no scores", "one full arm", "one LoRA arm", "all wrecked"],
)
@pytest.mark.parametrize("n", [1, 2, 30])
def test_any_study_has_a_card(values, n):
    card = score_card(made(values, n=n))
    assert list(card["claim"]) == [claim.id for claim in CLAIMS]
    assert set(card["verdict"]) <= {"supported", "contradicted", "unresolved"}
    open_ones = card[card["verdict"] == "unresolved"]
    assert (open_ones["resolve"].str.len() > 0).all()
    assert (card["reason"].str.len() > 0).all()
    if n == 1:
        assert set(card["verdict"]) == {"unresolved"}


def test_what_a_study_lacks_is_never_guessed():
    """Without its inputs a claim has no effect, no interval and no number of items."""
    card = score_card(made({full(): [(1.0, 0.5)]}))
    assert set(card["verdict"]) == {"unresolved"}
    assert card[["effect", "low", "high"]].isna().all(axis=None)


def test_false_claims_are_rare_where_nothing_differs():
    """All arms alike: every verdict but unresolved is false, and at most 5% may be."""
    arms = [full(), lora(4), lora(16), lora(64)]
    false = dict.fromkeys(IN_ORDER, 0)
    studies = 60
    for seed in range(studies):
        values = {arm: [(0.3, 0.1), (0.6, 0.25), (0.9, 0.5)] for arm in arms}
        record = made(values, noise=0.6, n=60, seed=seed, exact=False)
        points = measured(record, resamples=400)
        for one in verdicts(Evidence.of(record, points=points)):
            if one.claim in false:
                false[one.claim] += one.verdict != "unresolved"
    # 5% of 60, and what chance adds in 1 of 100 such tests
    assert max(false.values()) <= 8, false
    assert sum(false.values()) <= 0.05 * studies * len(false), false

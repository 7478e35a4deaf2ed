"""Claims that LoRA regularises: against weight decay and dropout, and in what it can still say."""

from __future__ import annotations

from paretune.analyse.claims.equal_tokens import unit_of
from paretune.analyse.claims.evidence import Effect, Evidence, regularisation
from paretune.analyse.claims.judge import judge
from paretune.analyse.claims.verdict import Claim, Outcome, missing
from paretune.analyse.statistics import Estimate
from paretune.study.arms import ArmConfig

DIVERSITY = ("target/distinct", "target/diversity", "distinct", "diversity")


def forgets_less_than_regularised(evidence: Evidence) -> Outcome:
    """Each regularised full setting minus LoRA of each rank, in forgetting, at equal tokens."""
    ranks, plain = evidence.ranks(), regularisation(evidence.settings[evidence.full()])
    arms: dict[str, list[str]] = {}
    for key, config in evidence.settings.items():
        if config.method == "full" and regularisation(config) != plain:
            arms.setdefault(_name(config, plain), []).append(key)
    kinds = {kind for name in arms for kind in ("weight decay", "dropout") if kind in name}
    if kinds != {"weight decay", "dropout"}:
        lacking = sorted({"weight decay", "dropout"} - kinds)
        raise missing(f"the study has no full finetuning with {' and none with '.join(lacking)}")
    effects = [
        (f"full with {name} minus LoRA r{rank}", evidence.difference("forgetting", best, key))
        for name, best in ((name, evidence.best(keys)) for name, keys in sorted(arms.items()))
        for rank, key in ranks.items()
    ]
    return judge(effects, unit_of(evidence, "forgetting"))


def keeps_diversity(evidence: Evidence) -> Outcome:
    """LoRA minus full in the diversity of outputs."""
    full, ranks = evidence.full(), evidence.ranks()
    metric = evidence.metric(DIVERSITY)
    if metric is None:
        raise missing("no metric of the diversity of outputs was scored")
    diverse = evidence.on(metric)
    if diverse.points.reason:
        raise missing(diverse.points.reason)
    sign = evidence.raw_sign(metric)
    effects = [
        (f"LoRA r{rank} minus full", signed(diverse.difference("learning", key, full), sign))
        for rank, key in ranks.items()
    ]
    return judge(effects, unit_of(diverse, "learning"))


def signed(effect: Effect, sign: float) -> Effect:
    """The effect times 1 or -1."""
    estimate = effect.estimate
    if sign > 0 or estimate.value is None:
        return effect
    low = None if estimate.high is None else -estimate.high
    high = None if estimate.low is None else -estimate.low
    turned = Estimate(-estimate.value, estimate.stderr, low, high, estimate.n, estimate.reason)
    return Effect(turned, effect.p, effect.item_variance, effect.run_variance, effect.unpaired)


def _name(config: ArmConfig, plain: tuple[float, float]) -> str:
    decay, dropout = regularisation(config)
    names = [f"weight decay {decay:g}"] if decay != plain[0] else []
    names += [f"attention dropout {dropout:g}"] if dropout != plain[1] else []
    return " and ".join(names)


CLAIMS = (
    Claim(
        "regularises-more",
        "LoRA forgets less than full finetuning with weight decay or attention dropout.",
        "Biderman et al. (2024), Figure 4",
        "LoRA, and full finetuning plain, with weight_decay and with attention_dropout",
        forgets_less_than_regularised,
    ),
    Claim(
        "keeps-diversity",
        "LoRA keeps more different outputs than full finetuning.",
        "Biderman et al. (2024), Figure 5",
        "a metric of the diversity of generated outputs (target/distinct), for full and LoRA",
        keeps_diversity,
    ),
)

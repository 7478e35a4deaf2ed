"""Claims that rank orders learning and forgetting."""

from __future__ import annotations

from itertools import pairwise

from paretune.analyse.claims.equal_tokens import unit_of
from paretune.analyse.claims.evidence import Axis, Evidence
from paretune.analyse.claims.judge import judge
from paretune.analyse.claims.verdict import Claim, Outcome, missing

NEEDS = "LoRA of two or more ranks"


def orders_learning(evidence: Evidence) -> Outcome:
    """Each rank, at its best setting, against the next lower one."""
    return _best(evidence, "learning")


def orders_forgetting(evidence: Evidence) -> Outcome:
    """The same settings in forgetting."""
    return _best(evidence, "forgetting")


def orders_learning_at_one_rate(evidence: Evidence) -> Outcome:
    """Ranks that differ in nothing else."""
    return _equal(evidence, "learning")


def orders_forgetting_at_one_rate(evidence: Evidence) -> Outcome:
    """The same settings in forgetting."""
    return _equal(evidence, "forgetting")


def _best(evidence: Evidence, axis: Axis) -> Outcome:
    ranks = evidence.ranks()
    rates = ", ".join(f"r{r} {evidence.settings[key].learning_rate:g}" for r, key in ranks.items())
    return _steps(evidence, axis, ranks, f"each rank at its best learning rate: {rates}")


def _equal(evidence: Evidence, axis: Axis) -> Outcome:
    """The learning rate that most ranks share; among several, the one that learned most."""
    shared: dict[str, dict[int, str]] = {}
    for key in evidence.plain():
        config = evidence.settings[key]
        if config.family != "lora" or config.rank is None:
            continue
        rest = {k: v for k, v in config.record().items() if k not in ("rank", "alpha", "seed")}
        shared.setdefault(f"{rest} {config.gamma:g}", {})[config.rank] = key
    families = {name: ranks for name, ranks in shared.items() if len(ranks) > 1}
    if not families:
        raise missing("no two ranks were trained at one learning rate")

    def learned(ranks: dict[int, str]) -> float:
        values = evidence.points.values[:, 0]
        last = [
            values[evidence.cells[key][max(evidence.cells[key])]].mean() for key in ranks.values()
        ]
        return float(sum(last) / len(last))

    ranks = max(families.values(), key=lambda family: (len(family), learned(family)))
    rate = evidence.settings[next(iter(ranks.values()))].learning_rate
    return _steps(evidence, axis, dict(sorted(ranks.items())), f"learning rate {rate:g}")


def _steps(evidence: Evidence, axis: Axis, ranks: dict[int, str], note: str) -> Outcome:
    if len(ranks) < 2:
        raise missing("the study has only one LoRA rank")
    effects = [
        (f"r{high} minus r{low}", evidence.difference(axis, ranks[high], ranks[low]))
        for low, high in pairwise(ranks)
    ]
    return judge(effects, unit_of(evidence, axis), note=note)


CLAIMS = (
    Claim(
        "rank-orders-learning",
        "At equal tokens a higher rank learns more, each rank at its best learning rate.",
        "Biderman et al. (2024), Tables S1-S13",
        NEEDS,
        orders_learning,
    ),
    Claim(
        "rank-orders-forgetting",
        "At equal tokens a higher rank forgets more, each rank at its best learning rate.",
        "Biderman et al. (2024), Tables S1-S13",
        NEEDS,
        orders_forgetting,
    ),
    Claim(
        "rank-orders-learning-at-one-rate",
        "At equal tokens and one learning rate a higher rank learns more.",
        "Biderman et al. (2024), Tables S1-S13",
        f"{NEEDS} at one learning rate",
        orders_learning_at_one_rate,
    ),
    Claim(
        "rank-orders-forgetting-at-one-rate",
        "At equal tokens and one learning rate a higher rank forgets more.",
        "Biderman et al. (2024), Tables S1-S13",
        f"{NEEDS} at one learning rate",
        orders_forgetting_at_one_rate,
    ),
)

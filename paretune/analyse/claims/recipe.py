"""Claims about how to set LoRA up: which layers to adapt, and alpha."""

from __future__ import annotations

from itertools import pairwise

from paretune.analyse.claims.equal_tokens import unit_of
from paretune.analyse.claims.evidence import Effect, Evidence
from paretune.analyse.claims.judge import judge
from paretune.analyse.claims.verdict import Claim, Outcome, missing

ORDER = ("all", "mlp", "attention")
PAPER_GAMMA = 2.0


def targets(evidence: Evidence) -> Outcome:
    """Learning with all layers adapted, the MLP's, and the attention's, at each rank."""
    found: dict[int, dict[str, list[str]]] = {}
    for key in evidence.plain():
        config = evidence.settings[key]
        if config.rank is not None and config.targets in ORDER:
            found.setdefault(config.rank, {}).setdefault(str(config.targets), []).append(key)
    effects: list[tuple[str, Effect]] = []
    for rank, keys in sorted(found.items()):
        if len(keys) < len(ORDER):
            continue
        best = {target: evidence.best(keys[target]) for target in ORDER}
        effects += [
            (
                f"r{rank} {more} minus {less}",
                evidence.difference("learning", best[more], best[less]),
            )
            for more, less in pairwise(ORDER)
        ]
    if not effects:
        raise missing("no rank was trained with targets all, mlp and attention")
    return judge(effects, unit_of(evidence, "learning"))


def alpha(evidence: Evidence) -> Outcome:
    """Learning with alpha = 2r against every other alpha, at each rank and targets."""
    found: dict[tuple[int, str], dict[float, list[str]]] = {}
    for key in evidence.plain():
        config = evidence.settings[key]
        if config.rank is not None:
            group = found.setdefault((config.rank, str(config.targets)), {})
            group.setdefault(config.gamma, []).append(key)
    effects = []
    for (rank, where), keys in sorted(found.items()):
        if PAPER_GAMMA not in keys:
            continue
        ours = evidence.best(keys[PAPER_GAMMA])
        effects += [
            (
                f"r{rank} on {where}, alpha 2r minus {gamma:g}r",
                evidence.difference("learning", ours, evidence.best(keys[gamma])),
            )
            for gamma in sorted(keys)
            if gamma != PAPER_GAMMA
        ]
    if not effects:
        raise missing("no rank was trained with alpha = 2r and with another alpha")
    return judge(
        effects, unit_of(evidence, "learning"), note="each alpha at its best learning rate"
    )


CLAIMS = (
    Claim(
        "targets",
        "Adapting all layers learns more than the MLP's alone, and those more than attention's.",
        "Biderman et al. (2024), Figure 7",
        "LoRA of one rank with targets all, mlp and attention",
        targets,
    ),
    Claim(
        "alpha-2r",
        "alpha = 2r learns more than any other alpha.",
        "Biderman et al. (2024), ablation of alpha",
        "LoRA of one rank with alpha 2r and with another alpha, each at several learning rates",
        alpha,
    ),
)

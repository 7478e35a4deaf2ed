"""The paper's 116 published points (Biderman et al., TMLR 2024, Tables S1-S13) as evidence.

Only rounded scores are published, without outcomes item by item and without repeated runs, so
standard errors are those of proportions and differences are unpaired.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from io import StringIO
from typing import TYPE_CHECKING

import numpy as np

from paretune.analyse.claims.evidence import Evidence
from paretune.analyse.points import RESAMPLES, SEED, Points
from paretune.analyse.record import StudyRecord
from paretune.analyse.statistics import Estimate, Floats
from paretune.errors import UserError
from paretune.study.arms import ArmConfig
from paretune.study.config import StudyConfig

if TYPE_CHECKING:
    import pandas as pd

# HellaSwag, ARC-Challenge and WinoGrande: the forgetting score is their unweighted mean, and its
# standard error is about that of three proportions near .6 to .75 on so many questions
FORGETTING_ITEMS = 10_042 + 1_172 + 1_267
FORGETTING_STDERR = 0.0065
BASE_FORGETTING_SCORE = 0.671  # read off the authors' figure


@dataclass(frozen=True)
class PaperSetting:
    """One of the paper's five settings: what was scored, and at which learning rates."""

    name: str
    title: str
    regime: str
    metric: str
    items: int
    base_score: float
    full_rate: float
    lora_rates: dict[int, float]


def _rates(low: float, high: float) -> dict[int, float]:
    """Ranks 16 and 64 share a learning rate; rank 256 has its own."""
    return {16: low, 64: low, 256: high}


# Base scores: GSM8K is printed, HumanEval read off a figure
SETTINGS = {
    one.name: one
    for one in (
        PaperSetting(
            "code_cpt", "Code CPT", "cpt", "HumanEval", 164, 0.138, 1e-5, _rates(1e-5, 1e-5)
        ),
        PaperSetting("math_cpt", "Math CPT", "cpt", "GSM8K", 1319, 0.145, 1e-5, _rates(4e-5, 4e-5)),
        PaperSetting(
            "code_ift", "Code IFT", "ift", "HumanEval", 164, 0.138, 5e-5, _rates(2e-4, 1e-4)
        ),
        PaperSetting("math_ift", "Math IFT", "ift", "GSM8K", 1319, 0.145, 1e-5, _rates(1e-4, 5e-5)),
        PaperSetting(
            "tulu_ift", "Tulu-v2-mix IFT", "ift", "GSM8K", 1319, 0.145, 5e-6, _rates(1e-4, 1e-4)
        ),
    )
}

NOTES = (
    "No seed was repeated, so nothing here speaks of another run of the same arm.",
    "Standard errors are those of proportions, sqrt(p (1 - p) / n), on 164 problems (HumanEval) or "
    "1,319 (GSM8K), and .0065 for the mean of the three forgetting tasks. For HumanEval's pass@1, "
    "which is a mean over 50 samples a problem, that is an upper bound.",
    "Arms are compared as if on different items, though they were scored on the same: this makes "
    "each difference less sure than it is.",
    "Points of one arm are not independent: they share items, and often a run. A mean over budgets "
    "takes their errors as independent, which makes it surer than it may be.",
)


def published() -> pd.DataFrame:
    """The 116 points: setting, target_metric, arm, budget, budget_unit, target and source score.

    ``source_score`` is the paper's forgetting score, a level: the base has 0.671.
    """
    return _table().copy()


def paper_evidence(
    setting: str, *, shared_noise: bool = False, table: pd.DataFrame | None = None
) -> Evidence:
    """One setting of the paper as evidence for the claims.

    With ``shared_noise`` all budgets of an arm have the same error in place of independent ones,
    the most cautious reading: no mean over budgets is then surer than one of them. ``table`` takes
    the place of the published points. Budgets are tokens in continued pretraining, and epochs in
    instruction finetuning.

    Raises:
        UserError: the paper has no such setting.
    """
    if setting not in SETTINGS:
        raise UserError(f"the paper has no setting '{setting}'; there is {', '.join(SETTINGS)}")
    about = SETTINGS[setting]
    rows = published() if table is None else table
    rows = rows[rows["setting"] == setting]
    arms = {name: _arm(about, name) for name in dict.fromkeys(rows["arm"])}
    tokens = [
        round(budget * 1e9) if unit == "Btok" else round(budget)
        for budget, unit in zip(rows["budget"], rows["budget_unit"], strict=True)
    ]
    points = [(arms[name].id, at) for name, at in zip(rows["arm"], tokens, strict=True)]
    p = rows["target_score"].to_numpy(dtype=np.float64)
    source = rows["source_score"].to_numpy(dtype=np.float64)
    error = np.sqrt(p * (1 - p) / about.items)
    errors = np.stack([error, np.full(len(p), FORGETTING_STDERR)])
    values = np.stack([p - about.base_score, BASE_FORGETTING_SCORE - source])
    draws = values[:, None, :] + errors[:, None, :] * _noise(list(rows["arm"]), shared_noise)
    result = Points(
        f"target/{about.metric}",
        "forgetting_score",
        points=points,
        learning=_estimates(values[0], errors[0], about.items),
        forgetting=_estimates(values[1], errors[1], FORGETTING_ITEMS),
        learning_draws=draws[0],
        forgetting_draws=draws[1],
        resampled=about.items,
    )
    record = _record(about, {arm.id: arm for arm in arms.values()}, result, p, source)
    return Evidence(record, result, unpaired=True, notes=NOTES)


@cache
def _table() -> pd.DataFrame:
    import pandas as pd

    path = files("paretune.analyse.claims") / "paper.csv"
    return pd.read_csv(StringIO(path.read_text(encoding="utf-8")))


def _arm(about: PaperSetting, name: str) -> ArmConfig:
    if name == "full":
        return ArmConfig(method="full", learning_rate=about.full_rate, optimizer="lion")
    rank = int(name.removeprefix("r"))
    return ArmConfig(
        method="lora",
        rank=rank,
        learning_rate=about.lora_rates[rank],
        lora_dropout=0.05,
        optimizer="lion",
    )


def _noise(arms: list[str], shared: bool) -> Floats:
    """[2, R, P] standard normal draws, the same for all points of an arm when ``shared``.

    They are made uncorrelated and of variance 1 to the last digit, so that the standard error of
    a difference is what the formula says, and not what the draws happen to give.
    """
    names = sorted(set(arms))
    columns = [names.index(arm) for arm in arms] if shared else list(range(len(arms)))
    count = max(columns) + 1
    generator = np.random.default_rng(SEED)
    draws = []
    for _ in range(2):
        z = generator.standard_normal((RESAMPLES, count))
        q, r = np.linalg.qr(z - z.mean(axis=0))
        draws.append((q * np.sign(np.diag(r)) * np.sqrt(RESAMPLES - 1))[:, columns])
    return np.stack(draws)


def _estimates(values: Floats, errors: Floats, n: int) -> list[Estimate]:
    return [
        Estimate(float(v), float(e), float(v - 1.96 * e), float(v + 1.96 * e), n)
        for v, e in zip(values, errors, strict=True)
    ]


def _record(
    about: PaperSetting,
    arms: dict[str, ArmConfig],
    points: Points,
    target: Floats,
    source: Floats,
) -> StudyRecord:
    import pandas as pd

    rows = [
        (arm, tokens, metric, side, "accuracy", True, float(value), float("nan"), n)
        for (arm, tokens), p, q in zip(points.points, target, source, strict=True)
        for metric, side, value, n in (
            (points.learning_metric, "target", p, about.items),
            (points.forgetting_metric, "source", q, FORGETTING_ITEMS),
        )
    ]
    columns = ["arm", "tokens", "metric", "side", "unit", "higher_is_better", "value", "stderr"]
    config = StudyConfig.model_validate(
        {
            "name": f"paper-{about.name.replace('_', '-')}",
            "base": "meta-llama/Llama-2-7b-hf",
            "regime": about.regime,
            "target": {"data": {"from": "text", "path": "not published with the points"}},
            "arms": [arm.record() for arm in arms.values()],
            "budgets": {"at": sorted({tokens for _, tokens in points.points})},
        }
    )

    def items(arm: str, tokens: int, metric: str) -> pd.DataFrame:
        raise UserError(f"{metric} of {arm}: the paper publishes no outcomes item by item")

    return StudyRecord(
        config=config,
        arms=arms,
        status={arm: {"state": "done"} for arm in arms},
        scores=pd.DataFrame(rows, columns=[*columns, "n"]),
        items=items,
        curve=lambda arm: pd.DataFrame(columns=["step", "tokens", "loss"]),
        budgets=sorted({tokens for _, tokens in points.points}),
    )

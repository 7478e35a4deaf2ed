"""Made-up studies with chosen learning and forgetting, and errors of a chosen size."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

import synthetic_study
from synthetic_study import items_frame, record_of

from paretune.analyse.claims.card import CLAIMS, judged
from paretune.analyse.claims.evidence import Evidence
from paretune.analyse.claims.verdict import Verdict
from paretune.analyse.record import StudyRecord
from paretune.study.arms import ArmConfig

X, Y = "target/bits_per_byte", "self_probe/kl"
METRICS = synthetic_study.METRICS | {
    "target/kl": ("target", "nats/token", False),
    "target/distinct": ("target", "strings", True),
}
Values = dict[ArmConfig, list[tuple[float, ...]]]


def full(rate: float = 1e-4, **settings) -> ArmConfig:
    return ArmConfig(method="full", learning_rate=rate, **settings)


def lora(rank: int, rate: float = 1e-3, **settings) -> ArmConfig:
    return ArmConfig(method="lora", rank=rank, learning_rate=rate, **settings)


def made(
    values: Values, *, noise: float = 0.05, n: int = 100, seed: int = 3, extra: str = "", **changes
) -> StudyRecord:
    """Arms with these (learning, forgetting[, extra metric]) at budget after budget.

    Each arm's difference from the base has ``noise`` per item. Its mean is zero to the last digit,
    so that the truth and the estimate are one, unless ``exact=False`` is given.
    """
    rng = np.random.default_rng(seed)
    exact = changes.pop("exact", True)
    level = rng.normal(2, 0.3, n)
    metrics = [X, Y, *([extra] if extra else [])]
    items = {("base", 0, metric): items_frame(level) for metric in metrics}
    signs = {X: -1.0, Y: 1.0, "target/kl": 1.0, "target/distinct": 1.0}
    for arm, budgets in values.items():
        for step, point in enumerate(budgets):
            for metric, value in zip(metrics, point, strict=True):
                errors = rng.normal(0, noise, n)
                errors -= errors.mean() if exact else 0
                frame = items_frame(level + signs[metric] * value + errors)
                items[arm.id, 1000 * (step + 1), metric] = frame
    last = max((len(budgets) for budgets in values.values()), default=1)
    before = synthetic_study.METRICS
    synthetic_study.METRICS = METRICS
    try:
        return record_of(list(values), items, [1000 * (i + 1) for i in range(last)], **changes)
    finally:
        synthetic_study.METRICS = before


def verdict(claim: str, record: StudyRecord, spectra=None) -> Verdict:
    """One claim on a study."""
    return judged(next(c for c in CLAIMS if c.id == claim), Evidence.of(record.cached(), spectra))

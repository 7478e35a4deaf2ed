"""Made-up studies with known truth, for the tests of analysis and report."""

from __future__ import annotations

import numpy as np
import pandas as pd

from paretune.analyse.record import BASE, StudyRecord
from paretune.study.arms import ArmConfig
from paretune.study.config import StudyConfig

METRICS = {
    "target/bits_per_byte": ("target", "bits/byte", False),
    "self_probe/kl": ("source", "nats/token", False),
    "self_probe/bits_per_byte": ("source", "bits/byte", False),
    "prose/bits_per_byte": ("source", "bits/byte", False),
    "prose/cloze": ("source", "accuracy", True),
}

PROVENANCE = {
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "device": "two CPU cores",
    "seconds": {"train": 100.4, "score": 20.0},
    "runs": 1,
    "command": "paretune run made-up.yaml",
    "started": "2026-11-24T01:00:00+00:00",
    "finished": "2026-11-24T01:02:00+00:00",
    "data": {
        "target": {
            "source": {"from": "python-packages", "packages": "stdlib"},
            "rows_read": 1234,
            "tokens": 200_000,
            "bytes_read": 812_345,
            "bad_rows": {"not UTF-8": 2},
            "sha256": "ab" * 32,
        },
        "heldout": {"source": "target.data", "kept": 31, "kept_bytes": 5000},
        "texts": {"prose": {"source": {"from": "pocket-prose"}, "kept": 24}},
    },
}


def config(**changes) -> StudyConfig:
    settings = {
        "name": "made-up",
        "base": "pocket",
        "regime": "cpt",
        "target": {"data": {"from": "python-packages", "packages": "stdlib"}, "items": 64},
        "source": {
            "texts": [
                {
                    "name": "prose",
                    "data": {"from": "pocket-prose"},
                    "metrics": ["bits_per_byte", "cloze"],
                }
            ]
        },
        "arms": [{"method": "full", "learning_rate": 1e-3}],
        "budgets": {"at": [50_000, 100_000, 200_000]},
    }
    return StudyConfig.model_validate(settings | changes)


def pocket_arms() -> list[ArmConfig]:
    full = [ArmConfig(method="full", learning_rate=lr) for lr in (3e-4, 1e-3)]
    lora = [
        ArmConfig(method="lora", rank=rank, learning_rate=lr)
        for rank in (4, 16, 64)
        for lr in (1e-3, 4e-3)
    ]
    return [*full, *lora]


def many_arms() -> list[ArmConfig]:
    """60 arms: full and four ranks, four learning rates each, three seeds."""
    settings = [{"method": "full", "learning_rate": lr} for lr in (1e-4, 3e-4, 1e-3, 3e-3)]
    settings += [
        {"method": "lora", "rank": rank, "learning_rate": lr}
        for rank in (4, 16, 64, 256)
        for lr in (3e-4, 1e-3, 3e-3, 1e-2)
    ]
    return [ArmConfig(**one, seed=seed) for one in settings for seed in (0, 1, 2)]


def scores_frame(items: dict) -> pd.DataFrame:
    """Scores as the evaluation would state them, from the outcomes."""
    rows = []
    for (arm, tokens, metric), frame in items.items():
        side, unit, higher = METRICS[metric]
        value = frame["value"].sum() / frame["weight"].sum()
        rows.append((arm, tokens, metric, side, unit, higher, value, 0.01, len(frame)))
    columns = ["arm", "tokens", "metric", "side", "unit", "higher_is_better", "value", "stderr"]
    return pd.DataFrame(rows, columns=[*columns, "n"])


def record_of(
    arms: list[ArmConfig],
    items: dict[tuple[str, int, str], pd.DataFrame],
    budgets: list[int],
    *,
    status: dict | None = None,
    provenance: dict | None = None,
    curves: dict | None = None,
    **changes,
) -> StudyRecord:
    by_id = {arm.id: arm for arm in arms}
    last = max(budgets, default=0)
    done = {"state": "done", "step": 100, "reason": None, "seconds": 12.5, "tokens": last}
    empty = pd.DataFrame({n: [] for n in ("step", "tokens", "loss", "grad_norm", "learning_rate")})

    def read(arm: str, tokens: int, metric: str) -> pd.DataFrame:
        return items[arm, tokens, metric].copy()

    return StudyRecord(
        config=config(**changes),
        arms=by_id,
        status={arm: dict(done) for arm in by_id} | (status or {}),
        scores=scores_frame(items),
        items=read,
        curve=lambda arm: (curves or {}).get(arm, empty),
        budgets=budgets,
        provenance=provenance or {},
    )


def items_frame(value, weight=None, group=None, prefix="i") -> pd.DataFrame:
    value = np.asarray(value, dtype=np.float64)
    count = len(value)
    return pd.DataFrame(
        {
            "item": [f"{prefix}{index:04d}" for index in range(count)],
            "group": list(group) if group is not None else [f"{prefix}{i}" for i in range(count)],
            "value": value,
            "weight": np.ones(count) if weight is None else np.asarray(weight, dtype=np.float64),
        }
    )


def study(
    arms: list[ArmConfig] | None = None,
    budgets: tuple[int, ...] = (50_000, 100_000, 200_000),
    n: int = 64,
    seed: int = 0,
    metrics: tuple[str, ...] = tuple(METRICS),
    **changes,
) -> StudyRecord:
    """A study whose arms learn and forget in the manner of a real one; n items a metric."""
    arms = pocket_arms() if arms is None else arms
    rng = np.random.default_rng(seed)
    bytes_ = rng.integers(200, 400, n).astype(float)
    groups = [f"book{i % 12}" for i in range(n)]
    level = {m: rng.normal(2.2, 0.3, n) for m in metrics}
    correct = rng.random(n)
    items: dict[tuple[str, int, str], pd.DataFrame] = {}
    curves = {}

    def add(arm: str, tokens: int, learned: float, forgot: float) -> None:
        noise = rng.normal(0, 0.02, n) * (arm != BASE)
        for metric in metrics:
            if metric.endswith("cloze"):
                frame = items_frame((correct > 0.25 + forgot / 3).astype(float), None, groups)
            elif metric == "self_probe/kl":
                frame = items_frame(np.full(n, 100 * forgot) * (1 + noise), np.full(n, 100.0))
            elif metric.startswith("target"):
                frame = items_frame(bytes_ * (level[metric] - learned + noise), bytes_, groups)
            else:
                frame = items_frame(bytes_ * (level[metric] + forgot + noise), bytes_, groups)
            items[arm, tokens, metric] = frame

    add(BASE, 0, 0.0, 0.0)
    for arm in arms:
        capacity = 1.0 if arm.method == "full" else 0.45 + 0.08 * np.log2(arm.rank)
        rate = arm.learning_rate * (3 if arm.method == "full" else 0.6)
        for tokens in budgets:
            speed = rate * tokens / budgets[-1] * 800
            learned = capacity * (1 - np.exp(-speed))
            add(arm.id, tokens, learned, 0.45 * learned**1.7 * (1.25 if arm.rank else 1.0) + 0.01)
        steps = np.arange(1, 101)
        loss = 5 - 2 * capacity * (1 - np.exp(-steps / 30)) + rng.normal(0, 0.08, 100)
        curves[arm.id] = pd.DataFrame(
            {
                "step": steps,
                "tokens": steps * budgets[-1] // 100,
                "loss": loss,
                "grad_norm": 1.0,
                "learning_rate": arm.learning_rate,
            }
        )
    return record_of(arms, items, list(budgets), curves=curves, **changes)

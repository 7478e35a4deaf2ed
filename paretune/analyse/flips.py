"""What stands behind a net change: items learned, forgotten and kept, and exact tests of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paretune.analyse.record import BASE, StudyRecord
from paretune.analyse.results import read_items
from paretune.analyse.statistics import Floats, UnpairedError, align

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = [
    "arm", "tokens", "metric", "learned", "forgotten", "kept_right", "kept_wrong", "n", "net", "p",
]  # fmt: skip
PERMUTATIONS = 9999


@dataclass(frozen=True)
class Flips:
    """How n right-or-wrong items went from one model to another; ``p`` is McNemar's exact one."""

    learned: int  # wrong before, right after
    forgotten: int  # right before, wrong after
    kept_right: int
    kept_wrong: int
    p: float

    @property
    def n(self) -> int:
        """All items."""
        return self.learned + self.forgotten + self.kept_right + self.kept_wrong

    @property
    def net(self) -> float:
        """Change of the accuracy."""
        return (self.learned - self.forgotten) / self.n


def count_flips(before: Floats, after: Floats) -> Flips:
    """Flips of items from their outcomes (0 or 1) before and after."""
    was, now = before > 0.5, after > 0.5
    learned, forgotten = int((~was & now).sum()), int((was & ~now).sum())
    return Flips(
        learned,
        forgotten,
        int((was & now).sum()),
        int((~was & ~now).sum()),
        mcnemar(learned, forgotten),
    )


def mcnemar(learned: int, forgotten: int) -> float:
    """Exact two-sided p that an item is as likely to be learned as forgotten (binomial)."""
    if learned + forgotten == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(learned, learned + forgotten, 0.5).pvalue)


def sign_p(before: pd.DataFrame, after: pd.DataFrame) -> float | None:
    """Exact p of the sign test: as many items rose as fell (ties left out); None if unpaired."""
    try:
        pair = align([before, after])
    except UnpairedError:
        return None
    change = pair.value[1] / pair.weight[1] - pair.value[0] / pair.weight[0]
    return mcnemar(int((change > 0).sum()), int((change < 0).sum()))


def permutation_p(before: pd.DataFrame, after: pd.DataFrame, *, seed: int = 0) -> float | None:
    """Two-sided p of the paired permutation test: the two outcomes of a cluster may be swapped.

    The statistic is the sum of the clusters' parts of the difference. All swaps are tried where
    they are few, else 9,999 at random (``scipy.stats.permutation_test``).

    Returns:
        None where the two do not hold the same items, or there is one cluster.
    """
    from scipy.stats import permutation_test

    try:
        pair = align([before, after])
    except UnpairedError:
        return None
    if pair.count < 2:
        return None
    value, weight = pair.by_cluster
    total = weight.sum(axis=1, keepdims=True)
    parts = value / total
    difference = parts[1] - parts[0]
    if not difference.any():
        return 1.0
    result = permutation_test(
        (difference,),
        lambda x, axis: np.sum(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def flips(record: StudyRecord) -> pd.DataFrame:
    """Learned, forgotten and kept items of every arm, budget and accuracy metric, from the base.

    Only of metrics whose outcomes are right or wrong: a mean of several tasks, or a share of
    several answers to one prompt, has no items that flip.
    """
    import pandas as pd

    rows = []
    scores = record.scores[record.scores["unit"] == "accuracy"]
    for metric in dict.fromkeys(scores["metric"]):
        base = read_items(record, BASE, 0, metric)
        of_arms = scores[(scores["metric"] == metric) & (scores["arm"] != BASE)]
        for arm, tokens in zip(of_arms["arm"], of_arms["tokens"], strict=True):
            items = read_items(record, arm, int(tokens), metric)
            if isinstance(items, str) or isinstance(base, str):
                continue
            try:
                pair = align([base, items])
            except UnpairedError:
                continue
            if not pair.binary:
                continue
            found = count_flips(pair.value[0], pair.value[1])
            rows.append(
                (
                    arm,
                    int(tokens),
                    metric,
                    found.learned,
                    found.forgotten,
                    found.kept_right,
                    found.kept_wrong,
                    found.n,
                    found.net,
                    found.p,
                )
            )
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(
        ["arm", "tokens", "metric"], kind="stable", ignore_index=True
    )

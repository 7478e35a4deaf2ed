"""What advice chooses among: settings at budgets, with draws of what they learned and forgot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from paretune.analyse.claims.evidence import Evidence
from paretune.analyse.cost import BYTES, seconds_at
from paretune.analyse.record import method_group
from paretune.analyse.statistics import Floats, percentile_interval

SURE = 0.95


@dataclass(frozen=True)
class Candidate:
    """A setting at a budget, the mean of its seeds, with intervals over items and runs."""

    setting: str
    arm: str  # an arm of the setting, to export
    name: str
    group: str
    tokens: int
    seeds: int
    learning: float
    learning_low: float | None
    learning_high: float | None
    forgetting: float
    forgetting_low: float | None
    forgetting_high: float | None
    within: float | None = None  # probability that it forgets at most the limit
    best: float | None = None  # probability that it learns most of those within it
    seconds: float | None = None
    trained: int | None = None
    bytes: int | None = None
    memory: int | None = None

    @property
    def words(self) -> str:
        """Its name and budget."""
        return f"{self.name} at {self.tokens:,} tokens"


class Candidates:
    """All settings at all budgets: ``learning`` and ``forgetting`` are [1 + R, C], estimate first.

    Args:
        limit: the most that may be forgotten.
        memory: bytes of the device that will train the choice.
        trained: trained parameters by arm id, where known.
        needs: bytes of weights and optimizer states by arm id, where known.
    """

    def __init__(
        self,
        evidence: Evidence,
        limit: float | None,
        memory: int | None,
        trained: Mapping[str, int],
        needs: Mapping[str, int],
    ) -> None:
        self.evidence, self.limit, self.memory = evidence, limit, memory
        self.trained, self.needs = trained, needs
        self.notes: list[str] = []
        self.cells = [
            (key, tokens, cell)
            for key, budgets in sorted(evidence.cells.items())
            for tokens, cell in sorted(budgets.items())
        ]
        self.learning = _means(evidence.draws("learning"), self.cells)
        self.forgetting = _means(evidence.draws("forgetting"), self.cells)
        self.resampled = evidence.points.resampled > 1
        self.names = evidence.record.names()
        self.units = evidence.unit("learning"), evidence.unit("forgetting")
        if not self.resampled:
            self.notes.append("One item cannot be resampled, so nothing is known of the errors.")
        elif not evidence.repeats[1]:
            self.notes.append(
                "Every setting was run once, so probabilities are over items: the spread between "
                "seeds is not in them."
            )

    def fitting(self) -> list[int]:
        """Candidates that the memory allows."""
        if self.memory is None or not self.needs:
            return list(range(len(self.cells)))
        kept = []
        for index, (key, _, _) in enumerate(self.cells):
            need = self.needs.get(self.arm_of(key))
            if need is None or need <= self.memory:
                kept.append(index)
        dropped = len({self.cells[i][0] for i in range(len(self.cells))}) - len(
            {self.cells[i][0] for i in kept}
        )
        if dropped:
            self.notes.append(
                f"{dropped} settings need more memory than given, even trained by themselves, "
                "a row at a time."
            )
        return kept

    def arm_of(self, key: str) -> str:
        """The setting's arm with the lowest seed that was scored."""
        arms = {arm for arm, _ in self.evidence.points.points if self.evidence.key(arm) == key}
        return min(arms, key=lambda arm: (self.evidence.record.arms[arm].seed, arm))

    def candidate(self, index: int) -> Candidate:
        """One of the candidates in words and numbers."""
        key, tokens, cell = self.cells[index]
        arm = self.arm_of(key)
        record = self.evidence.record
        x, y = self.learning[:, index], self.forgetting[:, index]
        spans: list[tuple[float | None, float | None]] = [(None, None), (None, None)]
        within = None
        if self.resampled:
            spans = [percentile_interval(x[1:]), percentile_interval(y[1:])]
            if self.limit is not None:
                within = float((y[1:] <= self.limit).mean())
        config = record.arms[arm]
        spent = seconds_at(record, arm, tokens)
        count = self.trained.get(arm)
        return Candidate(
            key,
            arm,
            self.names[arm].removesuffix(f" seed {config.seed}"),
            method_group(config),
            tokens,
            len(cell),
            float(x[0]),
            *spans[0],
            float(y[0]),
            *spans[1],
            within=within,
            seconds=None if np.isnan(spent) else spent,
            trained=count,
            bytes=None if count is None else BYTES * count,
            memory=self.needs.get(arm),
        )


def span(value: float, low: float | None, high: float | None) -> str:
    """A value with its interval in brackets, where it has one."""
    return f"{value:.3g}" if low is None or high is None else f"{value:.3g} [{low:.3g}, {high:.3g}]"


def share_words(value: float | None) -> str:
    """A probability in two digits; never rounded to certainty, nor up to what counts as sure."""
    if value is None:
        return "unknown"
    if value > 0.99 or value < 0.01:
        return "over 0.99" if value > 0.99 else "under 0.01"
    text = f"{value:.2f}"
    return f"{np.floor(value * 1000) / 1000:.3f}" if value < SURE <= float(text) else text


def _means(draws: Floats, cells: list[tuple[str, int, list[int]]]) -> Floats:
    return np.stack([draws[:, cell].mean(axis=1) for _, _, cell in cells], axis=1)

"""What analysis and report work on: one study's settings, scores and per-item outcomes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from paretune.study.arms import ArmConfig
from paretune.study.config import StudyConfig

if TYPE_CHECKING:
    import pandas as pd

BASE = "base"
Key = TypeVar("Key", bound=Hashable)


@dataclass
class StudyRecord:
    """A study as its ledger tells it.

    ``arms`` and ``status`` are by arm id; a status holds ``state`` (planned, running, done,
    diverged or failed), ``step``, ``reason``, ``seconds`` and ``tokens``. ``scores`` has a row per
    arm (``base`` at 0 tokens), tokens and metric, with the columns arm, tokens, metric, side,
    unit, higher_is_better, value, stderr, n. ``items(arm, tokens, metric)`` gives item, group,
    value, weight: the score is sum(value) / sum(weight). ``curve(arm)`` gives step, tokens, loss,
    grad_norm, learning_rate. ``budgets`` are tokens, ascending.
    """

    config: StudyConfig
    arms: dict[str, ArmConfig]
    status: dict[str, dict[str, Any]]
    scores: pd.DataFrame
    items: Callable[[str, int, str], pd.DataFrame]
    curve: Callable[[str], pd.DataFrame]
    budgets: list[int]
    provenance: dict[str, Any] = field(default_factory=dict)

    def cached(self) -> StudyRecord:
        """The same record, reading each file of items and each curve at most once."""
        items: dict[tuple[str, int, str], pd.DataFrame] = {}
        curves: dict[str, pd.DataFrame] = {}

        def read_items(arm: str, tokens: int, metric: str) -> pd.DataFrame:
            key = (arm, int(tokens), metric)
            if key not in items:
                items[key] = self.items(*key)
            return items[key]

        def read_curve(arm: str) -> pd.DataFrame:
            if arm not in curves:
                curves[arm] = self.curve(arm)
            return curves[arm]

        return replace(self, items=read_items, curve=read_curve)

    def state(self, arm: str) -> str:
        """How far an arm is; ``planned`` where nothing is recorded."""
        return str(self.status.get(arm, {}).get("state") or "planned")

    def metrics(self) -> list[str]:
        """The metrics that have scores, in the study's order, then any others by name."""
        scored = {str(metric) for metric in self.scores["metric"]}
        named = [name for name in self.config.metric_names() if name in scored]
        return named + sorted(scored - set(named))

    def learning_metric(self) -> str:
        """The metric of the frontier's learning axis.

        It is the study's own choice. Where the study makes none, and a method improved on the base
        by the usual one at no point (exact answers that never came), the next one that shows
        learning for every method.
        """
        first = self.config.learning_metric()
        if self.config.frontier.learning:
            return first
        axes = self.config.learning_axes()
        return next((metric for metric in axes if self._all_learned(metric)), first)

    def _all_learned(self, metric: str) -> bool:
        """Whether some arm of each method that was scored is better than the base."""
        rows = self.scores[self.scores["metric"] == metric]
        base = rows.loc[rows["arm"] == BASE, "value"]
        if base.empty:
            return False
        better = rows["value"] > base.iloc[0]
        if not rows["higher_is_better"].iloc[0]:
            better = rows["value"] < base.iloc[0]
        methods = rows["arm"].map({arm: config.method for arm, config in self.arms.items()})
        return bool(better.groupby(methods).any().all())

    def forgetting_metrics(self) -> list[str]:
        """Scored metrics of the source, the frontier's first."""
        first = self.config.forgetting_metric()
        source = self.scores.loc[self.scores["side"] == "source", "metric"]
        scored = {str(metric) for metric in source}
        return sorted(
            (name for name in self.metrics() if name in scored), key=lambda name: name != first
        )

    def names(self) -> dict[str, str]:
        """A name for each arm that no other arm has: its label and what else tells it apart."""
        return unique_names(self.arms)


def method_group(arm: ArmConfig) -> str:
    """Family and rank, the unit of matched learning: ``full``, ``lora r16``, ``dora r16``."""
    return f"{arm.family} r{arm.rank}" if arm.method == "lora" else arm.family


def group_order(group: str) -> tuple[int, int, str]:
    """Sort key of a method group: full first, then plain LoRA by rank, then its variants."""
    name, _, rank = group.partition(" r")
    place = {"full": 0, "lora": 1}.get(name, 2)
    return (place, int(rank) if rank.isdigit() else 0, group)


def unique_names(arms: dict[str, ArmConfig]) -> dict[str, str]:
    """Labels made unique by the settings in which arms of one label differ, else by their id."""
    names: dict[str, str] = {}
    for label, same in _by(arms, lambda arm: arms[arm].label).items():
        records = {arm: arms[arm].record() for arm in same}
        settings = sorted({key for record in records.values() for key in record})
        differing = [
            key for key in settings if len({repr(records[arm].get(key)) for arm in same}) > 1
        ]
        for arm in same:
            shown = [f"{_short(key)} {_value(records[arm].get(key))}" for key in differing]
            names[arm] = " ".join([label, *shown])
    for shared in _by(names, lambda arm: names[arm]).values():
        if len(shared) > 1:
            names.update({arm: f"{names[arm]} ({arm})" for arm in shared})
    return {arm: names[arm] for arm in arms}


def _by(items: Iterable[str], key: Callable[[str], Key]) -> dict[Key, list[str]]:
    groups: dict[Key, list[str]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _short(setting: str) -> str:
    return {"weight_decay": "decay", "weight_decay_relative": "relative decay"}.get(
        setting, setting.replace("_", " ")
    )


def _value(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "+".join(_value(item) for item in value)
    if isinstance(value, dict):
        return str(value.get("shape", value)) if "shape" in value else str(value)
    return str(value)

"""The tidy table of results: one row per score, with its paired change from the base."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from paretune.analyse.record import BASE, StudyRecord
from paretune.analyse.statistics import Estimate, change_sign, paired_difference
from paretune.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

DTYPES = {
    "study": "string",
    "arm": "string",
    "label": "string",
    "method": "string",
    "rank": "Int64",
    "alpha": "float64",
    "targets": "string",
    "learning_rate": "float64",
    "optimizer": "string",
    "weight_decay": "float64",
    "lora_dropout": "float64",
    "seed": "Int64",
    "tokens": "Int64",
    "metric": "string",
    "side": "string",
    "unit": "string",
    "higher_is_better": "boolean",
    "value": "float64",
    "stderr": "float64",
    "n": "Int64",
    "base_value": "float64",
    "change": "float64",
    "change_stderr": "float64",
    "change_low": "float64",
    "change_high": "float64",
    "status": "string",
    "reason": "string",
}
KEY = ["arm", "tokens", "metric"]


def tidy(record: StudyRecord) -> pd.DataFrame:
    """One row per score, the base included, sorted by arm, tokens and metric.

    ``change`` is paired with the base item by item and signed so that on the target positive
    means learned and on the source positive means forgotten; its interval is the 95% one of
    ``paired_difference``. Where it is undefined it is missing, and ``reason`` says why. The
    table holds no times: a resumed run gives it again to the bit.
    """
    import pandas as pd

    record = record.cached()
    scores = record.scores
    base_values = {
        str(row.metric): row.value for row in scores[scores["arm"] == BASE].itertuples(index=False)
    }
    rows = []
    for score in scores.to_dict("records"):
        metric, arm = str(score["metric"]), str(score["arm"])
        change = _change(record, arm, int(score["tokens"]), metric, score)
        rows.append(
            {
                "study": record.config.name,
                "arm": arm,
                **_settings(record, arm),
                "tokens": int(score["tokens"]),
                "metric": metric,
                "side": score["side"],
                "unit": score["unit"],
                "higher_is_better": bool(score["higher_is_better"]),
                "value": _number(score["value"]),
                "stderr": _number(score["stderr"]),
                "n": int(score["n"]),
                "base_value": _number(base_values.get(metric)),
                "change": change.value,
                "change_stderr": change.stderr,
                "change_low": change.low,
                "change_high": change.high,
                "status": "done" if arm == BASE else record.state(arm),
                "reason": change.reason,
            }
        )
    frame = pd.DataFrame(rows, columns=list(DTYPES)).astype(DTYPES)
    return frame.sort_values(KEY, kind="stable", ignore_index=True)


def to_csv(results: pd.DataFrame) -> str:
    """The table as CSV; numbers are written with the fewest digits that read back to the bit."""
    lines = [",".join(results.columns)]
    missing = results.isna()
    columns = [
        [
            "" if gone else _cell(value)
            for value, gone in zip(results[name].tolist(), missing[name].tolist(), strict=True)
        ]
        for name in results.columns
    ]
    lines += [",".join(cells) for cells in zip(*columns, strict=True)]
    return "\n".join(lines) + "\n"


def read_items(record: StudyRecord, arm: str, tokens: int, metric: str) -> pd.DataFrame | str:
    """Per-item outcomes, or the reason why there are none."""
    try:
        return record.items(arm, tokens, metric)
    except (OSError, KeyError, UserError):
        return f"the outcomes per item of {arm} are missing"


def read_all(
    record: StudyRecord, scores: Iterable[tuple[str, int, str]]
) -> list[pd.DataFrame] | str:
    """Per-item outcomes of several scores (arm, tokens, metric), or why one of them has none."""
    frames = []
    for score in scores:
        outcome = read_items(record, *score)
        if isinstance(outcome, str):
            return outcome
        frames.append(outcome)
    return frames


def _change(
    record: StudyRecord, arm: str, tokens: int, metric: str, score: Mapping[Any, Any]
) -> Estimate:
    outcomes = read_all(record, [(arm, tokens, metric), (BASE, 0, metric)])
    if isinstance(outcomes, str):
        return Estimate(None, None, None, None, 0, outcomes)
    sign = change_sign(str(score["side"]), bool(score["higher_is_better"]))
    return paired_difference(*outcomes, sign=sign)


def _settings(record: StudyRecord, arm: str) -> dict[str, Any]:
    config = record.arms.get(arm)
    if config is None:
        return {"label": arm, "method": arm}
    targets = config.targets
    return {
        "label": config.label,
        "method": config.family,
        "rank": config.rank,
        "alpha": config.alpha,
        "targets": "+".join(targets) if isinstance(targets, tuple) else targets,
        "learning_rate": config.learning_rate,
        "optimizer": config.optimizer,
        "weight_decay": config.decay,
        "lora_dropout": config.lora_dropout,
        "seed": config.seed,
    }


def _number(value: Any) -> float | None:
    """A finite float, or None: NaN and infinity are not numbers a table should hold."""
    if value is None or not math.isfinite(float(value)):
        return None
    return float(value)


def _cell(value: Any) -> str:
    text = repr(value) if isinstance(value, float) else str(value)
    if any(mark in text for mark in ',"\n\r'):
        return '"' + text.replace('"', '""') + '"'
    return text

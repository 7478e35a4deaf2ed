"""What each arm costs, and the frontier when cost counts too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from paretune.analyse.points import Points, measured
from paretune.analyse.record import StudyRecord
from paretune.analyse.statistics import Floats

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = [
    "arm", "tokens", "learning", "forgetting", "seconds", "trained", "bytes", "peak_memory",
    "on_frontier", "on_cost_frontier",
]  # fmt: skip
BYTES = 4  # trained weights are kept in float32


def costs(
    record: StudyRecord,
    trained: Mapping[str, int] | None = None,
    *,
    points: Points | None = None,
) -> pd.DataFrame:
    """Every point with its cost, and whether it is on the frontier without and with cost.

    ``seconds`` are of training and scoring up to the budget, in proportion to its tokens, each arm
    of a cohort with an equal share of it. ``trained`` counts trained parameters and ``bytes`` is
    what they take in float32: a LoRA arm's adapter, a full arm's whole model; without ``trained``
    it is the size of a checkpoint that was kept. ``peak_memory`` is in bytes, that of the arm's
    whole cohort, where it was measured (on a GPU). A point is on the
    cost frontier when no other learned at least as much, forgot at most as much and took at most
    as many seconds and bytes, with one of them better. Unknown costs are missing and leave their
    part of the comparison out.
    """
    import pandas as pd

    from paretune.analyse.frontier import frontier

    points = points or measured(record)
    table = frontier(record, points=points)
    rows = []
    for arm, tokens, learned, forgot, on in zip(
        table["arm"],
        table["tokens"],
        table["learning"],
        table["forgetting"],
        table["on_frontier"],
        strict=True,
    ):
        count = (trained or {}).get(arm)
        status = record.status.get(arm, {})
        stored = status.get("checkpoint_bytes", np.nan)
        rows.append(
            (
                arm,
                int(tokens),
                learned,
                forgot,
                seconds_at(record, arm, int(tokens)),
                np.nan if count is None else count,
                stored if count is None else BYTES * count,
                status.get("peak_memory", np.nan),
                bool(on),
                False,
            )
        )
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame = frame.astype(dict.fromkeys(["seconds", "trained", "bytes", "peak_memory"], "float64"))
    worse = np.stack(
        [-frame["learning"], frame["forgetting"], _known(frame["seconds"]), _known(frame["bytes"])],
        axis=1,
    ).astype(np.float64)
    frame["on_cost_frontier"] = undominated(worse) & (frame["learning"] > 0)
    return frame


def seconds_at(record: StudyRecord, arm: str, tokens: int) -> float:
    """Seconds an arm took up to a budget; NaN where they were not recorded."""
    status = record.status.get(arm, {})
    whole, spent = float(status.get("tokens") or 0), float(status.get("seconds") or 0)
    if whole <= 0 or spent <= 0:
        return float("nan")
    return spent * min(1.0, tokens / whole)


def undominated(worse: Floats) -> np.ndarray:
    """[P] bool of rows [P, D], less is better: no other is nowhere worse and somewhere better."""
    kept = np.ones(len(worse), dtype=bool)
    for index, row in enumerate(worse):
        kept[index] = not ((worse <= row).all(axis=1) & (worse < row).any(axis=1)).any()
    return kept


def _known(column: pd.Series) -> pd.Series:
    """A cost that some rows lack cannot rank any."""
    return column if column.notna().all() else column.fillna(0) * 0

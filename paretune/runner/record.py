"""Reading a ledger into the record that analysis and report work on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from paretune.analyse.record import StudyRecord
from paretune.files import read_json, read_jsonl
from paretune.runner.ledger import BASE, Ledger
from paretune.runner.rows import CURVE, PACE, checked, fits
from paretune.study.secrets import all_redacted

_SCORE_COLUMNS = [
    "arm", "tokens", "metric", "side", "unit", "higher_is_better", "value", "stderr", "n",
]  # fmt: skip


def read_record(ledger: Ledger) -> StudyRecord:
    """Everything a ledger holds, in memory but for items and curves, which are read on demand."""
    study = ledger.study()
    arms = ledger.arms()
    rows = [{"arm": arm_id, **row} for arm_id in (BASE, *arms) for row in ledger.scores(arm_id)]
    scores = pd.DataFrame(rows, columns=_SCORE_COLUMNS)
    budgets = sorted({int(t) for t in scores["tokens"] if t > 0})
    costs = _costs(ledger)
    return StudyRecord(
        config=study.config,
        arms=arms,
        status={arm_id: ledger.status(arm_id) | costs.get(arm_id, {}) for arm_id in arms},
        scores=scores,
        items=ledger.items,
        curve=lambda arm_id: _curve(ledger, arm_id),
        budgets=budgets,
        provenance=all_redacted(_provenance(ledger)),
    )


def _costs(ledger: Ledger) -> dict[str, dict[str, int]]:
    """Bytes by arm: ``peak_memory`` of its cohort on a GPU, ``checkpoint_bytes`` of its largest."""
    found: dict[str, dict[str, int]] = {}
    for row in ledger.log():
        if row["event"] == "pace" and fits(PACE, row):
            for arm_id in row["arms"]:
                costs = found.setdefault(arm_id, {})
                costs["peak_memory"] = max(costs.get("peak_memory", 0), row["measured_bytes"])
    for arm_id in ledger.arms():
        kept = (ledger.arm_folder(arm_id) / "checkpoints").glob("*")
        sizes = [sum(file.stat().st_size for file in one.rglob("*.safetensors")) for one in kept]
        if any(sizes):
            found.setdefault(arm_id, {})["checkpoint_bytes"] = max(sizes)
    return found


def _curve(ledger: Ledger, arm_id: str) -> pd.DataFrame:
    columns = ["leg", "step", "tokens", "loss", "grad_norm", "learning_rate"]
    path = ledger.arm_folder(arm_id) / "train.jsonl"
    return pd.DataFrame(checked(CURVE, read_jsonl(path), path), columns=columns)


def _provenance(ledger: Ledger) -> dict[str, Any]:
    runs = ledger.runs()
    manifest = ledger.folder / "data" / "manifest.json"
    seconds: dict[str, float] = {}
    for run in runs:
        for phase, value in run["seconds"].items():
            seconds[phase] = seconds.get(phase, 0.0) + value
    return {
        "versions": runs[-1]["versions"] if runs else {},
        "device": "; ".join(dict.fromkeys(run["device"] for run in runs)),
        "seconds": seconds,
        "runs": len(runs),
        "command": runs[0]["command"] if runs else "",
        "started": runs[0]["started"] if runs else None,
        "finished": runs[-1]["finished"] if runs else None,
        "data": read_json(manifest) if manifest.exists() else {},
    }


def record_of(folder: Path | str) -> StudyRecord:
    """The record of the study in ``folder``.

    Raises:
        UserError: the folder holds no study.
    """
    return read_record(Ledger.open(Path(folder)))

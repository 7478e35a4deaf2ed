"""The score card of a study's ledger: claims.json in its folder."""

from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.analyse.claims.card import caveats, verdicts
from paretune.analyse.claims.evidence import Evidence
from paretune.analyse.claims.spectra import COLUMNS
from paretune.analyse.claims.verdict import Verdict
from paretune.files import keep_json
from paretune.runner.ledger import Ledger
from paretune.runner.record import read_record

if TYPE_CHECKING:
    import pandas as pd


def claims(folder: Path | str) -> list[Verdict]:
    """Judge the published claims on the study in ``folder`` and write its claims.json.

    Raises:
        UserError: the folder holds no study.
    """
    return judge(folder)[0]


def judge(folder: Path | str) -> tuple[list[Verdict], list[str]]:
    """The same, with the notes that hold for all of them."""
    ledger = Ledger.open(Path(folder))
    evidence = Evidence.of(read_record(ledger), spectra_of(ledger))
    judged, notes = verdicts(evidence), caveats(evidence)
    content: dict[str, Any] = {
        "study": evidence.record.config.name,
        "learning": evidence.points.learning_metric,
        "forgetting": evidence.points.forgetting_metric,
        "notes": notes,
        "claims": [verdict.row() for verdict in judged],
    }
    keep_json(ledger.folder / "claims.json", content)
    return judged, notes


def spectra_of(ledger: Ledger) -> pd.DataFrame | None:
    """The spectra of all arms that have them, in the columns that the claims use."""
    import pandas as pd

    frames = []
    for arm in ledger.arms():
        path = ledger.arm_folder(arm) / "spectrum.parquet"
        if path.exists():
            frame = pd.read_parquet(path).assign(arm=arm)
            if set(COLUMNS) <= set(frame.columns):
                frames.append(frame[list(COLUMNS)])
    return pd.concat(frames, ignore_index=True) if frames else None


def claims_text(judged: list[Verdict], notes: list[str]) -> str:
    """The score card for the terminal: each verdict with its effect, and why."""
    blocks = []
    for one in judged:
        lines = [f"{one.verdict.upper():12}  {one.sentence}"]
        if one.effect is not None:
            lines.append(f"effect {_effect(one)} {one.unit}, n {one.n:,}")
        lines.append(one.reason)
        if one.resolve:
            lines.append(f"would resolve it: {one.resolve}")
        blocks.append("\n".join([lines[0], *(_wrapped(line) for line in lines[1:])]))
    counts = Counter[str](one.verdict for one in judged)
    states = ("supported", "contradicted", "unresolved")
    summary = ", ".join(f"{counts[state]} {state}" for state in states)
    return "\n\n".join([*blocks, "\n".join([f"{len(judged)} claims: {summary}", *notes])])


def _effect(one: Verdict) -> str:
    if one.low is None and one.high is None:
        return f"{one.effect:.3g}"
    low, high = (f"{end:.3g}" if end is not None else "open" for end in (one.low, one.high))
    return f"{one.effect:.3g} [{low}, {high}]"


def _wrapped(text: str) -> str:
    indent = " " * 14
    return textwrap.fill(text, 100, initial_indent=indent, subsequent_indent=indent)

"""The score card: every claim, judged on one study."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from paretune.analyse.claims import (
    equal_tokens,
    laws,
    matched_learning,
    ranks,
    rates,
    recipe,
    regularise,
    spectra,
)
from paretune.analyse.claims.evidence import Evidence
from paretune.analyse.claims.verdict import Claim, MissingError, Outcome, Verdict
from paretune.analyse.points import Points
from paretune.analyse.record import StudyRecord

if TYPE_CHECKING:
    import pandas as pd

# To add a claim, put it into its family's CLAIMS; to add a family, name its module here
CLAIMS: tuple[Claim, ...] = (
    *equal_tokens.CLAIMS,
    *matched_learning.CLAIMS,
    *ranks.CLAIMS,
    *regularise.CLAIMS,
    *spectra.CLAIMS,
    *recipe.CLAIMS,
    *rates.CLAIMS,
    *laws.CLAIMS,
)
COLUMNS = ("claim", "sentence", "verdict", "effect", "low", "high", "unit", "n", "reason")


def verdicts(evidence: Evidence) -> list[Verdict]:
    """Every claim judged, in the registry's order."""
    return [judged(claim, evidence) for claim in CLAIMS]


def judged(claim: Claim, evidence: Evidence) -> Verdict:
    """One claim; unresolved, with what it needs, where its inputs are missing."""
    try:
        if not evidence.points.points and claim.test.__module__ != spectra.__name__:
            raise MissingError(evidence.points.reason or "the study has no scores")
        outcome = claim.test(evidence)
    except MissingError as error:
        outcome = Outcome("unresolved", str(error), resolve=claim.needs)
    effect = outcome.effect
    return Verdict(
        claim.id,
        claim.sentence,
        claim.source,
        outcome.judgement,
        _finite(effect.value),
        _finite(effect.low),
        _finite(effect.high),
        outcome.unit,
        effect.n,
        outcome.reason,
        outcome.resolve if outcome.judgement == "unresolved" else None,
        outcome.parts,
    )


def score_card(
    record: StudyRecord,
    spectra: pd.DataFrame | None = None,
    points: Points | None = None,
) -> pd.DataFrame:
    """A row for each claim: claim, sentence, verdict, effect, low, high, unit, n, reason, resolve.

    ``resolve`` says what would settle an unresolved claim and is empty for the others. It gives
    rows for any study, also for one without scores. ``points`` on the study's frontier may be given
    where they are measured already.
    """
    return frame(verdicts(Evidence.of(record, spectra, points)))


def frame(judged: list[Verdict]) -> pd.DataFrame:
    """Verdicts as a table."""
    import pandas as pd

    rows = [
        {**{name: getattr(one, name) for name in COLUMNS}, "resolve": one.resolve or ""}
        for one in judged
    ]
    table = pd.DataFrame(rows, columns=[*COLUMNS, "resolve"])
    return table.astype({"effect": "float64", "low": "float64", "high": "float64"})


def caveats(evidence: Evidence) -> list[str]:
    """What holds for the whole card: the spread of runs, and what the study adds of its own."""
    settings, degrees = evidence.repeats
    notes = list(evidence.notes)
    if settings:
        notes.append(
            f"Intervals hold the sampling of items and the spread of repeated runs, pooled over "
            f"{settings} settings that were run under several seeds ({degrees} degrees of freedom)."
        )
    elif evidence.points.points:
        notes.append(
            "No setting was repeated under another seed at every budget: the intervals hold the "
            "sampling of items only, and a new seed could differ by more."
        )
    return notes


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

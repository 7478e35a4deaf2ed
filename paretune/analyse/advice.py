"""Which arm at which budget, how sure that is, what it costs, and what to run next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from paretune.analyse.ahead import Ahead, ahead_of
from paretune.analyse.candidates import SURE, Candidate, Candidates, share_words, span
from paretune.analyse.claims.evidence import Evidence
from paretune.analyse.next_steps import next_steps
from paretune.analyse.points import measured
from paretune.analyse.record import StudyRecord
from paretune.analyse.statistics import percentile_interval

Sure = Literal["sure", "likely", "open", "none"]
LIKELY = 0.75
RIVAL = 0.05  # a candidate that is best in this share of draws is still in the race
LIMITS = (0.15, 0.3, 0.5, 0.7, 1.0)  # of the most that any choice forgot: shown without a limit


@dataclass(frozen=True)
class Advice:
    """What to take and why; every sentence is for a reader, every number is in the fields."""

    learning_metric: str
    forgetting_metric: str
    limit: float | None
    memory: int | None
    sure: Sure
    headline: str
    why: list[str]
    choice: Candidate | None = None
    rivals: list[Candidate] = field(default_factory=list)
    table: list[Candidate] = field(default_factory=list)
    ahead: list[Ahead] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """The advice as JSON values."""
        return asdict(self)


def advise(
    record: StudyRecord,
    *,
    forget_at_most: float | None = None,
    metric: str | None = None,
    memory: int | None = None,
    trained: Mapping[str, int] | None = None,
    needs: Mapping[str, int] | None = None,
) -> Advice:
    """Advice from a study's record, for a study in any state.

    Args:
        forget_at_most: the limit, in the forgetting metric's unit.
        metric: the forgetting metric; the study's own by default.
        memory: bytes of the device that will train the choice.
        trained: trained parameters by arm id, where known.
        needs: bytes of weights and optimizer states by arm id, where known.
    """
    record = record.cached()
    evidence = Evidence.of(record, points=measured(record, forgetting=metric))
    points = evidence.points
    blank = Advice(
        points.learning_metric, points.forgetting_metric, forget_at_most, memory, "none", "", []
    )
    if not points.points:
        reason = points.reason or "no arm has been scored"
        return replace(blank, headline=f"No advice: {reason}.", next=["Run the study to its end."])
    candidates = Candidates(evidence, forget_at_most, memory, trained or {}, needs or {})
    if memory is not None and not needs:
        candidates.notes.append("The memory limit was not applied: the base cannot be read here.")
    places = candidates.fitting()
    if not places:
        headline = "No advice: no arm fits the memory given."
        return replace(blank, headline=headline, notes=candidates.notes)
    return _decide(candidates, blank, places)


def _decide(candidates: Candidates, blank: Advice, places: list[int]) -> Advice:
    """Choose among the candidates, and say how surely."""
    estimate, draws = candidates.forgetting[0], candidates.forgetting[1:]
    if candidates.limit is None:
        allowed, certain = places, places
    else:
        within = (draws <= candidates.limit).mean(axis=0)
        allowed = [i for i in places if estimate[i] <= candidates.limit]
        certain = [i for i in allowed if not candidates.resampled or within[i] >= SURE]
    table = _table(candidates, places)
    ahead = ahead_of(candidates, places)
    if not allowed:
        least = min(places, key=lambda i: estimate[i])
        return replace(
            blank,
            headline=(
                f"No arm stayed within {candidates.limit:g}: the least forgotten was "
                f"{estimate[least]:.3g}, by {candidates.candidate(least).words}."
            ),
            why=["The base itself is the choice, or an arm that was not tried."],
            choice=None,
            table=table,
            next=["Lower learning rates, smaller ranks or smaller budgets, which forget less."],
            notes=candidates.notes,
        )
    pool = certain or allowed
    top = max(pool, key=lambda i: candidates.learning[0, i])
    if candidates.learning[0, top] <= 0:
        return replace(
            blank,
            headline="Keep the base: no arm within the limit learned anything.",
            why=[f"The best of them, {candidates.candidate(top).words}, learned nothing."],
            table=table,
            notes=candidates.notes,
        )
    winners = np.array(pool)[candidates.learning[1:][:, pool].argmax(axis=1)]
    share = {i: float((winners == i).mean()) for i in pool} if candidates.resampled else {}
    chosen = replace(candidates.candidate(top), best=share.get(top))
    rivals = sorted((i for i in pool if i != top and share.get(i, 0) >= RIVAL),
                    key=lambda i: -share[i])  # fmt: skip
    sure: Sure = "open"
    if candidates.resampled and certain:
        won = share[top]
        sure = "sure" if won >= SURE else "likely" if won >= LIKELY else "open"
    others = [replace(candidates.candidate(i), best=share[i]) for i in rivals]
    return replace(
        blank,
        sure=sure,
        headline=_headline(candidates, chosen, others, sure, bool(certain)),
        why=_why(candidates, top, places, pool, certain),
        choice=chosen,
        rivals=others,
        table=table,
        ahead=ahead,
        next=next_steps(candidates, top, rivals, ahead, sure == "sure"),
        notes=candidates.notes,
    )


def _why(
    candidates: Candidates, top: int, places: list[int], pool: list[int], certain: list[int]
) -> list[str]:
    x, y = candidates.learning[0], candidates.forgetting[0]
    chosen = candidates.candidate(top)
    learned, forgot = candidates.units
    lines = [
        f"It learned {span(chosen.learning, chosen.learning_low, chosen.learning_high)} {learned} "
        f"and forgot {span(chosen.forgetting, chosen.forgetting_low, chosen.forgetting_high)} "
        f"{forgot} (n {_n(candidates.evidence, 0)} and {_n(candidates.evidence, 1)} items)."
    ]
    if candidates.limit is not None:
        if candidates.resampled:
            lines.append(
                f"It stays within {candidates.limit:g} with probability "
                f"{share_words(chosen.within)}; of {len(candidates.cells)} candidates "
                f"{len(certain)} do so with at least {SURE:.0%}."
            )
        beyond = [i for i in places if x[i] > x[top] and i not in pool]
        if beyond:
            # The one nearest the limit: it is the next to be had for a little more forgetting
            near = min(beyond, key=lambda i: y[i])
            chance = candidates.candidate(near).within
            inside = f", within the limit with probability {share_words(chance)}" if chance else ""
            lines.append(
                f"More was learned by {candidates.candidate(near).words}: {x[near]:.3g}, for "
                f"forgetting {y[near]:.3g}{inside}."
            )
    group = chosen.group
    other = [i for i in pool if candidates.candidate(i).group.split(" ")[0] != group.split(" ")[0]]
    if other:
        best = max(other, key=lambda i: x[i])
        gap = candidates.learning[:, top] - candidates.learning[:, best]
        low, high = percentile_interval(gap[1:]) if candidates.resampled else (None, None)
        lines.append(
            f"The best of the other method, {candidates.candidate(best).words}, learned "
            f"{x[best]:.3g}: {span(float(gap[0]), low, high)} less."
        )
    return lines


def _table(candidates: Candidates, places: list[int]) -> list[Candidate]:
    """Without a limit: the choice at a few limits, from least to most forgotten."""
    if candidates.limit is not None:
        return []
    most = max(float(candidates.forgetting[0, i]) for i in places)
    found: dict[int, None] = {}
    for share in LIMITS:
        inside = [i for i in places if candidates.forgetting[0, i] <= share * most]
        if inside:
            best = max(inside, key=lambda i: candidates.learning[0, i])
            if candidates.learning[0, best] > 0:
                found.setdefault(best)
    return [candidates.candidate(i) for i in found]


def _headline(
    candidates: Candidates,
    chosen: Candidate,
    rivals: list[Candidate],
    sure: Sure,
    certain: bool,
) -> str:
    limit, unit = candidates.limit, candidates.units[1]
    bound = f" while forgetting at most {limit:g} {unit}" if limit is not None else ""
    told = f"Take {chosen.words}: it learned most{bound}"
    if limit is None:
        told = f"Of all, {chosen.words} learned most; name a limit on forgetting for a choice"
    if not certain:
        return f"{told}, but that it stays within the limit is not sure."
    if sure == "open" and rivals:
        names = ", ".join(one.words for one in rivals[:3])
        more = f" and {len(rivals) - 3} more" if len(rivals) > 3 else ""
        return (
            f"The data do not support one choice: {chosen.words} learned most{bound}, but only "
            f"with probability {share_words(chosen.best)}; as good may be {names}{more}."
        )
    if chosen.best is None:
        return f"{told}; how sure that is, this study cannot say."
    return f"{told} (probability {share_words(chosen.best)})."


def _n(evidence: Evidence, axis: int) -> int:
    points = evidence.points
    return min(estimate.n for estimate in (points.learning, points.forgetting)[axis])

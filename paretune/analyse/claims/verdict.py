"""What a claim is, what testing it gives, and the words for both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from paretune.analyse.statistics import Estimate

if TYPE_CHECKING:
    from paretune.analyse.claims.evidence import Evidence

Judgement = Literal["supported", "contradicted", "unresolved"]


@dataclass(frozen=True)
class Part:
    """One comparison of a claim, signed so that a positive ``estimate`` speaks for the claim.

    ``p`` is two-sided and ``p_adjusted`` is Holm's, over the parts of the claim.
    """

    name: str
    estimate: Estimate
    p: float | None = None
    p_adjusted: float | None = None
    judgement: Judgement = "unresolved"


@dataclass(frozen=True)
class Outcome:
    """What a claim's test found, before it is put beside the claim.

    ``effect`` with its 95% interval is that of the comparison which decided; ``resolve`` says
    what would settle an unresolved claim.
    """

    judgement: Judgement
    reason: str
    effect: Estimate = field(default_factory=lambda: Estimate(None, None, None, None, 0))
    unit: str = ""
    resolve: str | None = None
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A sentence, who says it and where, the test, and what a study needs for the test."""

    id: str
    sentence: str
    source: str
    needs: str
    test: Callable[[Evidence], Outcome]


@dataclass(frozen=True)
class Verdict:
    """A claim judged on one study."""

    claim: str
    sentence: str
    source: str
    verdict: Judgement
    effect: float | None
    low: float | None
    high: float | None
    unit: str
    n: int
    reason: str
    resolve: str | None
    parts: tuple[Part, ...] = ()

    def row(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {
            "claim": self.claim,
            "sentence": self.sentence,
            "source": self.source,
            "verdict": self.verdict,
            "effect": self.effect,
            "interval": None if self.low is None else [self.low, self.high],
            "unit": self.unit,
            "n": self.n,
            "reason": self.reason,
            "what_would_resolve_it": self.resolve,
            "parts": [
                {
                    "name": part.name,
                    "effect": part.estimate.value,
                    "interval": None
                    if part.estimate.low is None
                    else [part.estimate.low, part.estimate.high],
                    "p": part.p,
                    "p_adjusted": part.p_adjusted,
                    "verdict": part.judgement,
                }
                for part in self.parts
            ],
        }


class MissingError(Exception):
    """A study lacks what a claim's test needs; the message says what."""


def missing(reason: str) -> MissingError:
    """To be raised by a test that cannot be done: the claim is then unresolved."""
    return MissingError(reason)

"""The score card of published claims: each a sentence and a test, judged on a study."""

from paretune.analyse.claims.card import score_card

__all__ = ["score_card"]

"""Learning-rate schedules, as factors of an arm's peak rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paretune.study.quantity import Quantity
from paretune.study.schedule import Schedule


@dataclass(frozen=True)
class Span:
    """How spans of a schedule become steps in one study."""

    tokens_per_step: int
    steps_per_epoch: int

    def steps(self, span: str, total: int) -> int:
        """Steps of ``10%`` of ``total``, or of a quantity such as ``100ba``."""
        if span.endswith("%"):
            return round(float(span[:-1]) / 100 * total)
        return Quantity.parse(span).steps(
            tokens_per_step=self.tokens_per_step, steps_per_epoch=self.steps_per_epoch
        )


@dataclass(frozen=True)
class Resolved:
    """A schedule in steps: factor(t) for t = 0, 1, ... ``total`` - 1.

    Linear warm-up from 0 at t = 0, as in transformers and Composer. Then:

    - constant, trapezoid: 1.
    - cosine: final + (1 - final) (1 + cos(pi x)) / 2, x running from 0 to 1 after warm-up
      (Composer's CosineAnnealingWithWarmup with alpha_f = final; transformers' with final = 0).
    - inverse_sqrt: sqrt(warmup / t), LLM Foundry's with t_scale = t_warmup and alpha_f_decay = 0.

    A cooldown falls linearly from the factor at its start to ``final``.
    """

    shape: str
    warmup: int
    cooldown_start: int
    total: int
    final: float

    def factor(self, t: int) -> float:
        """The factor at optimizer step ``t`` (0-based)."""
        if t >= self.cooldown_start and self.total > self.cooldown_start:
            left = (self.total - t) / (self.total - self.cooldown_start)
            return self.final + (self._before(self.cooldown_start) - self.final) * left
        return self._before(t)

    def _before(self, t: int) -> float:
        if t < self.warmup:
            return t / self.warmup
        if self.shape == "cosine":
            x = (t - self.warmup) / max(1, self.total - self.warmup)
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, x)))
        if self.shape == "inverse_sqrt":
            return math.sqrt(max(1, self.warmup) / max(1, t))
        return 1.0


def resolve(schedule: Schedule, span: Span, *, total: int, warmup_total: int) -> Resolved:
    """A schedule for a run of ``total`` steps; a warm-up share is taken of ``warmup_total``."""
    cooldown = min(total, span.steps(schedule.cooldown_span(), total))
    return Resolved(
        shape=schedule.shape,
        warmup=span.steps(schedule.warmup, warmup_total),
        cooldown_start=total - cooldown,
        total=total,
        final=schedule.final,
    )

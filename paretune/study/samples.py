"""Several drawn answers to each held-out prompt, as a study file asks for them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictFloat, StrictInt, model_validator

from paretune.study.mistakes import Mistake, MistakesError
from paretune.study.strict import Strict


class Samples(Strict):
    """Draw answers as the paper did: what share is right, and how much they differ."""

    count: StrictInt = Field(default=50, ge=2, description="answers to each prompt")
    temperature: StrictFloat = Field(default=0.2, gt=0)
    top_p: StrictFloat = Field(default=0.95, gt=0, le=1)
    seed: StrictInt = Field(default=0, ge=0)
    pass_at: tuple[Annotated[StrictInt, Field(ge=1)], ...] = Field(
        default=(1,), description="pass@k for these k: the chance that one of k answers is right"
    )

    @model_validator(mode="after")
    def _enough(self) -> Samples:
        found = [
            Mistake(
                ("pass_at", index),
                f"pass@{k} needs at least {k} answers, and count is {self.count}: raise count"
                if k > self.count
                else f"{k} is given twice",
            )
            for index, k in enumerate(self.pass_at)
            if k > self.count or k in self.pass_at[:index]
        ]
        if found:
            raise MistakesError(*found)
        return self

    def metric_names(self) -> list[str]:
        """The scores they give, without the target's name before them."""
        return [
            *(f"pass_at_{k}" for k in self.pass_at),
            "distinct",
            "distinct_pass",
            "distinct_fail",
            "similarity",
            "token_entropy",
        ]

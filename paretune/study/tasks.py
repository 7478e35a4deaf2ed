"""Benchmark tasks of the lm-evaluation-harness, as a study file names them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    model_validator,
)

from paretune.study.mistakes import Mistake, MistakesError, closest
from paretune.study.strict import Strict

# The metric that is usually quoted of a task; any other task has to say which one it means
USUAL_METRICS = {
    "arc_challenge": "acc_norm",
    "arc_easy": "acc_norm",
    "boolq": "acc",
    "commonsense_qa": "acc",
    "gsm8k": "exact_match,strict-match",
    "hellaswag": "acc_norm",
    "humaneval": "pass@1",
    "ifeval": "prompt_level_strict_acc",
    "lambada_openai": "acc",
    "mbpp": "pass_at_1",
    "mmlu": "acc",
    "openbookqa": "acc_norm",
    "piqa": "acc_norm",
    "sciq": "acc_norm",
    "winogrande": "acc",
}
EVERY = ("*",)  # in the place of a task's metrics: all of them
FORGETTING_SCORE = "forgetting_score"
# Whose mean accuracy the paper calls the forgetting score
FORGETTING_TASKS = ("hellaswag", "arc_challenge", "winogrande")


class GenerationKwargs(Strict):
    """How answers are generated, where that should differ from the task's own settings."""

    max_gen_toks: StrictInt | None = Field(default=None, ge=1, description="longest answer")
    do_sample: StrictBool | None = Field(default=None, description="sample instead of greedy")
    temperature: StrictFloat | None = Field(default=None, ge=0)
    top_p: StrictFloat | None = Field(default=None, gt=0, le=1)
    until: tuple[str, ...] | None = Field(default=None, description="texts that end an answer")

    def given(self) -> dict[str, Any]:
        """The settings that were given, as the harness spells them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self
            if value is not None
        }


class Task(Strict):
    """A task of the lm-evaluation-harness, with its prompts, few-shot choice and metrics."""

    name: str = Field(min_length=1, description="its name there, such as hellaswag")
    metrics: tuple[str, ...] = Field(
        default=(),
        description="which of the task's metrics to score, the main one first, such as acc_norm or "
        "exact_match,strict-match",
    )
    num_fewshot: StrictInt | None = Field(
        default=None, ge=0, description="worked examples before each question; the task's own"
    )
    limit: StrictInt | None = Field(
        default=None, ge=1, description="score only this many documents, the first ones"
    )
    repeats: StrictInt | None = Field(
        default=None, ge=1, description="answers generated for each question; the task's own"
    )
    generation_kwargs: GenerationKwargs | None = Field(
        default=None, description="how answers are generated; the task's own"
    )

    @model_validator(mode="after")
    def _metrics(self) -> Task:
        if self.metrics:
            return self
        if self.name not in USUAL_METRICS:
            near = closest(self.name, USUAL_METRICS)
            hint = f"; did you mean {near}?" if near else ""
            reason = f"missing; say which metric of {self.name} counts, for example [acc]{hint}"
            raise MistakesError(Mistake(("metrics",), reason))
        # The model is frozen: this completes it, once
        object.__setattr__(self, "metrics", (USUAL_METRICS[self.name],))
        return self

    def metric_names(self) -> list[str]:
        """Its scores, as TASK/METRIC, the main one first."""
        return [f"{self.name}/{metric}" for metric in self.metrics]


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


TaskField = Annotated[Task, BeforeValidator(_by_name)]


def named_twice(tasks: tuple[Task, ...], taken: set[str]) -> list[Mistake]:
    """Tasks whose name another task or text has already; paths start at the list of tasks."""
    found = []
    for index, task in enumerate(tasks):
        if task.name in taken:
            reason = f"'{task.name}' is listed already; a task belongs to one side, once"
            found.append(Mistake((index, "name"), reason))
        taken.add(task.name)
    return found

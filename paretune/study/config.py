"""The study file: one question, complete. Every key of the YAML is a field here."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    StrictBool,
    StrictFloat,
    StrictInt,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from paretune.study.arms import ArmConfig
from paretune.study.contradictions import contradictions
from paretune.study.mistakes import Mistake, MistakesError
from paretune.study.places import Places
from paretune.study.quantity import EXAMPLES, Quantity
from paretune.study.samples import Samples
from paretune.study.share import Share
from paretune.study.sources import DataConfig
from paretune.study.strict import Strict
from paretune.study.tasks import FORGETTING_SCORE, FORGETTING_TASKS, TaskField

QuantityField = Annotated[
    Quantity,
    BeforeValidator(Quantity.parse),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": ["string", "number"], "description": EXAMPLES}),
]

Heldout = Annotated[
    Annotated[Share, Tag("a share")] | Annotated[DataConfig, Tag("data of its own")],
    Discriminator(lambda value: "data of its own" if _is_mapping(value) else "a share"),
]


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict | Strict)


TargetMetric = Literal["bits_per_byte", "cloze", "exact_match", "kl", "reverse_kl"]
# Metrics of the target that say how far an arm went, not what it learned
DRIFT = ("kl", "reverse_kl")


class Target(Strict):
    """The domain being learned: its training data, and the metrics that show learning."""

    data: DataConfig
    heldout: Heldout = Field(
        default=0.05, description="a share of the groups, kept out of training; or data of its own"
    )
    metrics: tuple[TargetMetric, ...] = Field(default=("bits_per_byte",), min_length=1)
    samples: Samples | None = Field(
        default=None, description="several drawn answers to each prompt (ift): how they differ"
    )
    tasks: tuple[TaskField, ...] = Field(default=(), description="benchmarks that show learning")
    items: StrictInt = Field(
        default=64, ge=1, description="held-out blocks (cpt) or pairs (ift) to score"
    )
    answer_tokens: StrictInt = Field(
        default=16, ge=1, description="longest generated answer (exact_match)"
    )

    @property
    def learned(self) -> list[TargetMetric]:
        """The metrics that show what was learned, not only how far an arm went."""
        return [metric for metric in self.metrics if metric not in DRIFT]


class SourceText(Strict):
    """A text that the base could already predict; what an arm loses on it is forgetting."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="what the report calls it"
    )
    data: DataConfig
    metrics: tuple[Literal["bits_per_byte", "cloze"], ...] = Field(
        default=("bits_per_byte",), min_length=1
    )
    items: StrictInt = Field(default=64, ge=1, description="blocks, and cloze questions, to score")


class SelfProbe(Strict):
    """Text sampled once from the base; an arm's divergence from the base is measured on it."""

    samples: StrictInt = Field(default=64, ge=1)
    tokens: StrictInt = Field(default=256, ge=8, description="length of each sample")
    seed: StrictInt = Field(default=0, ge=0)


class Source(Strict):
    """What the base could do before: the metrics that show forgetting."""

    self_probe: SelfProbe | None = SelfProbe()
    texts: tuple[SourceText, ...] = ()
    tasks: tuple[TaskField, ...] = Field(default=(), description="benchmarks that show forgetting")

    @model_validator(mode="after")
    def _something(self) -> Source:
        found = []
        names = [text.name for text in self.texts]
        for index, name in enumerate(names):
            if name in ("target", "self_probe", FORGETTING_SCORE):
                reason = f"'{name}' is taken: give the text another name"
                found.append(Mistake(("texts", index, "name"), reason))
            if name in names[:index]:
                reason = f"'{name}' is the name of another text: give each its own"
                found.append(Mistake(("texts", index, "name"), reason))
        if self.self_probe is None and not self.texts and not self.tasks:
            reason = (
                "nothing shows forgetting: leave this out (there is a default), or give texts or "
                "tasks"
            )
            found.append(Mistake(("self_probe",), reason))
        if found:
            raise MistakesError(*found)
        return self


class Training(Strict):
    """What all arms share: the shape of a batch and how text becomes tokens."""

    block_length: StrictInt = Field(default=512, ge=8, description="tokens in a row")
    batch_size: StrictInt = Field(default=16, ge=1, description="rows in an optimizer step")
    template: Literal["auto", "chat", "plain"] = Field(
        default="auto",
        description="how a pair is written (ift): the tokenizer's chat template, or plain",
    )
    full_together: StrictBool = Field(
        default=False,
        description="on a GPU, full arms of a small base (up to 500M parameters) share a cohort",
    )
    devices_per_cohort: StrictInt | None = Field(
        default=None,
        ge=1,
        description="shard the base of every cohort over so many processes (FSDP2), on a GPU each; "
        "by default only where one GPU has no room, and 1 never shards",
    )
    offload: StrictBool = Field(
        default=False,
        description="where a cohort is sharded, keep what is shared in the machine's memory: "
        "weights, and a full arm's gradients and optimizer states",
    )
    repeat: StrictBool = Field(
        default=False, description="a token budget may pass over the data more than once"
    )
    max_bad_rows: Share = Field(
        default=0.01, description="stop when more than this share of rows is bad"
    )


class Budgets(Strict):
    """When every arm is scored, and how its runs are laid out."""

    at: tuple[QuantityField, ...] = Field(min_length=1)
    mode: Literal["hot", "separate", "cooldown"] = Field(
        default="hot",
        description="hot: scored as one run passes; separate: a run for each; cooldown: one trunk, "
        "a branch with a learning rate falling to its end for each",
    )

    @field_validator("at", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else [value]

    @field_validator("at")
    @classmethod
    def _ascending(cls, value: tuple[Quantity, ...]) -> tuple[Quantity, ...]:
        """Sorted where all have one unit; what ``8M`` is in epochs, only the data can say."""
        for index, quantity in enumerate(value):
            if quantity in value[:index]:
                raise MistakesError(Mistake((index,), f"{quantity} is given twice"))
        if len({quantity.unit for quantity in value}) == 1:
            return tuple(sorted(value, key=lambda quantity: quantity.amount))
        return value


class RepeatBest(Strict):
    """After the sweep, train the best arm of each group again under other seeds."""

    seeds: tuple[Annotated[StrictInt, Field(ge=0)], ...] = Field(min_length=1)
    per: tuple[Literal["method", "rank", "targets", "optimizer"], ...] = ("method", "rank")
    metric: str = Field(
        default="target/bits_per_byte", description="best at the last budget by this"
    )


class Frontier(Strict):
    """The two metrics whose trade-off the report shows first; names are SET/METRIC."""

    learning: str | None = None
    forgetting: str | None = None


class Checkpoints(Strict):
    """What is kept on disk."""

    keep: Literal["all", "last", "none"] = Field(
        default="all", description="budget checkpoints kept"
    )
    every_seconds: StrictFloat = Field(
        default=60.0, gt=0, description="time between states to resume from; more if saving is slow"
    )


class Base(Strict):
    """The pretrained causal LM all arms start from."""

    name: str = Field(min_length=1, description="pocket, a folder, or a Hugging Face model")
    revision: str | None = None
    trust_remote_code: StrictBool = False
    quantise: Literal["nf4", "int8"] | None = Field(
        default=None,
        description="keep the frozen matrices in 4 bits (as in QLoRA) or 8 bits; needs "
        "bitsandbytes, and arms of method lora",
    )


class StudyConfig(Strict):
    """A study: a base, a target, a source, arms and budgets."""

    paretune: Literal[1] = Field(default=1, description="version of this file format")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the study")
    about: str = Field(default="", description="a sentence or two for the report")
    base: Base
    regime: Literal["cpt", "ift"] = Field(
        description="cpt: continued pretraining on text; ift: instruction pairs, loss on responses"
    )
    target: Target
    source: Source = Source()
    mirror: dict[str, str] = Field(
        default={},
        description="local files in the place of data sets of the hub, for tasks: "
        "the data set's name, and a path with {split} in it",
    )
    sandbox: str = Field(
        default="auto", description="where tasks run programs that a model wrote; see the docs"
    )
    training: Training = Training()
    defaults: dict[str, Any] = Field(
        default={}, description="settings for every arm that has no other"
    )
    arms: tuple[dict[str, Any], ...] = Field(min_length=1)
    budgets: Budgets
    repeat_best: RepeatBest | None = None
    frontier: Frontier = Frontier()
    checkpoints: Checkpoints = Checkpoints()

    @field_validator("base", mode="before")
    @classmethod
    def _base_by_name(cls, value: Any) -> Any:
        if isinstance(value, dict | Base):
            return value
        if not isinstance(value, str):
            raise ValueError("expected pocket, a folder, or the name of a Hugging Face model")
        return {"name": value}

    @model_validator(mode="after")
    def _coherent(self) -> StudyConfig:
        found = contradictions(self)
        if found:
            raise MistakesError(*found)
        return self

    def metric_names(self) -> list[str]:
        """Every score an arm gets, as SET/METRIC, learning first."""
        return self.learning_metrics() + self.forgetting_metrics()

    def learning_metrics(self) -> list[str]:
        """The scores of the target: on its held-out data, then of its tasks."""
        names = [f"target/{metric}" for metric in self.target.metrics]
        if self.target.samples is not None:
            names += [f"target/{metric}" for metric in self.target.samples.metric_names()]
        return names + [name for task in self.target.tasks for name in task.metric_names()]

    def forgetting_metrics(self) -> list[str]:
        """The scores of the source; the mean of the paper's three tasks where all are scored."""
        names = []
        if self.source.self_probe is not None:
            names += ["self_probe/kl", "self_probe/bits_per_byte"]
        names += [f"{text.name}/{metric}" for text in self.source.texts for metric in text.metrics]
        names += [name for task in self.source.tasks for name in task.metric_names()]
        if {task.name for task in self.source.tasks} >= set(FORGETTING_TASKS):
            names.append(FORGETTING_SCORE)
        return names

    def learning_metric(self) -> str:
        """The metric on the frontier's learning axis: a task where there is one."""
        return self.frontier.learning or self.learning_axes()[0]

    def learning_axes(self) -> list[str]:
        """Metrics that may be the learning axis, the usual one first: a task, exact answers, ..."""
        tasks = [task.metric_names()[0] for task in self.target.tasks]
        own = [f"target/{metric}" for metric in reversed(self.target.learned)]
        return [*tasks, *own]

    def forgetting_metric(self) -> str:
        """The metric on the frontier's forgetting axis: the paper's, a task, or the first."""
        names = self.forgetting_metrics()
        tasks = [task.metric_names()[0] for task in self.source.tasks]
        if FORGETTING_SCORE in names:
            tasks = [FORGETTING_SCORE]
        return self.frontier.forgetting or [*tasks, *names][0]


class Study(Strict):
    """A validated study file: the configuration and the arms its sweeps stand for."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    config: StudyConfig
    arms: tuple[ArmConfig, ...]
    places: Places = Field(default=Places(), exclude=True, repr=False)


def safe_name(name: str) -> str:
    """``name`` with everything that a file name should not hold replaced by ``-``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "study"

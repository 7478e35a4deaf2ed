"""An arm: one method with all its hyperparameters and one seed; its id is a hash of them."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from paretune.study.mistakes import Mistake, MistakesError, closest
from paretune.study.schedule import Schedule

TargetKeyword = Literal["all", "attention", "mlp"]
LORA_FIELDS = (
    "rank",
    "alpha",
    "targets",
    "lora_dropout",
    "scaling",
    "loraplus_lr_ratio",
    "init",
    "dora",
    "bias",
)
# How a variant of LoRA is left off; an arm that says so is the arm that says nothing
_OFF: dict[str, Any] = {"scaling": "standard", "init": "default", "dora": False, "bias": "none"}
# What people call a variant, and how it is asked for
_VARIANTS = {
    "dora": "dora: true",
    "rslora": "scaling: rslora",
    "pissa": "init: pissa",
    "loraplus": "loraplus_lr_ratio: 16",
    "lora+": "loraplus_lr_ratio: 16",
}
_RSLORA_ALPHA = (
    "with scaling: rslora give a number, for example alpha: 16; a multiple of the rank would undo "
    "what alpha / sqrt(r) is for"
)


class ArmConfig(BaseModel):
    """One way of finetuning, complete. Its hash is the arm's id."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Literal["full", "lora"] = Field(description="train all weights, or low-rank adapters")
    learning_rate: StrictFloat = Field(gt=0, description="peak learning rate")
    rank: StrictInt | None = Field(default=None, ge=1, description="LoRA rank r")
    alpha: StrictFloat | None = Field(
        default=None,
        gt=0,
        description="LoRA alpha, a number or a multiple of the rank (2r); gamma=alpha/r",
    )
    scaling: Literal["standard", "rslora"] | None = Field(
        default=None, description="standard: gamma=alpha/r; rslora: gamma=alpha/sqrt(r)"
    )
    targets: TargetKeyword | tuple[str, ...] | None = Field(
        default=None,
        description="which linear layers carry adapters: all, attention, mlp or their names",
    )
    lora_dropout: StrictFloat | None = Field(
        default=None, ge=0, lt=1, description="dropout on an adapter's input"
    )
    init: Literal["default", "pissa"] | None = Field(
        default=None,
        description="adapters begin at zero (default), or as the base's leading singular vectors",
    )
    loraplus_lr_ratio: StrictFloat | None = Field(
        default=None, ge=1, description="LoRA+: B learns at this multiple of the learning rate"
    )
    dora: StrictBool | None = Field(
        default=None, description="DoRA: the length of each output's weights is trained by itself"
    )
    bias: Literal["none", "all", "lora_only"] | None = Field(
        default=None,
        description="biases trained beside the adapters: all of the base's, or the adapted layers'",
    )
    attention_dropout: StrictFloat | None = Field(
        default=None, ge=0, lt=1, description="dropout on attention weights (full finetuning)"
    )
    optimizer: Literal["adamw", "lion"] = Field(
        default="adamw", description="lion is decoupled LionW"
    )
    betas: tuple[StrictFloat, StrictFloat] | None = Field(
        default=None,
        description="default 0.9, 0.999 for adamw and 0.9, 0.95 for lion (the paper's)",
    )
    eps: StrictFloat = Field(default=1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: StrictFloat = Field(
        default=0.0, ge=0, description="torch's convention: times the learning rate"
    )
    weight_decay_relative: StrictFloat | None = Field(
        default=None,
        ge=0,
        description="LLM Foundry's convention: weights shrink by this at the peak rate, whatever "
        "the rate is; equals weight_decay = this / learning_rate",
    )
    clip: StrictFloat | None = Field(
        default=1.0, gt=0, description="largest gradient norm of the arm; null: off"
    )
    schedule: Schedule = Schedule()
    seed: StrictInt = Field(
        default=0, ge=0, description="adapter initialisation, dropout and data order"
    )

    @field_validator("method", mode="before")
    @classmethod
    def _variant_by_name(cls, value: Any) -> Any:
        if isinstance(value, str) and value.lower() in _VARIANTS:
            setting = _VARIANTS[value.lower()]
            raise ValueError(f"'{value}' is LoRA with a setting: write method: lora, {setting}")
        return value

    @field_validator("schedule", mode="before")
    @classmethod
    def _schedule_by_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        shapes = get_args(Schedule.model_fields["shape"].annotation)
        if value not in shapes:
            near = closest(value, shapes)
            hint = f"; did you mean {near}?" if near else ""
            raise ValueError(f"'{value}' is not a schedule; there is {', '.join(shapes)}{hint}")
        return {"shape": value}

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        """Fill in what depends on the method and the optimizer."""
        if not isinstance(value, dict):
            return value
        value = dict(value)
        for name, off in _OFF.items():
            if type(value.get(name)) is type(off) and value[name] == off:
                value[name] = None
        if type(value.get("loraplus_lr_ratio")) in (int, float) and value["loraplus_lr_ratio"] == 1:
            value["loraplus_lr_ratio"] = None
        if value.get("method") == "lora":
            if value.get("scaling") == "rslora" and isinstance(value.get("alpha", "2r"), str):
                raise MistakesError(Mistake(("alpha",), _RSLORA_ALPHA))
            for name, default in (("alpha", "2r"), ("targets", "all"), ("lora_dropout", 0.0)):
                if value.get(name) is None:
                    value[name] = default
        if value.get("betas") is None:
            value["betas"] = (0.9, 0.95) if value.get("optimizer") == "lion" else (0.9, 0.999)
        return value

    @field_validator("alpha", mode="before")
    @classmethod
    def _alpha_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        return _alpha(value, info.data.get("rank"))

    @field_validator("betas")
    @classmethod
    def _betas_in_range(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not all(0 <= beta < 1 for beta in value):
            raise ValueError("each beta must lie between 0 and 1 (1 excluded)")
        return value

    @field_validator("targets")
    @classmethod
    def _some_target(cls, value: Any) -> Any:
        if value == ():
            raise ValueError("an empty list adapts nothing: name layers, or write all")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> ArmConfig:
        found = _conflicts(self)
        if found:
            raise MistakesError(*found)
        return self

    @property
    def decay(self) -> float:
        """Weight decay in torch's convention: each step multiplies weights by 1 - lr * decay."""
        if self.weight_decay_relative:
            return self.weight_decay_relative / self.learning_rate
        return self.weight_decay

    @property
    def gamma(self) -> float:
        """LoRA's scaling: alpha / r (Hu et al., 2021); alpha / sqrt(r) in rsLoRA.

        rsLoRA: Kalajdzievski, 2023, arXiv 2312.03732.
        """
        assert self.alpha is not None
        assert self.rank is not None
        return self.alpha / (self.rank**0.5 if self.scaling == "rslora" else self.rank)

    @property
    def family(self) -> str:
        """What kind of finetuning this is: ``full``, ``lora``, or the variant: ``dora-rslora``.

        Arms of one family and rank are compared as one method. Which layers are adapted, alpha,
        dropout and decay are settings within a family.
        """
        variants = [
            name
            for name, on in (
                ("dora", self.dora),
                ("pissa", self.init),
                ("rslora", self.scaling),
                ("loraplus", self.loraplus_lr_ratio),
            )
            if on
        ]
        names = variants or [self.method]
        return "-".join([*names, "bias"] if self.bias else names)

    def record(self) -> dict[str, Any]:
        """The arm as JSON values; settings that do not apply to its method are left out.

        ``ArmConfig.model_validate`` of a record gives an equal arm.
        """
        return self.model_dump(mode="json", exclude_none=True) | {"clip": self.clip}

    @property
    def id(self) -> str:
        """A readable name ending in a hash of every setting, stable across versions and machines.

        Settings that are unset are left out of the hash, so that a later version which knows more
        of them gives old arms their old ids.
        """
        canonical = json.dumps(self.record(), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
        rank = f"-r{self.rank}" if self.method == "lora" else ""
        return f"{self.family}{rank}-lr{self.learning_rate:g}-s{self.seed}-{digest}"

    @property
    def label(self) -> str:
        """A short name for charts: family, rank and learning rate."""
        rank = f" r{self.rank}" if self.method == "lora" else ""
        return f"{self.family}{rank} lr {self.learning_rate:g}"


def _conflicts(arm: ArmConfig) -> list[Mistake]:
    """Settings of one arm that do not go together."""
    found = []
    if arm.method == "full":
        given = [key for key in LORA_FIELDS if getattr(arm, key) is not None]
        found += [Mistake((key,), "only for method lora, not for full") for key in given]
    if arm.method == "lora":
        if arm.rank is None:
            found.append(Mistake(("rank",), "missing; a lora arm needs one, for example rank: 16"))
        if arm.attention_dropout is not None:
            found.append(
                Mistake(("attention_dropout",), "only for method full; lora has lora_dropout")
            )
    if arm.weight_decay and arm.weight_decay_relative:
        reason = "weight_decay_relative says the same in another convention: give one of them"
        found.append(Mistake(("weight_decay",), reason))
    return found


def _alpha(value: Any, rank: Any) -> Any:
    """Resolve ``2r`` to a number; a value of another type is left to the type check."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        if not text.endswith("r"):
            raise ValueError
        multiple = float(text[:-1] or 1)
    except ValueError:
        raise ValueError(f"'{value}': write a number, or a multiple of the rank as 2r") from None
    return None if rank is None else multiple * rank

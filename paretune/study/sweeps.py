"""Sweeps: from an entry under ``arms``, with its lists, to the settings of each arm."""

from __future__ import annotations

import itertools
import math
from typing import Any, get_args

from pydantic import BaseModel

from paretune.study.arms import LORA_FIELDS, ArmConfig, TargetKeyword
from paretune.study.mistakes import Mistake, MistakesError

MOST_ARMS = 1000  # that one entry may stand for


def expand(group: dict[str, Any], defaults: dict[str, Any]) -> list[dict[str, Any]]:
    """All settings that one entry under ``arms`` stands for.

    A list is a sweep; several lists give their cartesian product. Settings under ``paired`` are
    lists of one length and advance together. Values that are lists themselves (``targets`` by
    name, ``betas``) are swept as lists of lists; ``targets: [all, mlp]`` is a sweep because both
    are keywords.

    Raises:
        MistakesError: a paired list of another length, an empty list, a setting given twice, or
            more than 1,000 arms.
    """
    group = dict(group)
    paired = group.pop("paired", {})
    if not isinstance(paired, dict) or not all(isinstance(v, list) for v in paired.values()):
        raise MistakesError(
            Mistake(("paired",), "give lists, for example {rank: [16, 64], learning_rate: [..]}")
        )
    lengths = {key: len(values) for key, values in paired.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise MistakesError(Mistake(("paired",), f"the lists must be of one length ({counts})"))
    for key in group:
        if key in paired:
            raise MistakesError(Mistake(("paired", key), "given both in paired and beside it"))
    for key, value in {**group, **paired}.items():
        if value == [] and (key in paired or _is_sweep(key, value)):
            at = ("paired", key) if key in paired else (key,)
            raise MistakesError(Mistake(at, "an empty list gives no arm"))
    if "method" in defaults and "method" not in paired:
        group = {"method": defaults["method"], **group}
    axes = [[{key: item} for item in swept(key, value)] for key, value in group.items()]
    if paired:
        count = next(iter(lengths.values()))
        axes.append([{key: paired[key][i] for key in paired} for i in range(count)])
    expanded: list[dict[str, Any]] = []
    for own in _product(axes, MOST_ARMS):
        inherited = {k: v for k, v in defaults.items() if k not in own and _applies(k, own)}
        axes = [[{key: item} for item in swept(key, value)] for key, value in inherited.items()]
        expanded += [{**rest, **own} for rest in _product(axes, MOST_ARMS - len(expanded))]
    return expanded


def complete_defaults(defaults: dict[str, Any]) -> dict[str, Any]:
    """``defaults`` with every setting that an arm would otherwise fill in by itself, as JSON."""
    own: dict[str, Any] = {"alpha": "2r", "targets": "all", "lora_dropout": 0.0}
    for key, field in ArmConfig.model_fields.items():
        if not field.is_required() and field.default is not None:
            value = field.default
            own[key] = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    kept = {k: v for k, v in own.items() if k in defaults or _applies(k, defaults)}
    return kept | defaults


def swept(key: str, value: Any) -> list[Any]:
    """The values that a setting takes in turn: the items of a sweep, or the one value."""
    return value if _is_sweep(key, value) else [value]


def _product(axes: list[list[dict[str, Any]]], most: int) -> list[dict[str, Any]]:
    if math.prod(len(axis) for axis in axes) > most:
        raise MistakesError(Mistake((), f"the lists multiply to more than {MOST_ARMS:,} arms"))
    return [
        {key: value for part in combination for key, value in part.items()}
        for combination in itertools.product(*axes)
    ]


def _applies(key: str, own: dict[str, Any]) -> bool:
    """Whether a default is meant for this arm.

    Defaults for LoRA pass by a full arm, and the other way round; weight decay in one convention
    passes by an arm that states it in the other.
    """
    if key in ("weight_decay", "weight_decay_relative"):
        return not {"weight_decay", "weight_decay_relative"} & set(own)
    if own.get("method") == "full":
        return key not in LORA_FIELDS
    if own.get("method") == "lora":
        return key != "attention_dropout"
    return True


def _is_sweep(key: str, value: Any) -> bool:
    if not isinstance(value, list):
        return False
    if key == "betas":
        return any(isinstance(item, list) for item in value)
    if key == "targets":
        return all(isinstance(item, list) or item in get_args(TargetKeyword) for item in value)
    return True

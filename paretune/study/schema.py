"""The JSON Schema of study files, by which an editor completes keys and marks mistakes."""

from __future__ import annotations

import json
from typing import Any

from paretune.study.arms import ArmConfig
from paretune.study.config import StudyConfig

URL = "https://json-schema.org/draft/2020-12/schema"


def study_schema() -> dict[str, Any]:
    """JSON Schema of a whole study file, sweeps and short forms included."""
    schema = StudyConfig.model_json_schema(by_alias=True)
    arm = ArmConfig.model_json_schema(by_alias=True)
    definitions = schema["$defs"] | arm.pop("$defs")
    settings = {key: _short_forms(key, value) for key, value in arm["properties"].items()}
    swept = {
        key: {
            "anyOf": [value, {"type": "array", "items": value, "minItems": 1}],
            "description": value.get("description", ""),
        }
        for key, value in settings.items()
    }
    paired = {
        "type": "object",
        "description": "lists of one length that advance together",
        "properties": {
            key: {"type": "array", "items": value, "minItems": 1} for key, value in settings.items()
        },
        "additionalProperties": False,
    }
    definitions["ArmSettings"] = {
        "type": "object",
        "description": "settings for every arm that has no other; a list is a sweep",
        "properties": swept,
        "additionalProperties": False,
    }
    definitions["ArmEntry"] = {
        "type": "object",
        "description": "one or more arms; a list is a sweep, several lists every combination",
        "properties": swept | {"paired": paired},
        "additionalProperties": False,
    }
    properties = schema["properties"]
    properties["defaults"] = {"$ref": "#/$defs/ArmSettings"}
    properties["arms"]["items"] = {"$ref": "#/$defs/ArmEntry"}
    properties["base"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Base"}]} | {
        "description": definitions["Base"]["properties"]["name"]["description"]
    }
    for side in ("Target", "Source"):
        tasks = definitions[side]["properties"]["tasks"]
        tasks["items"] = {"anyOf": [{"type": "string"}, tasks["items"]]}
    definitions["Task"]["required"] = ["name"]
    budgets = definitions["Budgets"]["properties"]
    budgets["at"] = {
        "anyOf": [budgets["at"], budgets["at"]["items"]],
        "description": "one or more tokens, epochs or batches",
    }
    return {"$schema": URL, **schema, "title": "Paretune study", "$defs": definitions}


def schema_text() -> str:
    """The schema as it is published in ``docs/study.schema.json``."""
    return json.dumps(study_schema(), indent=2, ensure_ascii=False) + "\n"


def _short_forms(key: str, value: dict[str, Any]) -> dict[str, Any]:
    """A setting's schema with what the file may write instead of the value itself."""
    short = {
        "alpha": {"type": "string", "pattern": r"^\s*([0-9.]+(e[-+]?[0-9]+)?)?r\s*$"},
        "schedule": {"enum": ["constant", "cosine", "inverse_sqrt", "trapezoid"]},
    }.get(key)
    if short is None:
        return value
    branches = value.get("anyOf", [{k: v for k, v in value.items() if k != "default"}])
    return (
        {**value, "anyOf": [*branches, short]}
        if "anyOf" in value
        else {"anyOf": [*branches, short]}
    )

"""pydantic's errors in plain words: one message for each key that is wrong."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from paretune.study.mistakes import Mistake, MistakesError, Path, closest, suggestion
from paretune.study.quantity import Quantity

_LIMITS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_PLURALS = {
    int: "whole numbers",
    float: "numbers",
    str: "names",
    Quantity: "quantities such as 8M, 2ep or 500ba",
}


def keys_of(model: type[BaseModel]) -> list[str]:
    """The keys a mapping for ``model`` may hold, as the file spells them."""
    return [field.alias or name for name, field in model.model_fields.items()]


def translate(error: ValidationError, model: type[BaseModel], document: Any) -> list[Mistake]:
    """One plain message for each key that pydantic found wrong in ``document``.

    Pydantic reports each branch of a union on its own; here they become one message, at the
    deepest place where something is wrong.
    """
    by_path: dict[Path, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        by_path.setdefault(_document_path(details, document), []).append(details)
    mistakes = []
    for path, group in by_path.items():
        deeper = any(len(other) > len(path) and other[: len(path)] == path for other in by_path)
        of_union = any(len(details["loc"]) > len(path) for details in group)
        if deeper and (of_union or group[0]["type"] == "too_short"):
            continue  # what is wrong inside says it better
        cause = group[0].get("ctx", {}).get("error")
        if isinstance(cause, MistakesError):
            mistakes += [Mistake(path + inner.path, inner.message) for inner in cause.found]
        else:
            mistakes.append(_mistake(path, group, model, document))
    return without_explained(mistakes)


def without_explained(mistakes: list[Mistake]) -> list[Mistake]:
    """Leave out a missing key where a misspelt one beside it explains why it is missing."""
    meant = {
        (*(part for part in m.path[:-1] if part != "paired"), m.meant) for m in mistakes if m.meant
    }
    return [m for m in mistakes if not (m.message.startswith("missing") and m.path in meant)]


def _document_path(details: ErrorDetails, document: Any) -> Path:
    """Where in the document an error lies: pydantic's location less the names of union members."""
    path: list[str | int] = []
    value = document
    tag_seen = False
    for position, part in enumerate(details["loc"]):
        last = position == len(details["loc"]) - 1
        if isinstance(value, dict):
            if "from" in value and not tag_seen and part == str(value["from"]):
                tag_seen = True
                continue
            if part == "from_":
                part = "from"
            if part not in value:
                if last and details["type"] == "missing":
                    path.append(part)
                continue
            value = value[part]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            continue
        path.append(part)
        tag_seen = False
    if details["type"].startswith("union_tag"):
        path.append("from")
    return tuple(path)


def _mistake(
    path: Path, group: list[ErrorDetails], model: type[BaseModel], document: Any
) -> Mistake:
    details = group[0]
    kind = details["type"]
    context = details.get("ctx", {})
    members = _members_at(model, document, path)
    value = value_at(document, path)
    if kind == "value_error":
        return Mistake(path, str(context["error"]))
    if kind == "extra_forbidden":
        parents = [m for m in _members_at(model, document, path[:-1]) if _is_model(m)]
        known = keys_of(parents[0])
        word = str(path[-1])
        return Mistake(path, f"unknown key{suggestion(word, known)}", closest(word, known))
    if kind == "missing" and not isinstance(value, list):
        return Mistake(path, f"missing; it holds {_purpose(model, document, path)}")
    if kind.startswith("union_tag"):
        known = (
            [name.strip("' ") for name in context["expected_tags"].split(",")]
            if "expected_tags" in context
            else _data_kinds(_members_at(model, document, path[:-1]))
        )
        if kind == "union_tag_not_found":
            return Mistake(path, f"missing; it says where the data comes from: {', '.join(known)}")
        near = closest(str(value), known)
        hint = f"; did you mean {near}?" if near else ""
        return Mistake(path, f"{found(value)} is not one of {', '.join(known)}{hint}")
    if kind in _LIMITS:
        word, limit = _LIMITS[kind]
        return Mistake(path, f"must be {word} {context[limit]:g}, found {_scalar(value)}")
    if kind == "finite_number":
        return Mistake(path, f"must be a finite number, found {_scalar(value)}")
    if kind == "too_short" and not value:
        return Mistake(path, f"the list is empty; expected {_expected(members)}")
    if kind == "string_pattern_mismatch":
        return Mistake(
            path,
            f"{found(value)} is not a name: use letters, digits, '-' and '_', and begin with a "
            "letter or a digit",
        )
    choices = [choice for member in members for choice in _choices(member)]
    near = closest(value, choices) if isinstance(value, str) else None
    hint = f"; did you mean {near}?" if near else ""
    if isinstance(value, str) and near == value:
        hint = f"; write [{value}]"
    if value == "":
        return Mistake(path, f"empty; it holds {_purpose(model, document, path)}")
    return Mistake(path, f"expected {_expected(members)}, found {found(value)}{hint}")


def found(value: Any) -> str:
    """A value of the document in a few words."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"the text '{value if len(value) <= 60 else value[:57] + '...'}'"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, dict):
        return "a mapping (key: value)"
    return _scalar(value)


def _scalar(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _purpose(model: type[BaseModel], document: Any, path: Path) -> str:
    """What a missing key should hold: its description, or that of the mapping it stands for."""
    for member in _members_at(model, document, path[:-1]):
        if _is_model(member):
            for name, field in member.model_fields.items():
                if (field.alias or name) == path[-1]:
                    if field.description:
                        return str(field.description)
                    inner = [m for m in _members(field.annotation) if _is_model(m)]
                    if len(inner) == 1 and inner[0].__doc__:
                        text = str(inner[0].__doc__).strip().split("\n")[0].rstrip(".")
                        return text[0].lower() + text[1:]
                    return _expected(_members(field.annotation))
    return "a value"


def value_at(document: Any, path: Path) -> Any:
    """What the document holds at ``path``; None where it holds nothing."""
    for part in path:
        if isinstance(document, dict):
            document = document.get(part)
        elif isinstance(document, list) and isinstance(part, int) and part < len(document):
            document = document[part]
        else:
            return None
    return document


def _members_at(model: type[BaseModel], document: Any, path: Path) -> list[Any]:
    """The types allowed at ``path``; a data source's ``from`` chooses among the mappings."""
    members: list[Any] = [model]
    for part in path:
        step: list[Any] = []
        for member in members:
            if _is_model(member):
                for name, field in member.model_fields.items():
                    if (field.alias or name) == part:
                        step += _members(field.annotation)
            elif get_origin(member) is tuple and isinstance(part, int):
                step += _members(get_args(member)[0])
        document = value_at(document, (part,))
        kind = document.get("from") if isinstance(document, dict) else None
        chosen = [m for m in step if _is_model(m) and isinstance(kind, str) and kind in _kinds(m)]
        members = chosen or step
    return members


def _members(annotation: Any) -> list[Any]:
    """The leaves of a type: unions and annotations taken apart."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin is Union or origin is types.UnionType:
        return [leaf for member in get_args(annotation) for leaf in _members(member)]
    return [annotation]


def _is_model(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, BaseModel)


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    """The values of ``from`` that choose this mapping."""
    field = model.model_fields.get("from_")
    return get_args(field.annotation) if field else ()


def _data_kinds(members: list[Any]) -> list[str]:
    return [kind for member in members if _is_model(member) for kind in _kinds(member)]


def _choices(member: Any) -> list[str]:
    if get_origin(member) is Literal:
        return [str(choice) for choice in get_args(member)]
    if get_origin(member) is tuple:
        return [c for inner in _members(get_args(member)[0]) for c in _choices(inner)]
    return []


def _expected(members: list[Any]) -> str:
    """What may stand there, in plain words."""
    kinds = _data_kinds(members)
    words = []
    for member in members:
        if get_origin(member) is Literal:
            words += [str(choice) for choice in get_args(member)]
        elif get_origin(member) is tuple:
            words.append(_list_of(get_args(member)))
        elif _is_model(member):
            if not kinds:
                words.append(f"a mapping with keys such as {', '.join(keys_of(member)[:3])}")
        elif member is type(None):
            continue
        elif get_origin(member) is dict or member is dict:
            words.append("a mapping (key: value)")
        else:
            words.append(_NAMES.get(member, "a value"))
    if kinds:
        words.append(f"a mapping with the key from: {', '.join(kinds)}")
    return _either(list(dict.fromkeys(words)))


def _list_of(arguments: tuple[Any, ...]) -> str:
    if arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} {_PLURALS.get(_members(arguments[0])[0], 'values')}"
    choices = [choice for member in _members(arguments[0]) for choice in _choices(member)]
    if choices:
        return f"a list of {_either(choices)}"
    inner = _members(arguments[0])[0]
    return f"a list of {_PLURALS.get(inner, 'mappings (key: value)')}"


def _either(words: list[str]) -> str:
    if len(words) > 2:
        words = [", ".join(words[:-1]), words[-1]]
    return " or ".join(words)

"""YAML text to plain values, with the line of every key kept for messages."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from paretune.study.mistakes import Path, shown

MOST_CHARACTERS = 1_000_000
MOST_VALUES = 100_000
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values: ``1e-4`` is a number, ``no`` is text, ``1:30`` is text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _kind, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9][0-9_]{0,30}$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(_pattern), _first)


RESOLVERS = _Loader.yaml_implicit_resolvers  # for writing text that reads back as it was


class YamlError(Exception):
    """The text is not one plain YAML mapping; ``line`` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        self.line = line
        self.message = message
        super().__init__(f"line {line}: {message}")


@dataclass
class Tree:
    """A document's values, and the line on which each key or list item stands."""

    value: dict[str, Any]
    lines: dict[Path, int] = field(default_factory=dict)
    errors: list[YamlError] = field(default_factory=list)  # duplicate keys and the like

    def line(self, path: Path) -> int:
        """The line of ``path``, or of the nearest place above it that is in the document."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read(text: str) -> Tree:
    """Parse ``text``; only plain values are built, by the rules of YAML 1.2 (``1e-4`` is a number).

    Raises:
        YamlError: the text is not YAML, or not a mapping.
    """
    if len(text) > MOST_CHARACTERS:
        raise YamlError(1, f"{len(text):,} characters are too many for a study file")
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = f"{ord(text[error.position]):04x}"
        raise YamlError(line, f"a character that YAML does not allow (#x{code})") from None
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text) from None
    except RecursionError:
        raise YamlError(1, "nested too deeply") from None
    if node is None:
        raise YamlError(1, "the file is empty; 'paretune init' writes a study to start from")
    if not isinstance(node, yaml.MappingNode):
        raise YamlError(
            node.start_mark.line + 1, "expected keys and values (name: ..., base: ...) at the top"
        )
    builder = _Builder()
    return Tree(builder.mapping(node, (), ()), builder.lines, builder.errors)


def _whole(node: yaml.Node, path: Path) -> str:
    """A text, which an escape such as ``\\ud800`` may have left with half of a character."""
    text = str(node.value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise YamlError(
            node.start_mark.line + 1,
            f"{shown(path) or 'the file'}: an escape that is half of a character (\\ud800, say)",
        ) from None
    return text


class _Builder:
    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self.errors: list[YamlError] = []
        self.count = 0

    def value(self, node: yaml.Node, path: Path, above: tuple[int, ...]) -> Any:
        line = node.start_mark.line + 1
        self.count += 1
        if self.count > MOST_VALUES:
            raise YamlError(
                line, f"more than {MOST_VALUES:,} values once its aliases are filled in"
            )
        if id(node) in above:
            raise YamlError(line, f"{shown(path)}: an alias that contains itself")
        if isinstance(node, yaml.MappingNode):
            self._plain(node, "map", path)
            return self.mapping(node, path, above)
        if isinstance(node, yaml.SequenceNode):
            self._plain(node, "seq", path)
            values = []
            for index, item in enumerate(node.value):
                self.lines[(*path, index)] = item.start_mark.line + 1
                values.append(self.value(item, (*path, index), (*above, id(node))))
            return values
        return self._scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: Path, above: tuple[int, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise YamlError(line, f"{shown(path) or 'the file'}: a key must be plain text")
            key = _whole(key_node, path)
            here = (*path, key)
            if key_node.tag == f"{_TAG}merge":
                for part in self._merge(value_node, path, (*above, id(node))):
                    merged = {**part, **merged}
                continue
            if key in result:
                self.errors.append(
                    YamlError(line, f"{shown(here)}: already given on line {self.lines[here]}")
                )
                continue
            self.lines[here] = line
            result[key] = self.value(value_node, here, (*above, id(node)))
        return {**merged, **result}

    def _merge(self, node: yaml.Node, path: Path, above: tuple[int, ...]) -> list[dict[str, Any]]:
        """The mappings behind a merge key ``<<``; a key written out wins over a merged one."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        kept = self.lines
        merged = []
        for part in parts:
            self.lines = {}
            value = self.value(part, path, above)
            if not isinstance(value, dict):
                raise YamlError(node.start_mark.line + 1, f"{shown(path)}: << takes a mapping")
            kept = {**self.lines, **kept}
            merged.append(value)
        self.lines = kept
        return merged

    def _plain(self, node: yaml.Node, kind: str, path: Path) -> None:
        if node.tag != f"{_TAG}{kind}":
            raise YamlError(
                node.start_mark.line + 1,
                f"{shown(path)}: the tag {node.tag.replace(_TAG, '!!')} is not for study files",
            )

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        text = _whole(node, path)
        kind = node.tag.removeprefix(_TAG)
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text)
            if kind == "float":
                return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        except (ValueError, KeyError):
            raise YamlError(
                node.start_mark.line + 1, f"{shown(path)}: '{text}' is not of the type !!{kind}"
            ) from None
        self._plain(node, "str", path)
        return text


def _syntax_error(error: yaml.MarkedYAMLError, text: str) -> YamlError:
    """PyYAML's complaint in a user's words."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark is not None else 1
    problem = error.problem or "not readable as YAML"
    written = text.splitlines()[line - 1] if line <= len(text.splitlines()) else ""
    if "'\\t'" in problem or written[: len(written) - len(written.lstrip())].count("\t"):
        return YamlError(line, "a tab where YAML wants spaces: indent with spaces")
    if "expected a single document" in (error.context or ""):
        return YamlError(line, "a second document begins: a study file holds one")
    if "mapping values are not allowed" in problem:
        return YamlError(
            line, "a ':' where no key can stand: check the indentation, or put the text in quotes"
        )
    if "could not find expected ':'" in problem:
        context = error.context_mark.line + 1 if error.context_mark else line
        return YamlError(context, "a key without ':' after it")
    if "end of stream" in problem or "<stream end>" in problem:
        context = error.context_mark.line + 1 if error.context_mark else line
        return YamlError(context, "a quote or bracket that opens here is not closed")
    if "cannot start any token" in problem:
        return YamlError(line, f"{problem.removeprefix('found ')}: put the text in quotes")
    if "undefined alias" in problem:
        return YamlError(
            line, f"{problem.replace('found ', '')}: no &anchor of that name before it"
        )
    where = f" ({error.context})" if error.context else ""
    if problem.endswith("but got '{'"):
        return YamlError(line, "a '{' where none can stand: put text that holds braces in quotes")
    return YamlError(line, f"not readable as YAML: {problem}{where}")

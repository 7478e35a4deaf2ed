"""Study files that were mutated: in their values, in their structure, in their characters."""

from __future__ import annotations

import copy
from typing import Any

import yaml
from hostile_values import NAMES, VALUES
from hypothesis import strategies as st

from paretune.study.recipes import list_recipes, read_recipe

RECIPES = [read_recipe(recipe.name) for recipe in list_recipes()]
TREES = [yaml.safe_load(text) for text in RECIPES]
# Files as a whole that have broken readers of YAML
WHOLE = [
    "",
    "\x00",
    "\ufeff",
    "---\n---\n",
    "a: &a [*a]",
    "a: &a {<<: *a}",
    "[" * 3000,
    "{a: " * 3000,
    "- " * 3000,
    "a: " + "9" * 5000,
    "a: " + "9" * 5000 + ".0",
    "? " * 2000,
    "a: !!python/object/apply:os.system [id]",
    "a: !!binary x",
    "a: !!timestamp 2001-13-45",
    "a: 2001-13-45",
    "a: 1:99:99",
    "a: 0o9",
    "&a a: *b",
    "%YAML 9.9\n---\n",
    "a: |\n" + " " * 100 + "x",
    "x\ty: 1",
    "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]" for i in range(12)),
    "arms: [{method: lora, rank: ["
    + ",".join(map(str, range(1, 900)))
    + "], seed: ["
    + ",".join(map(str, range(900)))
    + "], learning_rate: ["
    + ",".join(["1e-3"] * 900)
    + "]}]",
]


@st.composite
def study_texts(draw: st.DrawFn) -> str:
    """The text of one mutated study file."""
    how = draw(st.sampled_from(["values", "values", "structure", "characters", "lines", "whole"]))
    if how == "whole":
        return draw(st.sampled_from(WHOLE)) + draw(st.sampled_from(["", "\n", *RECIPES]))
    index = draw(st.integers(0, len(RECIPES) - 1))
    if how in ("values", "structure"):
        tree = copy.deepcopy(TREES[index])
        for _ in range(draw(st.integers(1, 4))):
            _mutate(draw, tree, how)
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=draw(st.booleans()))
    text = RECIPES[index]
    for _ in range(draw(st.integers(1, 5))):
        text = _spoil_lines(draw, text) if how == "lines" else _spoil_characters(draw, text)
    return text


def _mutate(draw: st.DrawFn, tree: Any, how: str) -> None:
    """Change one node of a tree in place."""
    holders = [node for node in _nodes(tree) if node]
    holder = draw(st.sampled_from(holders))
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key = draw(st.sampled_from(keys))
    if how == "values":
        holder[key] = draw(VALUES)
        return
    change = draw(st.sampled_from(["drop", "rename", "wrap", "swap", "repeat"]))
    if change == "drop":
        del holder[key]
    elif change == "rename" and isinstance(holder, dict):
        holder[draw(st.sampled_from(NAMES))] = holder.pop(key)
    elif change == "wrap":
        value = holder[key]
        holder[key] = draw(st.sampled_from([[value], {"x": value}, [value, value], [[value]]]))
    elif change == "swap":
        holder[key] = copy.deepcopy(draw(st.sampled_from(list(_nodes(tree)))))
    elif isinstance(holder, list):
        holder.extend(copy.deepcopy(holder * draw(st.integers(1, 3))))


def _nodes(tree: Any) -> list[Any]:
    found = [tree]
    for value in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(value, dict | list):
            found += _nodes(value)
    return found


def _spoil_lines(draw: st.DrawFn, text: str) -> str:
    lines = text.split("\n")
    at = draw(st.integers(0, len(lines) - 1))
    change = draw(st.sampled_from(["drop", "repeat", "indent", "dedent", "move", "insert"]))
    if change == "drop":
        del lines[at]
    elif change == "repeat":
        lines.insert(at, lines[at])
    elif change == "indent":
        lines[at] = " " * draw(st.integers(1, 5)) + lines[at]
    elif change == "dedent":
        lines[at] = lines[at].lstrip()
    elif change == "move":
        lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
    else:
        lines.insert(at, draw(st.one_of(st.sampled_from(WHOLE), st.sampled_from(NAMES))))
    return "\n".join(lines) or "\n"


def _spoil_characters(draw: st.DrawFn, text: str) -> str:
    at = draw(st.integers(0, len(text)))
    change = draw(st.sampled_from(["cut", "drop", "insert", "replace", "double"]))
    if change == "cut":
        return text[:at]
    if change == "drop":
        return text[:at] + text[at + draw(st.integers(1, 9)) :]
    if change == "double":
        return text[:at] + text[max(0, at - 40) :]
    new = draw(
        st.one_of(
            st.sampled_from(list("{}[]:,#&*!|>'\"%@`-?\t \n\x00\x85\ufeff")), st.text(max_size=3)
        )
    )
    return text[:at] + new + text[at + (change == "replace") :]

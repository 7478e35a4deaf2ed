"""The studies that come with the package: ready to run, or to copy and adapt."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from paretune.errors import UserError
from paretune.study.mistakes import closest


@dataclass(frozen=True)
class Recipe:
    """A packaged study file: its name, and its first comment line as the description."""

    name: str
    description: str
    text: str


def list_recipes() -> list[Recipe]:
    """All recipes: those that run anywhere, those for data of one's own, then by name."""
    folder = resources.files("paretune.study").joinpath("recipes")
    files = {
        item.name.removesuffix(".yaml"): item.read_text(encoding="utf-8")
        for item in folder.iterdir()
        if item.name.endswith(".yaml")
    }
    first = ("pocket", "own")
    places = {
        name: next((i for i, start in enumerate(first) if name.startswith(start)), len(first))
        for name in files
    }
    return [
        Recipe(name, files[name].partition("\n")[0].lstrip("# "), files[name])
        for name in sorted(files, key=lambda name: (places[name], name))
    ]


def read_recipe(name: str) -> str:
    """The text of a recipe.

    Raises:
        UserError: there is no recipe of that name.
    """
    texts = {recipe.name: recipe.text for recipe in list_recipes()}
    name = name.removesuffix(".yaml")
    if name not in texts:
        near = closest(name, texts)
        hint = f"did you mean {near}?" if near else f"there is {', '.join(texts)}"
        raise UserError(f"no recipe is called '{name}'; {hint}")
    return texts[name]

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
    """All recipes: those that run anywhere first, then by name."""
    folder = resources.files("paretune.study").joinpath("recipes")
    files = {
        item.name.removesuffix(".yaml"): item.read_text(encoding="utf-8")
        for item in folder.iterdir()
        if item.name.endswith(".yaml")
    }
    return [
        Recipe(name, text.partition("\n")[0].lstrip("# "), text)
        for name, text in sorted(files.items(), key=lambda file: (file[0][:6] != "pocket", file[0]))
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

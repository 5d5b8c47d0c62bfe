"""Recipes that are part of Vesalius, found by name."""

from __future__ import annotations

from pathlib import Path

from vesalius.errors import SettingError

PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "recipes", PACKAGE.parents[1] / "recipes")
"""Folder of the recipes in an installed package, and in a clone of the repository."""


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of each recipe that is part of Vesalius, such as `arcade`; paths in a recipe are examples."""
    return {file.stem: file for folder in FOLDERS for file in sorted(folder.glob("*.yaml"))}


def find_recipe(recipe: Path) -> Path:
    """`recipe` itself if it exists or contains a folder; else the shipped recipe `NAME` or `NAME.yaml`.

    SettingError, listing the names of the shipped recipes, for a name that is neither.
    """
    if recipe.exists() or len(recipe.parts) != 1:
        return recipe
    known = shipped_recipes()
    if recipe.name.removesuffix(".yaml") in known:
        return known[recipe.name.removesuffix(".yaml")]
    raise SettingError.at(
        recipe,
        f"there is no such file, and no recipe of this name is part of Vesalius; known: {', '.join(known)}; "
        "`vesalius init DATA` writes a recipe for your data",
        code="not_found",
    )

"""Write a recipe for a dataset, with a reason for each choice."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from vesalius.cli.arguments import DATA, MODEL, Result, given
from vesalius.progress import Progress


def add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("data", type=Path, metavar="DATA", help=f"{DATA}; of several annotation files, `train` and `val` are used")
    add("--val", type=Path, metavar="DATA", help="validation dataset, if it is not part of DATA")
    add("--model", metavar="MODEL", default="tiny", help=f"model to fine-tune: {MODEL}; `unet` is a new U-Net")
    add("--prompt", help="use this prompt instead of the phrases in the dataset")
    add("--out", type=Path, metavar="FILE.yaml", default=Path("recipe.yaml"), help="the recipe; must not exist")


def run(args: argparse.Namespace) -> Result:
    """Check the dataset and write the recipe; returns its path, the phrases, and the command that trains by it."""
    from vesalius.training.first_recipe import write_first_recipe

    with Progress(None, "check") as progress:
        options = given(args, "val model prompt")
        recipe = write_first_recipe(args.data, args.out, **options, on_progress=progress.reach_of)
    for note in recipe.notes:
        print(note)
    print(f"{recipe.path}: recipe with the reason for each choice; read it, then train by it:")
    command = shlex.join(["vesalius", "train", str(recipe.path)])
    print(f"  {command}")
    basis = recipe.basis
    return {
        "recipe": str(recipe.path),
        "images": basis.images,
        "phrases": list(basis.phrases),
        "new_phrases": list(basis.new),
        "next": command,
    }

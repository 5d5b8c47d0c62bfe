"""`make demo`: synthesize, check, train and evaluate on synthetic angiograms, from random weights, on this machine.

Controls on the same test images: the untrained model, the shipped `tiny`, and scores against the mask of another phrase.
The digits depend on the kind of processor only: the recipe counts steps, and every command uses two threads.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from vesalius import load_item, load_predictor, load_samples
from vesalius.evaluation.overlap import score
from vesalius.models.checkpoint import new_model, save_bundle

RECIPE = Path(__file__).with_name("demo.yaml")
SETS = {"train": (160, 1), "val": (12, 2), "test": (24, 3)}
"""Name -> number of images and seed."""
PHRASES = ("blood vessel", "catheter")
DECIDES = 0.1
"""Minimum lead in mean Dice of a phrase over the other phrase on its own masks."""
THREADS = 2
"""Threads of every command: sums of floating-point numbers depend on their number in the last digits."""

MARKER = ".made-by-demo"
"""Marker file of a folder written by an earlier demo, which may be replaced."""


def vesalius(*arguments: str | Path) -> None:
    """Print and run one `vesalius` command."""
    print_command(arguments)
    subprocess.run([sys.executable, "-m", "vesalius", *map(str, arguments)], check=True)


def evaluate(model: str | Path, data: Path, out: Path, *options: str) -> dict[str, float]:
    """Run `vesalius evaluate` and print only the mean Dice of each phrase, which is returned."""
    command = ["evaluate", str(model), str(data), "--out", str(out), *options]
    print_command(command)
    subprocess.run([sys.executable, "-m", "vesalius", *command], check=True, stdout=subprocess.DEVNULL)
    parts = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["prompts"]
    dice = {phrase: float(parts[phrase]["mean"]["dice"]) for phrase in PHRASES}
    print("mean Dice: " + ", ".join(f"{phrase} {value:.3f}" for phrase, value in dice.items()))
    return dice


def print_command(arguments: tuple[str | Path, ...] | list[str]) -> None:
    """Print a command as a user would type it."""
    print(f"\n$ vesalius {' '.join(map(str, arguments))}", flush=True)


def swapped_dice(model: Path, data: Path) -> dict[str, float]:
    """Mean Dice of the prediction for the other phrase against each phrase's masks; high if the phrase is ignored."""
    predictor = load_predictor(model)
    dice: dict[str, list[float]] = {phrase: [] for phrase in PHRASES}
    for sample in load_samples(data):
        item = load_item(sample)
        assert item.masks is not None
        found = {prediction.prompt: prediction.mask for prediction in predictor.predict([item])}
        for phrase, other in zip(PHRASES, reversed(PHRASES), strict=True):
            truth = item.masks[item.prompts.index(phrase), 0]
            dice[phrase].append(score(truth, found[other])["dice"] or 0.0)
    return {phrase: float(np.mean(values)) for phrase, values in dice.items()}


def verdict(own: Mapping[str, float], swapped: Mapping[str, float]) -> str:
    """One sentence: whether the phrase decides what is segmented.

    It decides if on the masks of each phrase the prediction for this phrase has a mean Dice at least `DECIDES` higher
    than the prediction for the other phrase.
    """
    compared = ", ".join(f"{phrase} {own[phrase]:.3f} against {swapped[phrase]:.3f}" for phrase in own)
    rule = f"with the right phrase and with the other one, mean Dice on each structure is {compared}"
    if weak := [phrase for phrase in own if own[phrase] - swapped[phrase] < DECIDES]:
        return f"The phrase decides nothing for {' and '.join(weak)}: {rule}, and the lead must be at least {DECIDES}."
    return f"The phrase decides what is segmented: {rule}, and each lead is at least {DECIDES}."


def make_data(out: Path) -> None:
    """Make an empty folder for the demo, and synthesize and check its datasets."""
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        sys.exit(f"{out}: is not empty and was not written by an earlier demo; choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARKER).touch()
    for name, (n, seed) in SETS.items():
        vesalius("synth", out / name, "--n", str(n), "--seed", str(seed))
        vesalius("check", out / name)


def main() -> None:
    """Run the demo in the folder `--out`; print the table of Dice scores and a verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--set", nargs="+", default=[], metavar="a.b=c", help="change settings of recipes/demo.yaml")
    args = parser.parse_args()
    out: Path = args.out
    started = time.perf_counter()
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    torch.set_num_threads(THREADS)
    make_data(out)
    data = [f"data.train={out / 'train'}", f"data.val={out / 'val'}", f"out={out / 'run'}"]
    vesalius("train", RECIPE, "--set", *args.set, *data)
    save_bundle(out / "untrained", new_model("tiny", seed=0))
    trained = evaluate(out / "run", out / "test", out / "evaluation")
    swapped = swapped_dice(out / "run", out / "test")
    rows = {
        "trained here": trained,
        "trained here, asked for the other phrase": swapped,
        "untrained, forced to answer": evaluate(
            out / "untrained", out / "test", out / "evaluation-untrained", "--answer", "force"
        ),
        "shipped tiny": evaluate("tiny", out / "test", out / "evaluation-tiny"),
    }
    print(f"\nMean Dice on {SETS['test'][0]} synthetic angiograms that were not used for training")
    print(f"{'':44}" + "".join(f"{phrase:>14}" for phrase in PHRASES))
    for label, dice in rows.items():
        print(f"{label:44}" + "".join(f"{dice[phrase]:14.3f}" for phrase in PHRASES))
    print(f"\n{verdict(trained, swapped)}")
    print(f"\nreport: {out / 'evaluation' / 'report.html'}")
    print(f"took {(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
